/**
 * A unit of work as its statements see it: the transactions that it has begun, how those are to be that it will begin, and what it
 * remembers of each database.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import { OptionsConflict, type StatementError, TransactionBusy } from "../../DatabaseError.js"
import type { Role } from "../../Topology.js"
import type { Options } from "../../Transaction.js"
import { FifoLock } from "../concurrency/fifoLock.js"
import type { Connection } from "../connection/connection.js"
import type { Describe, WorkLabel } from "../statement/workLabel.js"
import {
  type Demanded,
  OutsideContext,
  type ReadMemory,
  type Retry,
  TransactionContext
} from "../transaction/context.js"
import type { Hook } from "../transaction/hooks.js"
import { JoinedPart, type PartName } from "../transaction/joinedPart.js"
import { rollbackLevel } from "../transaction/levelRollback.js"
import { optionsConflict, raiseIsolation, raiseSettings, settingsConflict } from "../transaction/propagation.js"
import type { Origin, Transaction } from "../transaction/transaction.js"
import { settingsOf, type UnitOptions, type UnitSettings } from "../transaction/unitOptions.js"

/** By which the order of commits is chosen: a list of names is the order itself, those that it leaves out come after it. */
export type Order = "safest" | "touched" | ReadonlyArray<string>

/** How the end of what is committed together is to go. */
export interface UnitOutcome {
  readonly order: Order
  /** Whether each server checks what it would check at COMMIT before the first is committed. */
  readonly checked: boolean
  /** Has nested transactions that forks have left open be undone, instead of being waited for. */
  readonly leavesForks: boolean
}

/** An end of transactions of a unit that is under way: their hooks, which may still veto, and the commits. */
export interface End {
  readonly transactions: () => ReadonlyArray<Transaction>
  readonly over: Deferred.Deferred<void>
}

/** Hooks for which there is no transaction yet. */
export interface Waiting {
  readonly begin: (options: Options) => Transaction
  readonly hooks: Array<Hook>
}

const noSettings: UnitSettings = {}
const none: ReadonlyArray<never> = []
const noRules: UnitOptions = { all: noSettings, databases: new Map() }

/** Tells whether what a transaction has done is stored, or may be. */
export const mayBeStored = (transaction: Transaction): boolean => {
  const { level, stores } = transaction
  return level.holder.mayHaveStored || (stores && (level.state === "committed" || level.state === "unknown"))
}

export class Unit extends TransactionContext {
  // made with their first entries: most requests of many programs touch no database
  private transactions: Map<Origin, Transaction> | undefined = undefined
  private waiting: Map<Origin, Waiting> | undefined = undefined
  private memories: Map<Origin, ReadMemory> | undefined = undefined
  private ended = false
  /** Which try of the work it is, where that is run again. */
  attempt = 1
  private ends: Set<End> | undefined = undefined
  /** Whether a part of it stays when it is undone: it was, or may have been, stored before, or it was done in what is open around. */
  private hasKept = false
  private joined: JoinedPart | undefined = undefined
  /** Actions that are left to the time when it is stored. */
  private pending: Array<() => void> | undefined = undefined
  /** Set if it can be run again as a whole. */
  canRunAgain = false
  /** The schedule by which a part of it asks for that. */
  askedRetry: Retry | undefined = undefined
  private turns: FifoLock | undefined = undefined

  constructor(
    parent: TransactionContext | undefined,
    /** What was there before, where this unit does not see it. */
    private readonly behind: TransactionContext | undefined,
    private rules: UnitOptions | undefined,
    public ending: UnitOutcome,
    private readonly describe: Describe | undefined,
    protected readonly name: PartName | undefined
  ) {
    super(parent, "of a unit of work")
  }

  /** Tells whether it is a part that ends with savepoints. */
  get isNested(): boolean {
    return false
  }

  override get siblings(): FifoLock {
    this.turns ??= new FifoLock()
    return this.turns
  }

  override whenStored(action: () => void): boolean {
    // what a fiber does that outlives it is about what it has left to the whole around it
    if (this.ended) return super.whenStored(action)
    this.pending ??= []
    this.pending.push(action)
    return true
  }

  /** Forgets what was left to the time when it is stored, if all that it may be about is undone. */
  dropPending(): void {
    if (!this.hasKept && (this.transactions === undefined || this.transactions.size === 0)) this.pending = undefined
  }

  override get isOver(): boolean {
    return this.ended
  }

  get hasPending(): boolean {
    return this.pending !== undefined
  }

  /** Does what was left to the time when it is stored; an early commit stores only a part, so the end does it again. */
  stored(isEarly: boolean): void {
    for (const action of this.pending ?? []) if (isEarly || !super.whenStored(action)) action()
    if (!isEarly) this.pending = undefined
  }

  /** Tells whether a part of it is stored, or may be, or is left to what is open around it. */
  get keepsPart(): boolean {
    return this.hasKept || this.begun.some(mayBeStored)
  }

  /** Of what is open around it, it is a part. */
  override part(transaction: Transaction): JoinedPart | undefined {
    if (this.transactions?.get(transaction.origin) === transaction) return undefined
    this.joined ??= new JoinedPart(this.parent, this.name)
    return this.joined
  }

  /** It has ended in rollback: what is open around it must not keep its part of the work. */
  undoJoined(cause: unknown): void {
    this.joined?.undo(cause)
  }

  override work(fiber: Fiber.RuntimeFiber<unknown, unknown>): WorkLabel | undefined {
    return this.describe === undefined ? (super.work(fiber) ?? this.behind?.work(fiber)) : this.describe(fiber)
  }

  override around(origin: Origin): Transaction | undefined {
    return this.transactions?.get(origin) ?? super.around(origin) ?? this.behind?.around(origin)
  }

  override find(origin: Origin, kind: Role): Transaction | "none" | undefined {
    const own = kind === "writer" ? this.transactions?.get(origin) : undefined
    if (own !== undefined) return own
    const around = super.find(origin, kind)
    // where the work around is outside of all on purpose, this has a transaction of its own
    if (around === "none") return undefined
    this.hasKept ||= around !== undefined
    return around
  }

  override open(origin: Origin, begin: (options: Options) => Transaction): Transaction {
    // of a database that is not left out, a unit around this one has the transaction
    const around = super.open(origin, begin)
    if (around !== undefined) {
      this.hasKept = true
      return around
    }
    const transaction = begin(this.settingsFor(origin.database))
    this.add(transaction)
    return transaction
  }

  /** Has a transaction be its own, with the hooks that have waited for it. */
  protected add(transaction: Transaction): void {
    const { level, origin } = transaction
    transaction.isOfUnit = true
    // a fiber that outlives the unit must not begin what nobody will end
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

  /** Its own transaction on a database, if that is begun. */
  protected ownOf(origin: Origin): Transaction | undefined {
    return this.transactions?.get(origin)
  }

  /** Takes the hooks for which there is no transaction yet, of some databases. */
  protected takeWaiting(isMeant: (origin: Origin) => boolean): ReadonlyArray<readonly [Origin, Waiting]> {
    const all = [...(this.waiting ?? none)].filter(([origin]) => isMeant(origin))
    for (const [origin] of all) this.waiting?.delete(origin)
    if (this.waiting?.size === 0) this.waiting = undefined
    return all
  }

  override takesHooks(): boolean {
    return !this.ended
  }

  /** A hook is no reason to begin a transaction, which reads would have to join. */
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

  override memory(origin: Origin): ReadMemory {
    const around = super.memory(origin)
    if (around !== undefined) return around
    this.memories ??= new Map()
    let known = this.memories.get(origin)
    if (known === undefined) {
      known = { reader: undefined, written: false }
      this.memories.set(origin, known)
    }
    return known
  }

  /** The transactions, in the order in which they were begun; those that have nothing but hooks come last. */
  get all(): ReadonlyArray<Transaction> {
    if (this.waiting !== undefined) for (const [origin, { begin }] of [...this.waiting]) this.open(origin, begin)
    return this.begun
  }

  /** Those that are begun by now. */
  get begun(): ReadonlyArray<Transaction> {
    return this.transactions === undefined ? none : [...this.transactions.values()]
  }

  /** The one that it has open on a database, or hooks for it. */
  own(origin: Origin): Transaction | undefined {
    const waiting = this.waiting?.get(origin)
    return this.transactions?.get(origin) ?? (waiting === undefined ? undefined : this.open(origin, waiting.begin))
  }

  /** The database of a name, if anything was done there. */
  origin(database: string): Origin | undefined {
    const known = [...(this.transactions?.keys() ?? []), ...(this.memories?.keys() ?? [])]
    return known.find((origin) => origin.database === database)
  }

  /** Why its transactions may have been undone, for all that their statements know. */
  get failures(): ReadonlyArray<StatementError> {
    return this.begun.flatMap(({ failures }) => failures)
  }

  /** Whether nothing was begun in it, nor is anything to be done at its end. */
  get isUntouched(): boolean {
    return this.transactions === undefined && this.waiting === undefined && !this.hasPending
  }

  /** Whether a part of it is stored already, or may be, or is not for it to undo, so that it cannot be run again as a whole. */
  get hasCommitted(): boolean {
    return this.isEnding || this.keepsPart
  }

  /** Whether an end of some of its transactions is under way. */
  get isEnding(): boolean {
    return this.ends !== undefined && this.ends.size > 0
  }

  /** Done when all ends are over that are under way now; it waits for as long as a statement would for a nested transaction. */
  get settled(): Effect.Effect<void, TransactionBusy> {
    const over = Effect.forEach(this.ends ?? none, ({ over }) => Deferred.await(over), { discard: true })
    const [first] = [...(this.ends ?? none)].flatMap(({ transactions }) => transactions())
    if (first === undefined) return over
    const { location, provider } = first.level.holder
    return Effect.timeoutFail(over, {
      duration: provider.busyTimeout,
      onTimeout: () => new TransactionBusy({ ...location, waited: provider.busyTimeout })
    })
  }

  /** Whether one of these is in an end that is under way. */
  isEndOf(transactions: ReadonlyArray<Transaction>): boolean {
    return [...(this.ends ?? none)].some((end) => end.transactions().some((one) => transactions.includes(one)))
  }

  beginEnd(end: End): void {
    this.ends ??= new Set()
    this.ends.add(end)
  }

  endIsOver(end: End): Effect.Effect<unknown> {
    this.ends?.delete(end)
    return Deferred.succeed(end.over, undefined)
  }

  /** Whether its end has begun, and nothing that happens in it can have a part in that. */
  get hasEnded(): boolean {
    return this.ended
  }

  /** From now on nothing can be begun in it. */
  end(): void {
    this.ended = true
  }

  /** Its transaction on a database is over; the next statement begins another. */
  forget(transaction: Transaction): void {
    if (this.transactions?.get(transaction.origin) === transaction) this.transactions.delete(transaction.origin)
    if (!transaction.level.touched) return
    this.memory(transaction.origin).written = true
    this.hasKept ||= mayBeStored(transaction)
  }

  /** What is begun already, and what is not, is asked in the same way. */
  override demand(rules: UnitOptions, joins: boolean): Demanded {
    const takeAround = super.demand(rules, joins && !this.isNested)
    if (takeAround instanceof OptionsConflict) return takeAround
    const { begun } = this
    for (const transaction of begun) {
      const error = optionsConflict(transaction, settingsOf(rules, transaction.origin.database), joins)
      if (error !== undefined) return error
    }
    const named = new Set([...(this.rules?.databases.keys() ?? none), ...rules.databases.keys()])
    const all = [undefined, ...[...named].filter((database) => this.parent?.hasOpen(database) !== true)]
    for (const database of all) {
      const error = settingsConflict(database ?? "", this.settingsFor(database), settingsOf(rules, database))
      if (error !== undefined) return error
    }
    return () => {
      takeAround()
      for (const transaction of begun)
        raiseIsolation(transaction, settingsOf(rules, transaction.origin.database), joins)
      const own = this.rules ?? noRules
      const raised = (database: string | undefined) =>
        raiseSettings(settingsOf(own, database), settingsOf(rules, database), joins)
      this.rules = {
        all: raised(undefined),
        databases: new Map([...named].map((database) => [database, raised(database)]))
      }
    }
  }

  /** Checks what a part asks of the end: an order where the unit has none of its own, and a check. Returns as {@link demand}. */
  demandEnding(order: Order | undefined, checked: boolean | undefined): Demanded {
    const { ending } = this
    if (order !== undefined && ending.order !== "safest" && String(order) !== String(ending.order))
      return this.refuse("order", String(ending.order), String(order))
    if (checked === false && ending.checked) return this.refuse("checkFirst", "true", "false")
    return () => {
      this.ending = { ...ending, order: order ?? ending.order, checked: checked ?? ending.checked }
    }
  }

  /** It is run again, if it can be, where its failure allows it: a part of it has asked for that. */
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

  /** Returns the settings of a transaction that it begins on a database; without a name, on all that have none of their own. */
  settingsFor(database: string | undefined): UnitSettings {
    return this.rules === undefined ? noSettings : settingsOf(this.rules, database)
  }
}

/** Returns the innermost unit of work of a context. */
export const unitOf = (context: TransactionContext | undefined): Unit | undefined => {
  for (let one = context; one !== undefined; one = one.parent) if (one instanceof Unit) return one
  return undefined
}

/** Returns the unit of work that a part joins: none if a database was left out on purpose in between. */
export const joinableUnitOf = (context: TransactionContext | undefined): Unit | undefined => {
  for (let one = context; one !== undefined; one = one.parent) {
    if (one instanceof Unit) return one
    if (one instanceof OutsideContext) return undefined
  }
  return undefined
}
