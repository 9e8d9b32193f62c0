/**
 * An open unit of work, and the handle that ends it, once, with the outcome that its caller
 * decides.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { TransactionError } from "../../DatabaseError.js"
import type { Restore } from "../edge/cancellable.js"
import type { Describe } from "../statement/workLabel.js"
import { rollbackAll } from "../transaction/completion.js"
import type { TransactionContext } from "../transaction/context.js"
import type { PartName } from "../transaction/joinedPart.js"
import type { SettingsByDatabase } from "../transaction/settingsByDatabase.js"
import type { Transaction } from "../transaction/transaction.js"
import { finish } from "./commitAll.js"
import type { CommitOptions } from "./commitOptions.js"
import type { NestedUnit } from "./nested.js"
import type { Outcome } from "./options.js"
import { Unit } from "./unit.js"

/** An open unit of work. */
export interface UnitHandle {
  readonly unit: Unit
  readonly hasEnded: boolean
  /** True if a requested rollback has ended the unit. */
  readonly isRolledBack: boolean
  /** Ends the unit at once if it has no work. Returns true if the unit has ended. */
  readonly endUntouched: () => boolean
  /** Ends the unit, once. `restore` is `undefined` if the caller was interrupted or cannot be. */
  readonly end: (outcome: Outcome, restore: Restore | undefined) => Effect.Effect<void, TransactionError>
}

/** Plan of a unit of work. */
export interface UnitPlan {
  /** The transaction context around it. */
  readonly around: TransactionContext | undefined
  /** True if it sees the transactions that are open around it. */
  readonly joins: boolean
  readonly settings: SettingsByDatabase | undefined
  readonly commitOptions: CommitOptions
  readonly describe: Describe | undefined
  /** The name of the unit as a part of the transactions that are open around it. */
  readonly name?: PartName | undefined
}

/**
 * Opens a unit of work. Nothing is sent, and no connection checked out, before its first statement.
 */
export const openUnit = ({ around, commitOptions, describe, joins, name, settings }: UnitPlan): UnitHandle =>
  new OpenUnit(
    new Unit(joins ? around : undefined, joins ? undefined : around, settings, commitOptions, describe, name)
  )

/**
 * Returns the handle of a nested part, which passes its hooks to the unit or transaction around it.
 */
export const nestedHandle = (unit: NestedUnit): UnitHandle => new OpenNested(unit)

/** Handle of a unit of work that commits or rolls back all its transactions. */
class OpenUnit implements UnitHandle {
  protected ended = false
  isRolledBack = false

  constructor(readonly unit: Unit) {}

  get hasEnded(): boolean {
    return this.ended
  }

  end(outcome: Outcome, restore: Restore | undefined): Effect.Effect<void, TransactionError> {
    return Effect.suspend(() => {
      if (this.endUntouched()) return Effect.void
      const { unit } = this
      // an early commit of a fork must end before the unit does. Otherwise the unit could be
      // committed before a hook of the fork vetoes the early commit, or it could be reported as
      // committed and fail later
      if (outcome === "commit" && unit.isEnding) {
        if (restore === undefined) return this.end("rollback", undefined)
        return Effect.matchCauseEffect(restore(unit.endsOver), {
          onFailure: (cause) => Effect.zipRight(this.end("rollback", undefined), Effect.failCause(cause)),
          onSuccess: () => this.end(outcome, restore)
        })
      }
      this.ended = true
      this.isRolledBack = outcome === "rollback"
      const close = () => unit.end()
      const otherEnd = () => {
        if (!unit.isEnding) return undefined
        this.ended = false
        return this.end(outcome, restore)
      }
      let all: ReadonlyArray<Transaction>
      try {
        // a transaction with nothing but hooks begins here, and its settings may be invalid
        all = unit.beginAll()
      } catch (defect) {
        close()
        return Effect.zipRight(rollbackAll(unit.begun, restore), Effect.die(defect))
      }
      if (outcome === "commit") {
        const committed = finish(
          { unit, context: unit, beginAll: () => unit.beginAll(), isEarly: false, otherEnd, close },
          unit.commitOptions,
          restore
        )
        // a hook may defer an action, too
        if (!unit.hasPending && !all.some((transaction) => transaction.hasHooks)) return committed
        return Effect.onExit(committed, (exit) =>
          Effect.sync(() => {
            if (Exit.isSuccess(exit) || unit.keepsPart) unit.stored(false)
          })
        )
      }
      close()
      const undone = rollbackAll(all, restore)
      // the work of an early commit is stored in spite of the rollback
      return unit.hasPending && unit.keepsPart
        ? Effect.ensuring(
            undone,
            Effect.sync(() => unit.stored(false))
          )
        : undone
    })
  }

  endUntouched(): boolean {
    if (this.ended) return true
    if (!this.unit.isUntouched) return false
    this.ended = true
    this.unit.end()
    return true
  }
}

/** Handle of a nested part, which passes on its hooks and then ends its turn. */
class OpenNested extends OpenUnit {
  constructor(override readonly unit: NestedUnit) {
    super(unit)
  }

  override end(outcome: Outcome, restore: Restore | undefined): Effect.Effect<void, TransactionError> {
    return Effect.suspend(() => {
      const { unit } = this
      unit.holdHooks()
      return Effect.onExit(super.end(outcome, restore), (exit) =>
        Effect.sync(() => {
          const isKept = outcome === "commit" && Exit.isSuccess(exit)
          unit.passHooksOn(isKept)
          // the part around it must have recorded the kept work before the next part begins
          if (isKept) unit.recordKept()
          unit.leave()
        })
      )
    })
  }
}
