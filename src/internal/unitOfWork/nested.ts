/**
 * A nested part of a unit of work, or of a transaction, which can fail alone: it has a savepoint on
 * each database that it uses. If a database has no transaction around it, and no unit would begin
 * one, the part begins a transaction of its own, as a unit of work does.
 */

import type * as Fiber from "effect/Fiber"
import type { Role } from "../../Topology.js"
import type { Settings } from "../../Transaction.js"
import type { Describe } from "../statement/workLabel.js"
import type { Demanded, Retry, TransactionContext } from "../transaction/context.js"
import { passedOn } from "../transaction/hook.js"
import type { PartName } from "../transaction/joinedPart.js"
import { inMillis } from "../transaction/optionsInMillis.js"
import { mergeSettings } from "../transaction/settingsByDatabase.js"
import { SiblingTurn } from "../transaction/siblingTurn.js"
import { nest, type Origin, type Transaction } from "../transaction/transaction.js"
import type { CommitOptions, RequiredEnd } from "./commitOptions.js"
import type { Begin, HooksOfDatabase } from "./hooksBeforeBegin.js"
import { Unit } from "./unit.js"
import { joinableUnitOf, unitOf } from "./unitOf.js"

/**
 * Nested part of a unit or transaction. It takes turns with its siblings, and ends with savepoints
 * where a transaction is around it.
 */
export class NestedUnit extends Unit {
  private readonly turn: SiblingTurn
  /** The hooks without a transaction that are passed to the unit around at the end of the part. */
  private heldHooks: ReadonlyArray<readonly [Origin, HooksOfDatabase]> = []

  constructor(
    private readonly fiber: Fiber.RuntimeFiber<unknown, unknown>,
    private readonly outside: TransactionContext,
    commitOptions: CommitOptions,
    describe: Describe | undefined,
    name: PartName
  ) {
    super(outside, undefined, undefined, commitOptions, describe, name)
    this.turn = new SiblingTurn(outside.siblingLock)
  }

  override get isNested(): boolean {
    return true
  }

  /**
   * Returns the savepoint of the part in the transaction around it. The first call begins the
   * savepoint. A reader's statement runs in the transaction itself.
   */
  override enlist(origin: Origin, kind: Role): Transaction | "none" | undefined {
    const own = kind === "writer" ? this.ownOf(origin) : undefined
    if (own !== undefined) return own
    const around = this.outside.enlist(origin, kind)
    if (around === undefined || around === "none") return undefined
    return kind === "writer" ? this.nestIn(around) : around
  }

  override open(origin: Origin, begin: Begin): Transaction {
    const around = this.outside.open(origin, begin)
    return around === undefined ? super.open(origin, begin) : this.nestIn(around)
  }

  /** Requests a retry of the unit around: a nested part is not run again by itself. */
  override takeRetry(transaction: Transaction | undefined, retry: Retry): boolean {
    return this.outside.takeRetry(transaction, retry)
  }

  /**
   * Returns settings with the isolation and access of the unit around, if that unit begins the
   * transactions of the part.
   */
  override settingsFor(database: string | undefined): Settings {
    const own = super.settingsFor(database)
    const unit = joinableUnitOf(this.outside)
    if (unit === undefined) return own
    const { access, isolation } = unit.settingsFor(database)
    return mergeSettings(own, { access, isolation })
  }

  override demandCommitOptions(required: RequiredEnd): Demanded {
    const unit = unitOf(this.outside)
    return unit === undefined ? super.demandCommitOptions(required) : unit.demandCommitOptions(required)
  }

  /**
   * Holds back the hooks without a transaction if a unit around will take them: otherwise the end
   * of the part would begin a transaction for them. Without such a unit the part is the outermost,
   * and runs the hooks itself.
   */
  holdHooks(): void {
    this.heldHooks = [...this.heldHooks, ...this.takeHooksBeforeBegin((origin) => this.outside.takesHooks(origin))]
  }

  /**
   * Passes the hooks that were held back to the unit around, by the rules for hooks of savepoints.
   */
  passHooksOn(isKept: boolean): void {
    for (const [origin, { begin, hooks }] of this.heldHooks) {
      for (const hook of hooks) {
        const passed = passedOn(hook, isKept)
        if (passed !== undefined) this.outside.addHook(origin, passed, begin)
      }
    }
    this.heldHooks = []
  }

  /** Records in the part around this one, if there is one, that a writer's statement was sent. */
  recordKept(): void {
    for (const { level, outer } of this.begun) {
      if (outer !== undefined && level.touched) this.outside.part(outer)?.recordSent(outer)
    }
  }

  /** Ends the turn of the part, so that the next part of the same unit can run. */
  leave(): void {
    this.turn.end()
  }

  private nestIn(around: Transaction): Transaction {
    const label = this.name?.label
    const { applicationName, lockTimeout, statementTimeout } = super.settingsFor(around.origin.database)
    const own = mergeSettings({}, { label, applicationName, lockTimeout, statementTimeout })
    const nested = nest(around.origin, around, "writer", around, inMillis(own))
    nested.level.turn = this.turn
    nested.span = around.origin.span(this.fiber, label, this.outside)
    this.add(nested)
    return nested
  }
}
