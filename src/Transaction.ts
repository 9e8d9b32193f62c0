/**
 * The options of a transaction: isolation, limits, propagation, retry, and its name for observers.
 *
 * `Db.withTransaction` takes {@link Options}, a unit of work takes {@link Settings} for the
 * transactions that it begins.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import type * as Schedule from "effect/Schedule"
import type { DatabaseError } from "./DatabaseError.js"

/**
 * The isolation level of a transaction.
 *
 * READ UNCOMMITTED is not among them, because PostgreSQL treats it as READ COMMITTED.
 *
 * @see {@link https://www.postgresql.org/docs/current/transaction-iso.html}
 * @see {@link Settings} for the option `isolation`
 * @since 0.1.0
 * @category options
 */
export type Isolation = "read committed" | "repeatable read" | "serializable"

/**
 * The access mode of a transaction.
 *
 * A write in a `read only` transaction fails with `ReadOnlyViolation`.
 *
 * @see {@link Settings} for the option `access`
 * @since 0.1.0
 * @category options
 */
export type Access = "read write" | "read only"

/**
 * The propagation of a transaction: its relation to an open transaction of the same database, if
 * there is one.
 *
 * | propagation | inside of a transaction | without one |
 * |---|---|---|
 * | `nested` | a savepoint | a new transaction |
 * | `required` | joins it | a new transaction |
 * | `requiresNew` | a new transaction, on a connection of its own | a new transaction |
 * | `mandatory` | joins it | fails with `PropagationRefused` |
 * | `supports` | joins it | runs without a transaction |
 * | `notSupported` | runs outside of it | runs without a transaction |
 * | `never` | fails with `PropagationRefused` | runs without a transaction |
 *
 * If a part that has joined ends in rollback after a writer's statement, the transaction fails with
 * `RolledBackAtCommit`. A rollback of a savepoint does not make the transaction fail. The module
 * `UnitOfWork` compares `requiresNew` and `notSupported` with `outside`, `runNew` and others.
 *
 * @see {@link Options} for the option `propagation`
 * @see `UnitOfWork` for the comparison with its functions
 * @since 0.1.0
 * @category options
 */
export type Propagation = "nested" | "required" | "requiresNew" | "mandatory" | "supports" | "notSupported" | "never"

/**
 * The settings of a transaction. A setting that is left out has the value of the database or of the
 * server.
 *
 * A duration is anything that Effect's `Duration` accepts; a plain number is in milliseconds. Zero
 * and infinity mean no limit.
 *
 * @see {@link Options} for a transaction of one database
 * @see `UnitOfWork.Options` for the transactions of a unit of work
 * @since 0.2.0
 * @category options
 */
export interface Settings {
  /**
   * The isolation level. If it is left out, it counts as `"read committed"` for parts that join.
   *
   * @default the server's `default_transaction_isolation`, normally "read committed"
   */
  readonly isolation?: Isolation | undefined
  /**
   * The access mode. If it is left out, it counts as `"read write"` for parts that join.
   *
   * @default the server's `default_transaction_read_only`, normally "read write"
   */
  readonly access?: Access | undefined
  /**
   * Waits at the start for a snapshot with which no serialization failure is possible. It has an
   * effect only with `serializable` and `read only`.
   *
   * @default the server's `default_transaction_deferrable`, normally false
   */
  readonly deferrable?: boolean | undefined
  /**
   * The longest time for each statement; after it the statement fails with `StatementTimeout`.
   *
   * @default the `statementTimeout` of the database
   */
  readonly statementTimeout?: Duration.DurationInput | undefined
  /**
   * The longest time for each lock; after it the statement fails with `LockTimeout`.
   *
   * @default the `lockTimeout` of the database
   */
  readonly lockTimeout?: Duration.DurationInput | undefined
  /**
   * The name in observations, spans and `Db.status`.
   *
   * @default undefined (no name)
   */
  readonly label?: string | undefined
  /**
   * The `application_name` of the session while the transaction lasts, as `pg_stat_activity` and
   * the server's log show it: printable ASCII of at most 63 characters.
   *
   * @default the `applicationName` of the database
   */
  readonly applicationName?: string | undefined
}

/**
 * The options of `Db.withTransaction`.
 *
 * @see {@link Settings} for the settings that it extends
 * @see `UnitOfWork.Options` for several databases
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, type Transaction } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * const careful: Transaction.Options = { isolation: "serializable", retry: true, label: "booking" }
 *
 * export const book = Effect.gen(function*() {
 *   const sql = yield* Db.writer
 *   yield* sql`UPDATE seat SET taken = true WHERE id = 7`
 * }).pipe(Db.withTransaction(careful))
 * ```
 *
 * @since 0.1.0
 * @category options
 */
export interface Options extends Settings {
  /**
   * The relation to an open transaction of the same database.
   *
   * @default "nested"
   */
  readonly propagation?: Propagation | undefined
  /**
   * Runs the whole transaction again, from its start, if all of it is undone and another attempt
   * may succeed: after a serialization failure, a deadlock or a lost connection. `true` follows the
   * `RetryPolicy`.
   *
   * The failures of its statements decide, even if the program has converted them into another error
   * or a defect. An interrupted transaction is not run again. Only the outermost transaction is run
   * again, and only for failures of its own database. Effects in it that are not statements of its
   * database, such as transactions of other databases, are repeated. Inside of a unit of work the
   * unit is run again. A part fails with `OptionsConflict` if the transaction or unit that it joins
   * cannot be run again.
   *
   * @default false
   */
  readonly retry?: boolean | Schedule.Schedule<unknown, DatabaseError> | undefined
}

/**
 * Names of a piece of work for observers of the database.
 *
 * @see `UnitOfWork.Options` for the option `work`
 * @since 0.1.0
 * @category models
 */
export interface WorkLabel {
  /**
   * The name in observations, spans and `Db.status`.
   *
   * @default undefined (no name)
   */
  readonly label?: string | undefined
  /**
   * The `application_name` of its transactions, as `pg_stat_activity` shows it.
   *
   * @default the `applicationName` of the database
   */
  readonly applicationName?: string | undefined
  /**
   * Fields of a comment behind each of its statements, in the format of sqlcommenter.
   *
   * @default undefined (no comment)
   */
  readonly comment?: Readonly<Record<string, string | undefined>> | undefined
  /**
   * True if the comment has a value that differs each time, so that a statement with it is not
   * prepared.
   *
   * @default false
   */
  readonly isUnique?: boolean | undefined
}
