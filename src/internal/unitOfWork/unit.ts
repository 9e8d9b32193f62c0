/**
 * A unit of work as the transaction context of its statements: the options that its parts require,
 * the actions that wait for its end, and the ends of its transactions.
 */
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import { OptionsConflict, type TransactionBusy } from "../../DatabaseError.js"
import type { Settings, WorkLabel } from "../../Transaction.js"
import { FifoLock } from "../concurrency/fifoLock.js"
import type { Describe } from "../statement/workLabel.js"
import type { Demanded, Retry, TransactionContext } from "../transaction/context.js"
import { JoinedPart, type PartName } from "../transaction/joinedPart.js"
import { raiseIsolation } from "../transaction/propagation.js"
import { type SettingsByDatabase, settingsOf } from "../transaction/settingsByDatabase.js"
import type { Transaction } from "../transaction/transaction.js"
import { type CommitOptions, conflictOfCommit, type RequiredEnd, raiseCommitOptions } from "./commitOptions.js"
import { type End, EndsUnderWay } from "./endsUnderWay.js"
import { conflictOfBegun, conflictOfSettings, raiseAll } from "./requiredSettings.js"
import { UnitTransactions } from "./unitTransactions.js"

const noSettings: Settings = {}
const noSettingsByDatabase: SettingsByDatabase = { all: noSettings, databases: new Map() }

/** A unit of work. */
export class Unit extends UnitTransactions {
  /** The number of the attempt, from 1. */
  attempt = 1
  private ends: EndsUnderWay | undefined = undefined
  private joined: JoinedPart | undefined = undefined
  /** Actions that wait until the work is stored. */
  private pending: Array<() => void> | undefined = undefined
  /** True if the unit can be run again as a whole. */
  canRunAgain = false
  /** The schedule of attempts that a part of the unit has requested. */
  requestedRetry: Retry | undefined = undefined
  private nestedLock: FifoLock | undefined = undefined

  constructor(
    parent: TransactionContext | undefined,
    behind: TransactionContext | undefined,
    private settings: SettingsByDatabase | undefined,
    public commitOptions: CommitOptions,
    private readonly describe: Describe | undefined,
    protected readonly name: PartName | undefined
  ) {
    super(parent, behind)
  }

  override get isNested(): boolean {
    return false
  }

  override get siblingLock(): FifoLock {
    this.nestedLock ??= new FifoLock()
    return this.nestedLock
  }

  override whenStored(action: () => void): boolean {
    // a fiber that outlives the unit defers the action to the unit around, which may have taken the
    // work
    if (this.hasEnded) return super.whenStored(action)
    this.pending ??= []
    this.pending.push(action)
    return true
  }

  /** Discards the deferred actions if all work of the unit so far is undone. */
  dropPending(): void {
    if (this.isUndone) this.pending = undefined
  }

  get hasPending(): boolean {
    return this.pending !== undefined
  }

  /**
   * Runs the deferred actions, or at the end of the unit passes them to the unit or transaction
   * around it, if there is one. An early commit stores only a part of the work, so the actions run
   * again at the end.
   */
  stored(isEarly: boolean): void {
    for (const action of this.pending ?? []) if (isEarly || !super.whenStored(action)) action()
    if (!isEarly) this.pending = undefined
  }

  override part(transaction: Transaction): JoinedPart | undefined {
    if (this.isOwn(transaction)) return undefined
    this.joined ??= new JoinedPart(this.parent, this.name)
    return this.joined
  }

  /** The transactions around the unit in which the unit has written. */
  get writesAround(): ReadonlyArray<Transaction> {
    return this.joined?.sentIn ?? []
  }

  /** Makes the transactions around the unit end in rollback if the unit has written in them. */
  undoJoined(cause: unknown): void {
    this.joined?.undo(cause)
  }

  override work(fiber: Fiber.RuntimeFiber<unknown, unknown>): WorkLabel | undefined {
    return this.describe === undefined ? (super.work(fiber) ?? this.behind?.work(fiber)) : this.describe(fiber)
  }

  /**
   * True if the unit has no transaction, no waiting hook and no deferred action, so its end has
   * nothing to do. With `atomic: "twoPhase"`, the end has to refuse work in several transactions
   * around the unit.
   */
  get isUntouched(): boolean {
    const isRefused = this.commitOptions.isTwoPhase && this.writesAround.length > 1
    return this.isUnused && !this.hasPending && !isRefused
  }

  /**
   * True if a part of the work is stored, may be stored, or is in a transaction around the unit, or
   * an end is in progress. Then the unit cannot be run again as a whole.
   */
  get hasCommitted(): boolean {
    return this.isEnding || this.keepsPart
  }

  /** True while an end of some of its transactions is in progress. */
  get isEnding(): boolean {
    return this.ends !== undefined && this.ends.size > 0
  }

  /** Completes when all ends in progress are over, or fails after `busyTimeout`. */
  get endsOver(): Effect.Effect<void, TransactionBusy> {
    return Effect.suspend(() => this.ends?.allOver ?? Effect.void)
  }

  /** Checks whether one of these transactions is in an end in progress. */
  isEndOf(transactions: ReadonlyArray<Transaction>): boolean {
    return this.ends?.includes(transactions) ?? false
  }

  /** Adds an end that is in progress. */
  beginEnd(transactions: End["transactions"]): End {
    this.ends ??= new EndsUnderWay()
    return this.ends.begin(transactions)
  }

  /** Removes an end that is over. */
  endIsOver(end: End): void {
    this.ends?.over(end)
  }

  /**
   * Checks the settings of a part against the transactions around the unit, against those that the
   * unit has begun, and against the unit's settings for those that it has not begun.
   */
  override demand(required: SettingsByDatabase, joins: boolean): Demanded {
    const takeAround = super.demand(required, joins && !this.isNested)
    if (takeAround instanceof OptionsConflict) return takeAround
    const { begun } = this
    const own = this.settings ?? noSettingsByDatabase
    const isLeftAround = (database: string) => this.parent?.hasOpen(database) === true
    const error =
      conflictOfBegun(begun, required, joins) ??
      conflictOfSettings(own, required, isLeftAround, (database) => this.settingsFor(database))
    if (error !== undefined) return error
    return () => {
      takeAround()
      for (const transaction of begun)
        raiseIsolation(transaction, settingsOf(required, transaction.origin.database), joins)
      this.settings = raiseAll(own, required, joins)
    }
  }

  /**
   * Checks the commit options that a part requires. Returns the conflict, or a function that
   * applies them, as {@link demand}.
   */
  demandCommitOptions(required: RequiredEnd): Demanded {
    const { commitOptions } = this
    const conflict = conflictOfCommit(commitOptions, required)
    if (conflict !== undefined)
      return new OptionsConflict({ database: this.begun[0]?.origin.database ?? "", server: "", ...conflict })
    return () => {
      this.commitOptions = raiseCommitOptions(commitOptions, required)
    }
  }

  override takeRetry(transaction: Transaction | undefined, retry: Retry): boolean {
    if (transaction !== undefined && !this.isOwn(transaction)) return super.takeRetry(transaction, retry)
    if (this.canRunAgain) this.requestedRetry ??= retry
    return this.canRunAgain
  }

  override settingsFor(database: string | undefined): Settings {
    return this.settings === undefined ? noSettings : settingsOf(this.settings, database)
  }
}
