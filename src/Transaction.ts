/**
 * The options of a transaction.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import type * as Schedule from "effect/Schedule"
import type { DatabaseError } from "./DatabaseError.js"

/**
 * The isolation level of a transaction. PostgreSQL treats READ UNCOMMITTED as READ COMMITTED.
 *
 * @since 0.1.0
 * @category models
 */
export type Isolation = "read committed" | "repeatable read" | "serializable"

/**
 * The access mode of a transaction.
 *
 * @since 0.1.0
 * @category models
 */
export type Access = "read write" | "read only"

/**
 * What happens where there is a transaction of the same database already, or none.
 *
 * - `nested` (default): a savepoint inside; without one a new transaction.
 * - `required`: joins it; without one a new transaction.
 * - `requiresNew`: a new transaction, on a connection of its own.
 * - `mandatory`: joins it; without one `PropagationRefused`.
 * - `supports`: joins it; without one no transaction.
 * - `notSupported`: outside of it.
 * - `never`: without a transaction; inside of one `PropagationRefused`.
 *
 * @since 0.1.0
 * @category models
 */
export type Propagation = "nested" | "required" | "requiresNew" | "mandatory" | "supports" | "notSupported" | "never"

/**
 * How a transaction is to be. What is left out is the server's default.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  readonly isolation?: Isolation | undefined
  readonly access?: Access | undefined
  /** Waits for a snapshot that needs no checks; for `serializable` and `read only`. */
  readonly deferrable?: boolean | undefined
  /** Default `"nested"`. */
  readonly propagation?: Propagation | undefined
  /** For every statement inside. */
  readonly statementTimeout?: Duration.DurationInput | undefined
  /** For every lock inside. */
  readonly lockTimeout?: Duration.DurationInput | undefined
  /**
   * Runs the whole again, from its start, where it is undone for certain and may go better: after a serialization failure, a deadlock or
   * a lost connection. `true` follows the `RetryPolicy`. What its statements have failed with decides, also where the work has made an error
   * of its own or a defect of that; an interrupted one is not run again. Only the outermost transaction is run again, for failures of its own
   * database; what it has done elsewhere, another database's own transactions among it, is done again. Inside of a unit of work it is the
   * unit that is run again; where a part joins what cannot be run again that is `OptionsConflict`. Default `false`.
   */
  readonly retry?: boolean | Schedule.Schedule<unknown, DatabaseError> | undefined
  /** A name for observations and spans. */
  readonly label?: string | undefined
  /** What `pg_stat_activity` and the server's log call the session while it lasts. Printable ASCII, at most 63 characters. */
  readonly applicationName?: string | undefined
}
