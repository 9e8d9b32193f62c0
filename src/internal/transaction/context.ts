/**
 * What the ecosystem's transaction slot holds while one of our transactions or units of work is open.
 *
 * A client that is not ours takes the slot's first part for its own connection, so that part refuses every statement. Our clients look
 * themselves up in it. `SqlResolver` copies the slot, so batched requests of one transaction share it.
 */
import { TransactionConnection } from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import type { Session } from "../../Consistency.js"
import { type DatabaseError, ForeignClient, OptionsConflict, toSqlError } from "../../DatabaseError.js"
import type { Role } from "../../Topology.js"
import type { Options, WorkLabel } from "../../Transaction.js"
import { FifoLock } from "../concurrency/fifoLock.js"
import type { Connection as DbConnection } from "../connection/connection.js"
import type { SchemaScopes } from "../sql/schemaScopes.js"
import type { Hook } from "./hooks.js"
import type { JoinedPart } from "./joinedPart.js"
import { optionsConflict, raiseIsolation } from "./propagation.js"
import { type SettingsByDatabase, settingsOf, withoutDatabase } from "./settingsByDatabase.js"
import type { Origin, Transaction } from "./transaction.js"

/** When a whole is run again. */
export type Retry = true | Schedule.Schedule<unknown, DatabaseError>

/** The answer to what a part asks for: its refusal, or what takes it. */
export type Demanded = OptionsConflict | (() => void)

const takeNothing = () => {}

const blank: readonly unknown[] = [undefined, 0]

/**
 * A copy instead of a literal: once most of what an array's literal makes has outlived a collection, V8 makes all of it among what is old,
 * where it keeps a whole request until the next full collection, long after its end.
 */
const slotOf = (ambient: TransactionContext): readonly [TransactionContext, number] => {
  const pair = blank.slice()
  pair[0] = ambient
  // an array that is not written as a literal has no type for each place
  return pair as unknown as readonly [TransactionContext, number]
}

const whenStored = (action: () => void): Hook => ({ kind: "whenStored", order: 0, run: () => Effect.sync(action) })

/** The open transactions that a piece of work sees. */
export abstract class TransactionContext implements Connection {
  /** What is put into the slot: one object for one ambient, so that batches know each other. */
  readonly slot: readonly [TransactionContext, number] = slotOf(this)

  constructor(
    readonly parent: TransactionContext | undefined,
    /** Whose connection somebody else's client would get. */
    readonly owner: string
  ) {}

  /** Returns the innermost transaction of a database; `"none"` if work is outside of all on purpose. */
  find(origin: Origin, kind: Role): Transaction | "none" | undefined {
    return this.parent?.find(origin, kind)
  }

  /**
   * Returns the transaction that a statement or hook of a database belongs to, as {@link find}. A unit of
   * work notes that it is used, and a nested part sets its savepoint in it.
   */
  enlist(origin: Origin, kind: Role): Transaction | "none" | undefined {
    return this.parent?.enlist(origin, kind)
  }

  /** Begins a transaction in the unit of work that this is part of, if there is one. */
  open(origin: Origin, begin: (options: Options) => Transaction): Transaction | undefined {
    return this.parent?.open(origin, begin)
  }

  /** Leaves a hook to the unit of work that this is part of, for a transaction that is not begun yet; tells whether it took it. */
  addHook(origin: Origin, hook: Hook, begin: (options: Options) => Transaction): boolean {
    return this.parent?.addHook(origin, hook, begin) ?? false
  }

  /** Checks whether the unit of work that this is part of would take a hook. */
  takesHooks(origin: Origin): boolean {
    return this.parent?.takesHooks(origin) ?? false
  }

  /** The lock of the nested parts that run side by side in it. */
  get siblingLock(): FifoLock {
    return this.parent?.siblingLock ?? new FifoLock()
  }

  /** What the work is for, if anybody has said so. */
  work(fiber: Fiber.RuntimeFiber<unknown, unknown>): WorkLabel | undefined {
    return this.parent?.work(fiber)
  }

  /** The innermost transaction of a database, whether work was sent outside of it or not. */
  around(origin: Origin): Transaction | undefined {
    return this.parent?.around(origin)
  }

  /** The innermost transaction that has an end of its own, of any database, where work was not sent outside of it. */
  get transaction(): Transaction | undefined {
    return this.parent?.transaction
  }

  /** The innermost part that has joined a transaction, between here and where that was begun. */
  part(transaction: Transaction): JoinedPart | undefined {
    return this.parent?.part(transaction)
  }

  /**
   * Has the whole that an outermost transaction belongs to, or the unit of work, be run again where a part of it asks for that; tells
   * whether it can be.
   */
  takeRetry(transaction: Transaction | undefined, asked: Retry): boolean {
    return this.parent?.takeRetry(transaction, asked) ?? false
  }

  /**
   * Checks what a part asks for, of the transactions that are open here and of those that are begun from now on. A part that is nested, and
   * does not join, has limits of its own.
   */
  demand(rules: SettingsByDatabase, joins: boolean): Demanded {
    return this.parent?.demand(rules, joins) ?? takeNothing
  }

  /** Tells whether writes to a database of this name belong to a transaction that was begun by hand. */
  hasOpen(database: string): boolean {
    return this.parent?.hasOpen(database) ?? false
  }

  /** Leaves something to be done to the time when what is done here is stored, or may be; tells whether it was taken. */
  whenStored(action: () => void): boolean {
    return this.parent?.whenStored(action) ?? false
  }

  /** Tells whether the transaction or unit here has ended, as a fiber may find that outlives it. */
  get isOver(): boolean {
    return this.parent?.isOver ?? false
  }

  /** Returns the read affinity of the unit of work to the servers of a database, if there is a unit. */
  readAffinity(origin: Origin): ReadAffinity | undefined {
    return this.parent?.readAffinity(origin)
  }

  /** The schema scopes of who has put this, or what is around it, into the slot. */
  get scopes(): SchemaScopes | undefined {
    return this.parent?.scopes
  }

  /** The session of who has put this, or what is around it, into the slot. */
  get session(): Session | undefined {
    return this.parent?.session
  }

  /** What is put into the slot by who is in another session. */
  inSession(session: Session): TransactionContext["slot"] {
    return new ScopedContext(this, undefined, session).slot
  }

  /** The connections of a database that this piece of work holds, all around it. */
  held(origin: Origin): ReadonlyArray<DbConnection> {
    return this.parent?.held(origin) ?? none
  }

  execute(): Effect.Effect<never, SqlError> {
    return Effect.suspend(() => Effect.fail(toSqlError(new ForeignClient({ database: this.owner, server: "" }))))
  }

  executeRaw(): Effect.Effect<never, SqlError> {
    return this.execute()
  }

  executeValues(): Effect.Effect<never, SqlError> {
    return this.execute()
  }

  executeUnprepared(sql: string): Effect.Effect<ReadonlyArray<never>, SqlError> {
    // another client that was refused its savepoint goes back to it all the same, and takes a refusal of that for a defect
    return sql.startsWith("ROLLBACK") ? Effect.succeed(none) : this.execute()
  }

  executeStream(): Stream.Stream<never, SqlError> {
    return Stream.fromEffect(this.execute())
  }
}

/** Affinity of the reads of a unit of work to the servers of a database. */
export interface ReadAffinity {
  /** The name of the server that has served its reads. */
  reader: string | undefined
  /** Whether the unit has committed a write already, which a replica may not have yet. */
  written: boolean
}

const none: ReadonlyArray<never> = []

/** A ambient with one transaction more. */
export class OpenContext extends TransactionContext {
  private nestedLock: FifoLock | undefined

  constructor(
    parent: TransactionContext | undefined,
    private readonly own: Transaction
  ) {
    super(parent, own.origin.database)
  }

  override get transaction(): Transaction {
    return this.own
  }

  override get siblingLock(): FifoLock {
    this.nestedLock ??= new FifoLock()
    return this.nestedLock
  }

  override find(origin: Origin, kind: Role): Transaction | "none" | undefined {
    return this.serves(origin, kind) ? this.own : super.find(origin, kind)
  }

  override enlist(origin: Origin, kind: Role): Transaction | "none" | undefined {
    return this.serves(origin, kind) ? this.own : super.enlist(origin, kind)
  }

  private serves(origin: Origin, kind: Role): boolean {
    const { own } = this
    // a level nested in a writer's transaction holds its lock, so a writer's statement belongs there, too
    return own.origin === origin && (own.kind === kind || (kind === "writer" && own.base === "writer"))
  }

  override part(transaction: Transaction): JoinedPart | undefined {
    return transaction === this.own ? undefined : super.part(transaction)
  }

  override demand(rules: SettingsByDatabase, joins: boolean): Demanded {
    const { own } = this
    if (own.base !== "writer") return super.demand(rules, joins)
    const asked = settingsOf(rules, own.origin.database)
    const error = optionsConflict(own, asked, joins)
    if (error !== undefined) return error
    const takeAround = super.demand(withoutDatabase(rules, own.origin.database), joins)
    if (takeAround instanceof OptionsConflict) return takeAround
    return () => {
      raiseIsolation(own, asked, joins)
      takeAround()
    }
  }

  override hasOpen(database: string): boolean {
    return (this.own.base === "writer" && this.own.origin.database === database) || super.hasOpen(database)
  }

  override whenStored(action: () => void): boolean {
    // a savepoint that has ended has left its work to what is around it
    if (this.isOver) return this.own.outer !== undefined && super.whenStored(action)
    this.own.addHook(whenStored(action))
    return true
  }

  override get isOver(): boolean {
    return this.own.level.state !== "open"
  }

  override takeRetry(transaction: Transaction | undefined, asked: Retry): boolean {
    const { retry = false } = this.own.options
    return transaction === this.own ? retry !== false : super.takeRetry(transaction, asked)
  }

  override held(origin: Origin): ReadonlyArray<DbConnection> {
    const others = super.held(origin)
    return this.transaction.origin === origin ? [...this.transaction.level.held, ...others] : others
  }

  override around(origin: Origin): Transaction | undefined {
    return this.transaction.origin === origin ? this.transaction : super.around(origin)
  }
}

/** A ambient for who is in schema scopes, or in a session. */
export class ScopedContext extends TransactionContext {
  constructor(
    parent: TransactionContext,
    private readonly ownScopes: SchemaScopes | undefined,
    private readonly ownSession: Session | undefined
  ) {
    super(parent, parent.owner)
  }

  override get scopes(): SchemaScopes | undefined {
    return this.ownScopes ?? super.scopes
  }

  override get session(): Session | undefined {
    return this.ownSession ?? super.session
  }
}

/** A context in which one database has no transaction, and no unit of work opens one. */
export class OutsideContext extends TransactionContext {
  constructor(
    parent: TransactionContext | undefined,
    private readonly origin: Origin
  ) {
    super(parent, origin.database)
  }

  override find(origin: Origin, kind: Role): Transaction | "none" | undefined {
    return origin === this.origin ? "none" : super.find(origin, kind)
  }

  override enlist(origin: Origin, kind: Role): Transaction | "none" | undefined {
    return origin === this.origin ? "none" : super.enlist(origin, kind)
  }

  override get transaction(): Transaction | undefined {
    const around = super.transaction
    return around?.origin === this.origin ? undefined : around
  }

  override whenStored(action: () => void): boolean {
    // what it is about may be stored already, or with what is around
    super.whenStored(action)
    return false
  }

  override open(origin: Origin, begin: (options: Options) => Transaction): Transaction | undefined {
    return origin === this.origin ? undefined : super.open(origin, begin)
  }

  override addHook(origin: Origin, hook: Hook, begin: (options: Options) => Transaction): boolean {
    return origin !== this.origin && super.addHook(origin, hook, begin)
  }

  override takesHooks(origin: Origin): boolean {
    return origin !== this.origin && super.takesHooks(origin)
  }

  override demand(rules: SettingsByDatabase, joins: boolean): Demanded {
    return super.demand(withoutDatabase(rules, this.origin.database), joins)
  }

  override hasOpen(database: string): boolean {
    return database !== this.origin.database && super.hasOpen(database)
  }
}

/** The ambient of a context, if the slot is ours. */
export const contextOf = (context: Context.Context<never>): TransactionContext | undefined => {
  const slot: unknown = context.unsafeMap.get(TransactionConnection.key)
  return Array.isArray(slot) && slot[0] instanceof TransactionContext ? slot[0] : undefined
}

/** The ambient of a fiber, if the slot is ours. */
export const currentContext = (fiber: Fiber.RuntimeFiber<unknown, unknown>): TransactionContext | undefined =>
  contextOf(fiber.currentContext)
