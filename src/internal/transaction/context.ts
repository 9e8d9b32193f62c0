/**
 * The transaction context: the transactions and units of work around a statement. It is the first
 * element of the pair in `@effect/sql`'s transaction slot.
 *
 * A client of another library uses this element as its connection, so a context refuses all
 * statements of such a client, except ROLLBACK, which it ignores. Clients of this library find
 * their transactions in it. `SqlResolver` copies the slot, so batched requests of one transaction
 * share it.
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

/** Schedule for retries of a transaction or unit; `true` means the schedule of the retry policy. */
export type Retry = true | Schedule.Schedule<unknown, DatabaseError>

/**
 * Result of {@link TransactionContext.demand}: the conflict, or a function that applies the
 * settings.
 */
export type Demanded = OptionsConflict | (() => void)

/** Choice of servers for the reads of a unit of work on one database. */
export interface ReadAffinity {
  /** The name of the server that has executed the earlier reads. */
  reader: string | undefined
  /** True after the unit may have stored a write, which a replica may not have yet. */
  written: boolean
}

const none: ReadonlyArray<never> = []
const takeNothing = () => {}
const blank: readonly unknown[] = [undefined, 0]

/**
 * Creates the value of the slot. It is a copy and not a literal, because it lives as long as a
 * request (see "Performance rules" in CONTRIBUTING.md).
 */
const makeSlot = (context: TransactionContext): readonly [TransactionContext, number] => {
  const pair = blank.slice()
  pair[0] = context
  // the cast: the type of a copied array does not distinguish its elements
  return pair as unknown as readonly [TransactionContext, number]
}

/**
 * Transaction context of a fiber. A subclass adds a transaction, a unit of work or scopes to the
 * context around it, which is its `parent`. A method that the subclass does not override calls the
 * same method of the parent.
 */
export abstract class TransactionContext implements Connection {
  /** The value of the slot. Each context has one object, because `SqlResolver` batches by it. */
  readonly slot: readonly [TransactionContext, number] = makeSlot(this)

  constructor(
    readonly parent: TransactionContext | undefined,
    /** The database that is named in the error of a client of another library. */
    readonly owner: string
  ) {}

  /**
   * Returns the innermost transaction that a writer's statement on a database would run in;
   * `"none"` if the work is isolated from all of them on purpose.
   */
  find(origin: Origin): Transaction | "none" | undefined {
    return this.parent?.find(origin)
  }

  /**
   * Returns the transaction for a statement or hook on a database, as {@link find}, and prepares
   * it: a unit of work records that a transaction around it is used, and a nested part begins its
   * savepoint.
   */
  enlist(origin: Origin, kind: Role): Transaction | "none" | undefined {
    return this.parent?.enlist(origin, kind)
  }

  /**
   * Begins a transaction in the unit of work around and returns it, or returns `undefined` if there
   * is no unit. A nested part returns its savepoint in the transaction.
   */
  open(origin: Origin, begin: (options: Options) => Transaction): Transaction | undefined {
    return this.parent?.open(origin, begin)
  }

  /**
   * Adds a hook to the unit of work around, for a transaction that has not begun. Returns false if
   * no unit takes it.
   */
  addHook(origin: Origin, hook: Hook, begin: (options: Options) => Transaction): boolean {
    return this.parent?.addHook(origin, hook, begin) ?? false
  }

  /** Checks whether the unit of work around would take a hook. */
  takesHooks(origin: Origin): boolean {
    return this.parent?.takesHooks(origin) ?? false
  }

  /** The lock by which concurrent nested parts take turns. */
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
   * The innermost transaction that `withTransaction` has begun, on any database, unless the work is
   * isolated from it on purpose.
   */
  get transaction(): Transaction | undefined {
    return this.parent?.transaction
  }

  /**
   * Returns the innermost part around the work that has joined this transaction, if there is one.
   */
  part(transaction: Transaction): JoinedPart | undefined {
    return this.parent?.part(transaction)
  }

  /**
   * Requests retries for a part: of the outermost transaction, or of the unit of work if
   * `transaction` is `undefined`. Returns false if that cannot be run again.
   */
  takeRetry(transaction: Transaction | undefined, requested: Retry): boolean {
    return this.parent?.takeRetry(transaction, requested) ?? false
  }

  /**
   * Checks the settings of a part against the open transactions and those that begin later. If
   * `joins` is false, the part is nested, and its timeouts and application name are those of its
   * savepoints.
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

  /**
   * Defers an action until the work is stored, or may be. Returns false if the action must run at
   * once.
   */
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

  /** Returns the value of the slot for this context in another causal session. */
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
    // a client of another library rolls back to its savepoint even if the savepoint was refused,
    // and dies if the rollback fails
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

/** Returns the transaction context in the slot of a context, if there is one. */
export const contextOf = (context: Context.Context<never>): TransactionContext | undefined => {
  const slot: unknown = context.unsafeMap.get(TransactionConnection.key)
  return Array.isArray(slot) && slot[0] instanceof TransactionContext ? slot[0] : undefined
}

/** Returns the transaction context in the slot of a fiber, if there is one. */
export const currentContext = (fiber: Fiber.RuntimeFiber<unknown, unknown>): TransactionContext | undefined =>
  contextOf(fiber.currentContext)
