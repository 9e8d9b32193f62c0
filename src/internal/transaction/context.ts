/**
 * The transaction context: the transactions and units of work around a statement. It is the value
 * of `@effect/sql`'s transaction slot while one of them is open.
 *
 * A client of another library uses the first part of the slot as its connection, so that part
 * refuses every statement. Clients of this library find their transactions in it. `SqlResolver`
 * copies the slot, so batched requests of one transaction share it.
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
import { type DatabaseError, ForeignClient, type OptionsConflict, toSqlError } from "../../DatabaseError.js"
import type { Role } from "../../Topology.js"
import type { Options, WorkLabel } from "../../Transaction.js"
import { FifoLock } from "../concurrency/fifoLock.js"
import type { Connection as DbConnection } from "../connection/connection.js"
import type { SchemaScopes } from "../sql/schemaScopes.js"
import type { Hook } from "./hook.js"
import type { JoinedPart } from "./joinedPart.js"
import type { SettingsByDatabase } from "./settingsByDatabase.js"
import type { Origin, Transaction } from "./transaction.js"

/** Schedule of the attempts of a transaction or unit; `true` is that of the policy. */
export type Retry = true | Schedule.Schedule<unknown, DatabaseError>

/** Answer to the settings that a part requires: a refusal, or the function that takes them. */
export type Demanded = OptionsConflict | (() => void)

/** Affinity of the reads of a unit of work to the servers of a database. */
export interface ReadAffinity {
  /** The name of the server that has served its reads. */
  reader: string | undefined
  /** True after the unit has committed a write, which a replica may not have yet. */
  written: boolean
}

const none: ReadonlyArray<never> = []
const takeNothing = () => {}
const blank: readonly unknown[] = [undefined, 0]

/**
 * Creates the value of the slot, as a copy instead of a literal. Once most of the arrays of a
 * literal have outlived a collection, V8 allocates all of them in the old generation, where they
 * keep a whole request in memory until the next full collection.
 */
const makeSlot = (context: TransactionContext): readonly [TransactionContext, number] => {
  const pair = blank.slice()
  pair[0] = context
  // an array that is not a literal has no type for each element
  return pair as unknown as readonly [TransactionContext, number]
}

/**
 * Transaction context of a fiber. A subclass adds a transaction, a unit of work or scopes to the
 * context around it, its `parent`, which answers all methods that the subclass does not override.
 */
export abstract class TransactionContext implements Connection {
  /** The value of the slot. Each context has one object, because `SqlResolver` batches by it. */
  readonly slot: readonly [TransactionContext, number] = makeSlot(this)

  constructor(
    readonly parent: TransactionContext | undefined,
    /** The database of the connection that a client of another library would get. */
    readonly owner: string
  ) {}

  /**
   * Returns the innermost transaction of a database that takes writes; `"none"` if the work is
   * isolated from all of them on purpose.
   */
  find(origin: Origin): Transaction | "none" | undefined {
    return this.parent?.find(origin)
  }

  /**
   * Returns the transaction that a statement or hook of a database belongs to, as {@link find}. A
   * unit of work records that it is used, and a nested part sets its savepoint in the transaction.
   */
  enlist(origin: Origin, kind: Role): Transaction | "none" | undefined {
    return this.parent?.enlist(origin, kind)
  }

  /** Begins a transaction in the unit of work around, if there is one. */
  open(origin: Origin, begin: (options: Options) => Transaction): Transaction | undefined {
    return this.parent?.open(origin, begin)
  }

  /**
   * Adds a hook to the unit of work around, for a transaction that has not begun; returns false if
   * there is no unit.
   */
  addHook(origin: Origin, hook: Hook, begin: (options: Options) => Transaction): boolean {
    return this.parent?.addHook(origin, hook, begin) ?? false
  }

  /** Checks whether the unit of work around would take a hook. */
  takesHooks(origin: Origin): boolean {
    return this.parent?.takesHooks(origin) ?? false
  }

  /** The lock of the nested parts that run concurrently in the context. */
  get siblingLock(): FifoLock {
    return this.parent?.siblingLock ?? new FifoLock()
  }

  /** Returns the labels of the work, if it has any. */
  work(fiber: Fiber.RuntimeFiber<unknown, unknown>): WorkLabel | undefined {
    return this.parent?.work(fiber)
  }

  /**
   * Returns the innermost transaction of a database, also if the work is isolated from it on
   * purpose.
   */
  around(origin: Origin): Transaction | undefined {
    return this.parent?.around(origin)
  }

  /**
   * The innermost transaction of any database that ends by itself, unless the work is isolated from
   * it on purpose.
   */
  get transaction(): Transaction | undefined {
    return this.parent?.transaction
  }

  /** Returns the innermost part that has joined a transaction since it began. */
  part(transaction: Transaction): JoinedPart | undefined {
    return this.parent?.part(transaction)
  }

  /**
   * Requests, for a part, further attempts of the outermost transaction or of the unit of work.
   * Returns false if that cannot be run again.
   */
  takeRetry(transaction: Transaction | undefined, requested: Retry): boolean {
    return this.parent?.takeRetry(transaction, requested) ?? false
  }

  /**
   * Checks the settings that a part requires of the open transactions and of those that begin
   * later. A nested part, which does not join, has limits of its own.
   */
  demand(settings: SettingsByDatabase, joins: boolean): Demanded {
    return this.parent?.demand(settings, joins) ?? takeNothing
  }

  /**
   * Checks whether writes to a database of this name belong to a transaction that `withTransaction`
   * has begun.
   */
  hasOpen(database: string): boolean {
    return this.parent?.hasOpen(database) ?? false
  }

  /** Defers an action until the work is stored, or may be; returns false if nothing is open. */
  whenStored(action: () => void): boolean {
    return this.parent?.whenStored(action) ?? false
  }

  /**
   * True after the end of the transaction or unit. A fiber that outlives the end still has the
   * context.
   */
  get isOver(): boolean {
    return this.parent?.isOver ?? false
  }

  /**
   * Returns the read affinity of the unit of work to the servers of a database, if there is a unit.
   */
  readAffinity(origin: Origin): ReadAffinity | undefined {
    return this.parent?.readAffinity(origin)
  }

  /** The schema scopes of the fiber that has set the slot. */
  get scopes(): SchemaScopes | undefined {
    return this.parent?.scopes
  }

  /** The causal session of the fiber that has set the slot. */
  get session(): Session | undefined {
    return this.parent?.session
  }

  /** Returns the value of the slot for another causal session. */
  inSession(session: Session): TransactionContext["slot"] {
    return new ScopedContext(this, undefined, session).slot
  }

  /** Returns the connections of a database that this context and the contexts around it hold. */
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
    // a client of another library rolls back to its savepoint also if that was refused, and dies if
    // the rollback fails
    return sql.startsWith("ROLLBACK") ? Effect.succeed(none) : this.execute()
  }

  executeStream(): Stream.Stream<never, SqlError> {
    return Stream.fromEffect(this.execute())
  }
}

/** Context with schema scopes or a causal session of its own. */
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

/** Returns the transaction context of a context, if the slot has one. */
export const contextOf = (context: Context.Context<never>): TransactionContext | undefined => {
  const slot: unknown = context.unsafeMap.get(TransactionConnection.key)
  return Array.isArray(slot) && slot[0] instanceof TransactionContext ? slot[0] : undefined
}

/** Returns the transaction context of a fiber, if the slot has one. */
export const currentContext = (fiber: Fiber.RuntimeFiber<unknown, unknown>): TransactionContext | undefined =>
  contextOf(fiber.currentContext)
