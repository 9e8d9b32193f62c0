/**
 * The figures of a pool, and the failures of a checkout.
 *
 * @since 0.1.0
 */
import type { ConnectFailed, DatabaseClosed, PoolExhausted, PoolSelfDeadlock } from "./DatabaseError.js"

/**
 * Why a checkout failed. Nothing was sent in any of them.
 *
 * @since 0.1.0
 * @category models
 */
export type CheckoutError = ConnectFailed | PoolExhausted | PoolSelfDeadlock | DatabaseClosed

/**
 * The figures of a pool at one moment.
 *
 * @since 0.1.0
 * @category models
 */
export interface PoolStats {
  /** How many connections are kept open though they are idle. */
  readonly min: number
  readonly max: number
  /** How many there may be beyond `max`, for as long as they are in use. */
  readonly maxOverflow: number
  readonly total: number
  /**
   * Those in use. One that is asked for a sign of life, or has something done with it as the settings ask for, counts as in use, also when
   * the caller has left or has his answer: for a second at most, or `connectTimeout`.
   */
  readonly active: number
  readonly idle: number
  readonly connecting: number
  readonly waiting: number
  /** Whether those who wait for longer than `queueTarget` are sent away, because more come than can be served. */
  readonly overloaded: boolean
  /** The last failure to connect, if there was one since the last success. */
  readonly lastConnectFailure: string | undefined
}
