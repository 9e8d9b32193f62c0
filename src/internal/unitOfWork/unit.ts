/**
 * A unit of work as the transaction context of its statements: the transactions that it has begun,
 * the settings of those that it will begin, and its read affinity.
 */
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import { OptionsConflict, type TransactionBusy } from "../../DatabaseError.js"
import type { Role } from "../../Topology.js"
import type { Options, Settings, WorkLabel } from "../../Transaction.js"
import { FifoLock } from "../concurrency/fifoLock.js"
import type { Connection } from "../connection/connection.js"
import type { StatementFailure } from "../connection/plainFailure.js"
import type { Describe } from "../statement/workLabel.js"
import { type Demanded, type ReadAffinity, type Retry, TransactionContext } from "../transaction/context.js"
import type { Hook } from "../transaction/hook.js"
import { JoinedPart, type PartName } from "../transaction/joinedPart.js"
import { rollbackLevel } from "../transaction/levelRollback.js"
import { raiseIsolation } from "../transaction/propagation.js"
import { type SettingsByDatabase, settingsOf } from "../transaction/settingsByDatabase.js"
import type { Origin, Transaction } from "../transaction/transaction.js"
import { OutsideContext } from "../transaction/transactionContexts.js"
import { conflictOfBegun, conflictOfSettings, raiseAll } from "./demands.js"
import { type End, EndsUnderWay } from "./endsUnderWay.js"

/**
 * Rule for the order of commits: a list of names is the order itself, other databases follow them.
 */
export type Order = "safest" | "touched" | ReadonlyArray<string>

/** Options of the completion of a group of transactions. */
export interface CompletionOptions {
  readonly order: Order
  /** True if each server checks its deferred constraints before the first COMMIT. */
  readonly checked: boolean
  /**
   * True if nested transactions that forks have left open are rolled back at once, instead of
   * waited for.
   */
  readonly leavesForks: boolean
}

/** Hooks of a database that has no transaction yet. */
export interface WaitingHooks {
  readonly begin: (options: Options) => Transaction
  readonly hooks: Array<Hook>
}

const noSettings: Settings = {}
const none: ReadonlyArray<never> = []
const noSettingsByDatabase: SettingsByDatabase = { all: noSettings, databases: new Map() }

/** Checks whether the work of a transaction is stored, or may be. */
export const mayBeStored = (transaction: Transaction): boolean => {
  const { level, stores } = transaction
  return level.connectionHolder.mayHaveStored || (stores && (level.state === "committed" || level.state === "unknown"))
}

/** A unit of work. */
export class Unit extends TransactionContext {
  // created with their first entries, because many requests use no database
  private transactions: Map<Origin, Transaction> | undefined = undefined
  private waiting: Map<Origin, WaitingHooks> | undefined = undefined
  private affinities: Map<Origin, ReadAffinity> | undefined = undefined
  private ended = false
  /** The number of the attempt, if the work is run again. */
  attempt = 1
  private ends: EndsUnderWay | undefined = undefined
  /**
   * True if a part of the work remains after a rollback: because it is stored, may be stored, or is
   * in a transaction around the unit.
   */
  private hasKept = false
  private joined: JoinedPart | undefined = undefined
  /** Actions that wait until the work is stored. */
  private pending: Array<() => void> | undefined = undefined
  /** True if the unit can be run again as a whole. */
  canRunAgain = false
  /** The schedule of attempts that a part of the unit has requested. */
  askedRetry: Retry | undefined = undefined
  private nestedLock: FifoLock | undefined = undefined

  constructor(
    parent: TransactionContext | undefined,
    /** The context around it, if the unit does not see its transactions. */
    private readonly behind: TransactionContext | undefined,
    private settings: SettingsByDatabase | undefined,
    public completion: CompletionOptions,
    private readonly describe: Describe | undefined,
    protected readonly name: PartName | undefined
  ) {
    super(parent, "of a unit of work")
  }

  /** True for a nested part, which ends with savepoints. */
  get isNested(): boolean {
    return false
  }

  override get siblingLock(): FifoLock {
    this.nestedLock ??= new FifoLock()
    return this.nestedLock
  }

  override whenStored(action: () => void): boolean {
    // a fiber that outlives the unit acts on the work that the unit has passed to the unit around
    // it
    if (this.ended) return super.whenStored(action)
    this.pending ??= []
    this.pending.push(action)
    return true
  }

  /** Drops the deferred actions, if all work that they may belong to is undone. */
  dropPending(): void {
    if (!this.hasKept && (this.transactions === undefined || this.transactions.size === 0)) this.pending = undefined
  }

  override get isOver(): boolean {
    return this.ended
  }

  get hasPending(): boolean {
    return this.pending !== undefined
  }

  /**
   * Runs the deferred actions; an early commit stores only a part of the work, so the end runs them
   * again.
   */
  stored(isEarly: boolean): void {
    for (const action of this.pending ?? []) if (isEarly || !super.whenStored(action)) action()
    if (!isEarly) this.pending = undefined
  }

  /** True if a part of the work is stored, or may be, or is in a transaction around the unit. */
  get keepsPart(): boolean {
    return this.hasKept || this.begun.some(mayBeStored)
  }

  override part(transaction: Transaction): JoinedPart | undefined {
    if (this.transactions?.get(transaction.origin) === transaction) return undefined
    this.joined ??= new JoinedPart(this.parent, this.name)
    return this.joined
  }

  /** Makes the transactions around the unit in which it has written end in rollback. */
  undoJoined(cause: unknown): void {
    this.joined?.undo(cause)
  }

  override work(fiber: Fiber.RuntimeFiber<unknown, unknown>): WorkLabel | undefined {
    return this.describe === undefined ? (super.work(fiber) ?? this.behind?.work(fiber)) : this.describe(fiber)
  }

  override around(origin: Origin): Transaction | undefined {
    return this.transactions?.get(origin) ?? super.around(origin) ?? this.behind?.around(origin)
  }

  override find(origin: Origin): Transaction | "none" | undefined {
    const own = this.transactions?.get(origin)
    if (own !== undefined) return own
    const around = super.find(origin)
    // if the work around was isolated on purpose, the unit has a transaction of its own
    return around === "none" ? undefined : around
  }

  override enlist(origin: Origin, kind: Role): Transaction | "none" | undefined {
    const own = kind === "writer" ? this.transactions?.get(origin) : undefined
    if (own !== undefined) return own
    const around = super.enlist(origin, kind)
    if (around === "none") return undefined
    this.hasKept ||= around !== undefined
    return around
  }

  override open(origin: Origin, begin: (options: Options) => Transaction): Transaction {
    // a unit around this one has the transaction, unless the work was isolated from it on purpose
    const around = super.open(origin, begin)
    if (around !== undefined) {
      this.hasKept = true
      return around
    }
    const transaction = begin(this.settingsFor(origin.database))
    this.add(transaction)
    return transaction
  }

  /** Adds a transaction of its own, with the hooks that have waited for it. */
  protected add(transaction: Transaction): void {
    const { level, origin } = transaction
    transaction.isOfUnit = true
    // a fiber that outlives the unit must not begin a transaction that never ends
    if (this.ended) {
      transaction.span?.end("rolledBack", undefined)
      return rollbackLevel(level, () => {})
    }
    this.transactions ??= new Map()
    this.transactions.set(origin, transaction)
    const waiting = this.waiting?.get(origin)
    this.waiting?.delete(origin)
    for (const hook of waiting?.hooks ?? []) transaction.addHook(hook)
  }

  /** Returns the unit's transaction on a database, if it has begun. */
  protected ownOf(origin: Origin): Transaction | undefined {
    return this.transactions?.get(origin)
  }

  /** Takes the hooks without a transaction, of some databases. */
  protected takeWaiting(isMeant: (origin: Origin) => boolean): ReadonlyArray<readonly [Origin, WaitingHooks]> {
    const all = [...(this.waiting ?? none)].filter(([origin]) => isMeant(origin))
    for (const [origin] of all) this.waiting?.delete(origin)
    if (this.waiting?.size === 0) this.waiting = undefined
    return all
  }

  override takesHooks(): boolean {
    return !this.ended
  }

  /**
   * Keeps a hook until a transaction begins. A hook begins none itself, because later reads would
   * have to join that.
   */
  override addHook(origin: Origin, hook: Hook, begin: (options: Options) => Transaction): boolean {
    if (this.ended) return false
    const own = this.transactions?.get(origin)
    if (own !== undefined) {
      own.addHook(hook)
      return true
    }
    if (!this.isNested && super.addHook(origin, hook, begin)) return true
    this.waiting ??= new Map()
    const waiting = this.waiting.get(origin)
    if (waiting === undefined) this.waiting.set(origin, { begin, hooks: [hook] })
    else waiting.hooks.push(hook)
    return true
  }

  override held(origin: Origin): ReadonlyArray<Connection> {
    const own = this.transactions?.get(origin)?.level.held ?? []
    return [...own, ...super.held(origin), ...(this.behind?.held(origin) ?? [])]
  }

  override readAffinity(origin: Origin): ReadAffinity {
    const around = super.readAffinity(origin)
    if (around !== undefined) return around
    this.affinities ??= new Map()
    let known = this.affinities.get(origin)
    if (known === undefined) {
      known = { reader: undefined, written: false }
      this.affinities.set(origin, known)
    }
    return known
  }

  /**
   * Begins the transactions that have nothing but hooks, and returns all, in the order in which
   * they have begun.
   */
  beginAll(): ReadonlyArray<Transaction> {
    if (this.waiting !== undefined) for (const [origin, { begin }] of [...this.waiting]) this.open(origin, begin)
    return this.begun
  }

  /** The transactions that have begun. */
  get begun(): ReadonlyArray<Transaction> {
    return this.transactions === undefined ? none : [...this.transactions.values()]
  }

  /**
   * Returns the unit's transaction on a database, after it has begun if it has nothing but hooks.
   */
  beginOwn(origin: Origin): Transaction | undefined {
    const waiting = this.waiting?.get(origin)
    return this.transactions?.get(origin) ?? (waiting === undefined ? undefined : this.open(origin, waiting.begin))
  }

  /** Returns the database of a name, if the unit has used it. */
  origin(database: string): Origin | undefined {
    const known = [...(this.transactions?.keys() ?? []), ...(this.affinities?.keys() ?? [])]
    return known.find((origin) => origin.database === database)
  }

  /** The failures of statements that may have undone the transactions of the unit. */
  get failures(): ReadonlyArray<StatementFailure> {
    return this.begun.flatMap(({ failures }) => failures)
  }

  /** True if no transaction has begun in the unit, and its end has nothing to do. */
  get isUntouched(): boolean {
    return this.transactions === undefined && this.waiting === undefined && !this.hasPending
  }

  /**
   * True if a part of the work is stored, may be stored, or is in a transaction around the unit.
   * Then the unit cannot be run again as a whole.
   */
  get hasCommitted(): boolean {
    return this.isEnding || this.keepsPart
  }

  /** True while an end of some of its transactions is in progress. */
  get isEnding(): boolean {
    return this.ends !== undefined && this.ends.size > 0
  }

  /** Completes when all ends in progress are over, or fails after `busyTimeout`. */
  get settled(): Effect.Effect<void, TransactionBusy> {
    return Effect.suspend(() => this.ends?.settled ?? Effect.void)
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

  /** True after the end of the unit has begun: no further work can be part of it. */
  get hasEnded(): boolean {
    return this.ended
  }

  /** Ends the unit. No transaction can begin in it any more. */
  end(): void {
    this.ended = true
  }

  /** Forgets a transaction that has ended; the next statement on its database begins another. */
  forget(transaction: Transaction): void {
    if (this.transactions?.get(transaction.origin) === transaction) this.transactions.delete(transaction.origin)
    if (!transaction.level.touched) return
    this.readAffinity(transaction.origin).written = true
    this.hasKept ||= mayBeStored(transaction)
  }

  /**
   * Checks the transactions that have begun, and the settings of those that have not, by the same
   * rules.
   */
  override demand(asked: SettingsByDatabase, joins: boolean): Demanded {
    const takeAround = super.demand(asked, joins && !this.isNested)
    if (takeAround instanceof OptionsConflict) return takeAround
    const { begun } = this
    const own = this.settings ?? noSettingsByDatabase
    const isLeftAround = (database: string) => this.parent?.hasOpen(database) === true
    const error =
      conflictOfBegun(begun, asked, joins) ??
      conflictOfSettings(own, asked, isLeftAround, (database) => this.settingsFor(database))
    if (error !== undefined) return error
    return () => {
      takeAround()
      for (const transaction of begun)
        raiseIsolation(transaction, settingsOf(asked, transaction.origin.database), joins)
      this.settings = raiseAll(own, asked, joins)
    }
  }

  /**
   * Checks the order of commits and the check that a part requires. Returns the same as {@link
   * demand}.
   */
  demandCompletion(order: Order | undefined, checked: boolean | undefined): Demanded {
    const { completion } = this
    if (order !== undefined && completion.order !== "safest" && String(order) !== String(completion.order))
      return this.refuse("order", String(completion.order), String(order))
    if (checked === false && completion.checked) return this.refuse("checkFirst", "true", "false")
    return () => {
      this.completion = { ...completion, order: order ?? completion.order, checked: checked ?? completion.checked }
    }
  }

  override takeRetry(transaction: Transaction | undefined, asked: Retry): boolean {
    if (transaction !== undefined && this.transactions?.get(transaction.origin) !== transaction)
      return super.takeRetry(transaction, asked)
    if (this.canRunAgain) this.askedRetry ??= asked
    return this.canRunAgain
  }

  private refuse(option: string, outer: string, inner: string): OptionsConflict {
    const database = this.begun[0]?.origin.database ?? ""
    return new OptionsConflict({ database, server: "", option, outer, inner })
  }

  /**
   * Returns the settings of a transaction that the unit begins on a database; without a name, the
   * settings for databases that have none of their own.
   */
  settingsFor(database: string | undefined): Settings {
    return this.settings === undefined ? noSettings : settingsOf(this.settings, database)
  }
}

/** Returns the innermost unit of work of a context. */
export const unitOf = (context: TransactionContext | undefined): Unit | undefined => {
  for (let one = context; one !== undefined; one = one.parent) if (one instanceof Unit) return one
  return undefined
}

/**
 * Returns the unit of work that a part joins: none if the part was isolated from a database on
 * purpose.
 */
export const joinableUnitOf = (context: TransactionContext | undefined): Unit | undefined => {
  for (let one = context; one !== undefined; one = one.parent) {
    if (one instanceof Unit) return one
    if (one instanceof OutsideContext) return undefined
  }
  return undefined
}
