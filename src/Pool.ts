/**
 * Types of a connection pool: its figures, and the errors of a checkout.
 *
 * A pool belongs to one server of a database. Its settings are options of the database's layer.
 *
 * @since 0.1.0
 */
import type { ConnectFailed, DatabaseClosed, PoolExhausted, PoolSelfDeadlock } from "./DatabaseError.js"

/**
 * Error of a checkout, before anything was sent to the server.
 *
 * @see `DatabaseError.StatementError` for all errors of a statement
 * @since 0.1.0
 * @category models
 */
export type CheckoutError = ConnectFailed | PoolExhausted | PoolSelfDeadlock | DatabaseClosed

/**
 * Figures of a pool at one moment, as `Db.status` reports them.
 *
 * @see `Topology.ServerStatus`, which has the figures of a server's pools
 * @see `DatabaseConfig.PoolOptions` for the settings
 * @since 0.1.0
 * @category models
 */
export interface PoolStats {
  /** The number of connections that stay open while they are idle (`minConnections`). */
  readonly min: number
  /** The limit of open connections (`maxConnections`). */
  readonly max: number
  /** The number of connections beyond `max` that may be open while they are in use. */
  readonly maxOverflow: number
  /** The number of open connections. */
  readonly total: number
  /**
   * The number of connections in use. A connection that is being validated, or that runs an effect
   * of the settings, counts as in use until that work ends or times out, even if its caller has
   * stopped waiting.
   */
  readonly active: number
  /** The number of idle connections. */
  readonly idle: number
  /** The number of connects in progress. */
  readonly connecting: number
  /** The number of callers in the wait queue. */
  readonly waiting: number
  /** True while the pool is overloaded and sheds load (`queueTarget`). */
  readonly overloaded: boolean
  /** The last failure to connect, if there was one since the last success. */
  readonly lastConnectFailure: string | undefined
}
