/**
 * The transactions that a unit of work has begun, the hooks that wait for one, and the affinity of
 * reads to servers.
 */
import type { Role } from "../../Topology.js"
import type { Settings } from "../../Transaction.js"
import type { Connection } from "../connection/connection.js"
import type { StatementFailure } from "../connection/failure.js"
import { type ReadAffinity, TransactionContext } from "../transaction/context.js"
import type { Hook } from "../transaction/hook.js"
import { rollbackLevel } from "../transaction/levelRollback.js"
import type { Origin, Transaction } from "../transaction/transaction.js"
import { type Begin, HooksBeforeBegin, type HooksOfDatabase } from "./hooksBeforeBegin.js"
import { mayBeStored } from "./mayBeStored.js"

const none: ReadonlyArray<never> = []

/** Context whose statements belong to the transactions of a unit. */
export abstract class UnitTransactions extends TransactionContext {
  // created with their first entries, because many requests use no database
  private transactions: Map<Origin, Transaction> | undefined = undefined
  private hooksBeforeBegin: HooksBeforeBegin | undefined = undefined
  private affinities: Map<Origin, ReadAffinity> | undefined = undefined
  private ended = false
  /**
   * True if a part of the work remains after a rollback: because it is stored, may be stored, or is
   * in a transaction around the unit.
   */
  private hasKept = false

  constructor(
    parent: TransactionContext | undefined,
    /** The context around it, if the unit does not see its transactions. */
    protected readonly behind: TransactionContext | undefined
  ) {
    super(parent, "of a unit of work")
  }

  /** True for a nested part, which ends with savepoints. */
  abstract get isNested(): boolean

  /**
   * Returns the settings of a transaction that the unit begins on a database. Without a name, these
   * are the settings for databases that have none of their own.
   */
  abstract settingsFor(database: string | undefined): Settings

  override get isOver(): boolean {
    return this.ended
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

  override open(origin: Origin, begin: Begin): Transaction {
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

  /**
   * Adds a transaction that the unit has begun, with the hooks that have waited for it. After the
   * end of the unit the transaction is rolled back instead.
   */
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
    const waiting = this.hooksBeforeBegin?.of(origin)
    if (waiting === undefined) return
    this.hooksBeforeBegin?.remove(origin)
    for (const hook of waiting.hooks) transaction.addHook(hook)
  }

  /** Returns the unit's transaction on a database, if it has begun. */
  protected ownOf(origin: Origin): Transaction | undefined {
    return this.transactions?.get(origin)
  }

  /** Checks if a transaction is one that the unit has begun. */
  protected isOwn(transaction: Transaction): boolean {
    return this.transactions?.get(transaction.origin) === transaction
  }

  /**
   * Removes the hooks without a transaction on the databases that `isMeant` selects, and returns
   * them.
   */
  protected takeHooksBeforeBegin(
    isMeant: (origin: Origin) => boolean
  ): ReadonlyArray<readonly [Origin, HooksOfDatabase]> {
    const { hooksBeforeBegin: waiting } = this
    if (waiting === undefined) return none
    const all = waiting.list().filter(([origin]) => isMeant(origin))
    for (const [origin] of all) waiting.remove(origin)
    if (waiting.isEmpty) this.hooksBeforeBegin = undefined
    return all
  }

  override takesHooks(): boolean {
    return !this.ended
  }

  /**
   * Adds a hook to the transaction of its database, or to the hooks that wait for a transaction.
   * Returns false after the end of the unit.
   */
  override addHook(origin: Origin, hook: Hook, begin: Begin): boolean {
    if (this.ended) return false
    const own = this.transactions?.get(origin)
    if (own !== undefined) {
      own.addHook(hook)
      return true
    }
    if (!this.isNested && super.addHook(origin, hook, begin)) return true
    this.hooksBeforeBegin ??= new HooksBeforeBegin()
    this.hooksBeforeBegin.add(origin, hook, begin)
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
    if (this.hooksBeforeBegin !== undefined)
      for (const [origin, { begin }] of this.hooksBeforeBegin.list()) this.open(origin, begin)
    return this.begun
  }

  /** The transactions that have begun. */
  get begun(): ReadonlyArray<Transaction> {
    return this.transactions === undefined ? none : [...this.transactions.values()]
  }

  /** Returns the unit's transaction on a database. If it has nothing but hooks, this begins it. */
  beginOwn(origin: Origin): Transaction | undefined {
    const waiting = this.hooksBeforeBegin?.of(origin)
    return this.transactions?.get(origin) ?? (waiting === undefined ? undefined : this.open(origin, waiting.begin))
  }

  /** Returns the database with a name, if the unit has used it. */
  origin(database: string): Origin | undefined {
    const known = [...(this.transactions?.keys() ?? []), ...(this.affinities?.keys() ?? [])]
    return known.find((origin) => origin.database === database)
  }

  /** The failures of statements that may have undone the transactions of the unit. */
  get failures(): ReadonlyArray<StatementFailure> {
    return this.begun.flatMap(({ failures }) => failures)
  }

  /** True after the end of the unit has begun: no further work can be part of it. */
  get hasEnded(): boolean {
    return this.ended
  }

  /** Ends the unit. No transaction can begin in it any more. */
  end(): void {
    this.ended = true
  }

  /**
   * Removes a transaction that ends before the unit, and records if its work may be stored. The
   * next statement on its database begins another transaction.
   */
  forget(transaction: Transaction): void {
    if (this.isOwn(transaction)) this.transactions?.delete(transaction.origin)
    if (!transaction.level.touched) return
    this.readAffinity(transaction.origin).written = true
    this.hasKept ||= mayBeStored(transaction)
  }

  /**
   * Returns the transaction on a database if its COMMIT alone ends the unit: there is no other
   * transaction and no hook.
   */
  onlyOn(origin: Origin): Transaction | undefined {
    const own = this.ownOf(origin)
    const isAlone = this.transactions?.size === 1 && this.hooksBeforeBegin === undefined
    return isAlone && own?.hasHooks === false ? own : undefined
  }

  /** True if no transaction has begun, and no hook waits for one. */
  protected get isUnused(): boolean {
    return this.transactions === undefined && this.hooksBeforeBegin === undefined
  }

  /** True if all work so far is undone. */
  protected get isUndone(): boolean {
    return !this.hasKept && (this.transactions === undefined || this.transactions.size === 0)
  }

  /** True if a part of the work is stored, or may be, or is in a transaction around the unit. */
  get keepsPart(): boolean {
    return this.hasKept || this.begun.some(mayBeStored)
  }
}
