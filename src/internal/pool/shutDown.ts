/** The end of a pool. */

import type { CheckoutFailure } from "../connection/failure.js"
import type { ConnectionOpener } from "./connectionOpener.js"
import type { PoolState } from "./poolState.js"

/**
 * Stops the work of a pool: prevents further connects, fails the waiters, and closes the
 * connections that no caller holds.
 */
export const shutDown = (pool: PoolState, opener: ConnectionOpener, failure: CheckoutFailure): void => {
  opener.stop()
  pool.connections.stop()
  pool.leakDetection?.stop()
  for (const waiter of pool.waiters.clear()) waiter.callback(failure, undefined)
  pool.tasks.shutDown()
  pool.connections.endIdle()
}
