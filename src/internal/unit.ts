/**
 * A unit of work as its statements see it: the transactions that it has begun, how those are to be that it will begin, and what it
 * remembers of each database.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type { Connection } from "../Connection.js"
import type { OptionsConflict, StatementError } from "../DatabaseError.js"
import type { Options, Origin, Transaction } from "../Transaction.js"
import { Carrier, type Kind, type Memory } from "./carrier.js"
import type { Hook } from "./hooks.js"
import { conflict } from "./propagation.js"
import type { Work } from "./work.js"

/** How a unit's transactions are to be. */
export type Settings = Omit<Options, "propagation" | "retry">

/** For all databases, and by the names of single ones. */
export interface Rules {
  readonly all: Settings | undefined
  readonly databases: ReadonlyMap<string, Settings>
}

/** By which the order of commits is chosen: a list of names is the order itself, those that it leaves out come after it. */
export type Order = "safest" | "touched" | ReadonlyArray<string>

/** How the end of what is committed together is to go. */
export interface Ending {
  readonly order: Order
  /** Whether each server checks what it would check at COMMIT before the first is committed. */
  readonly checked: boolean
}

/** Tells what the work is for; a route, say, is known only inside of it. */
export type Describe = (fiber: Fiber.RuntimeFiber<unknown, unknown>) => Work | undefined

/** An end of transactions of a unit that is under way: their hooks, which may still veto, and the commits. */
export interface End {
  readonly transactions: () => ReadonlyArray<Transaction>
  readonly over: Deferred.Deferred<void>
}

/** Hooks for which there is no transaction yet. */
interface Waiting {
  readonly begin: (options: Options) => Transaction
  readonly hooks: Array<Hook>
}

const noOptions: Options = {}
const none: ReadonlyArray<never> = []

const mayBeStored = ({ level, stores }: Transaction): boolean =>
  stores && (level.state === "committed" || level.state === "unknown")

export class Unit extends Carrier {
  // made with their first entries: most requests of many programs touch no database
  private transactions: Map<Origin, Transaction> | undefined = undefined
  private waiting: Map<Origin, Waiting> | undefined = undefined
  private memories: Map<Origin, Memory> | undefined = undefined
  private ended = false
  private ends: Set<End> | undefined = undefined
  /** Whether a part of it stays when it is undone: it was, or may have been, stored before, or it was done in what is open around. */
  private hasKept = false

  constructor(
    parent: Carrier | undefined,
    /** What was there before, where this unit does not see it. */
    private readonly behind: Carrier | undefined,
    private rules: Rules | undefined,
    readonly ending: Ending,
    private readonly describe: Describe | undefined
  ) {
    super(parent, "of a unit of work")
  }

  override get unit(): Unit {
    return this
  }

  override work(fiber: Fiber.RuntimeFiber<unknown, unknown>): Work | undefined {
    return this.describe === undefined ? (super.work(fiber) ?? this.behind?.work(fiber)) : this.describe(fiber)
  }

  override around(origin: Origin): Transaction | undefined {
    return this.transactions?.get(origin) ?? super.around(origin) ?? this.behind?.around(origin)
  }

  override find(origin: Origin, kind: Kind): Transaction | "none" | undefined {
    const own = kind === "writer" ? this.transactions?.get(origin) : undefined
    if (own !== undefined) return own
    const around = super.find(origin, kind)
    this.hasKept ||= around !== undefined
    return around
  }

  override open(origin: Origin, begin: (options: Options) => Transaction): Transaction {
    const transaction = begin(this.optionsFor(origin.database))
    // a fiber that outlives the unit must not begin what nobody will end
    if (this.ended) transaction.level.rollback(() => {})
    else {
      this.transactions ??= new Map()
      this.transactions.set(origin, transaction)
      const waiting = this.waiting?.get(origin)
      this.waiting?.delete(origin)
      for (const hook of waiting?.hooks ?? []) transaction.addHook(hook)
    }
    return transaction
  }

  /** A hook is no reason to begin a transaction, which reads would have to join. */
  override addHook(origin: Origin, hook: Hook, begin: (options: Options) => Transaction): boolean {
    if (this.ended) return false
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

  override memory(origin: Origin): Memory {
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
    return this.transactions === undefined && this.waiting === undefined
  }

  /** Whether a part of it is stored already, or may be, or is not for it to undo, so that it cannot be run again as a whole. */
  get hasCommitted(): boolean {
    if (this.hasKept || this.isEnding) return true
    if (this.transactions === undefined) return false
    for (const transaction of this.transactions.values()) if (mayBeStored(transaction)) return true
    return false
  }

  /** Whether an end of some of its transactions is under way. */
  get isEnding(): boolean {
    return this.ends !== undefined && this.ends.size > 0
  }

  /** Done when all ends are over that are under way now. */
  get settled(): Effect.Effect<void> {
    return Effect.forEach(this.ends ?? none, ({ over }) => Deferred.await(over), { discard: true })
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

  /** Takes what a part of the work asks for, for all that is begun from now on. What is begun already must not be otherwise. */
  demand(rules: Rules): OptionsConflict | undefined {
    for (const transaction of this.transactions?.values() ?? []) {
      const asked = rules.databases.get(transaction.origin.database) ?? rules.all
      const error = asked === undefined ? undefined : conflict(transaction, asked)
      if (error !== undefined) return error
    }
    this.rules = {
      all: rules.all === undefined ? this.rules?.all : { ...this.rules?.all, ...rules.all },
      databases: new Map([...(this.rules?.databases ?? []), ...rules.databases])
    }
    return undefined
  }

  private optionsFor(database: string): Options {
    if (this.rules === undefined) return noOptions
    const own = this.rules.databases.get(database)
    return own === undefined ? (this.rules.all ?? noOptions) : { ...this.rules.all, ...own }
  }
}
