/** The failures of callers that must not be queued, and of waiters that get no connection. */

import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import type { CheckoutFailure, PlainFailure } from "../connection/failure.js"
import type { Caller } from "./caller.js"
import type { ConnectionOpener } from "./connectionOpener.js"
import { exhaustedFailure } from "./exhaustedFailure.js"
import type { Checkout } from "./leakDetection.js"
import { maxTotal } from "./poolDependencies.js"
import type { PoolState } from "./poolState.js"
import { poolStats } from "./poolStats.js"

/** Builds the failure for a caller of a pool that is closed. */
export const closedFailure = ({ location }: PoolState): CheckoutFailure => ({ _tag: "DatabaseClosed", ...location })

/** Returns the failure for a caller that must not be queued, or `undefined`. */
export const rejectionOf = (
  pool: PoolState,
  opener: ConnectionOpener,
  holding: ReadonlyArray<Connection>,
  caller: Caller | undefined,
  now: number
): CheckoutFailure | undefined => {
  if (pool.options.pool.strategy === "assertSingle" && caller !== undefined && soleCheckout(pool) !== undefined) {
    return exhausted(pool, opener, "single", now)
  }
  if (wouldDeadlock(pool, holding))
    return { _tag: "PoolSelfDeadlock", ...pool.location, maxConnections: maxTotal(pool.options.pool) }
  if ((pool.isPaused || opener.isInOutage) && !pool.options.outageWaiters.hasRoom)
    return exhausted(pool, opener, pool.isPaused ? "paused" : "outage", now)
  return pool.waiters.rejectsArrival(now) ? exhausted(pool, opener, "shed", now) : undefined
}

/** Reports that a caller gets no connection, and returns its failure. `since` is the beginning of its wait. */
export const exhausted = (
  pool: PoolState,
  opener: ConnectionOpener,
  reason: PlainFailure<"PoolExhausted">["reason"],
  since: number
): PlainFailure<"PoolExhausted"> => {
  const { active, idle, lastConnectFailure, total, waiting } = poolStats(pool, opener)
  const waited = clock.now() - since
  pool.events.exhausted(reason, waited)
  return exhaustedFailure(
    { ...pool.location, reason, waitedMillis: waited, total, active, idle, waiting },
    opener.pendingConnects.progress,
    lastConnectFailure,
    reason === "single" ? soleCheckout(pool) : pool.leakDetection?.oldest
  )
}

/**
 * Checks if all connections are held by callers that wait for another one, including the caller that
 * holds `holding`.
 */
const wouldDeadlock = ({ connections, options, waiters }: PoolState, holding: ReadonlyArray<Connection>): boolean => {
  const { all, idle } = connections
  if (holding.length === 0 || idle.length > 0 || all.size < maxTotal(options.pool)) return false
  const stuck = new Set(holding)
  for (const waiter of waiters) for (const held of waiter.holding) stuck.add(held)
  for (const connection of all) if (!stuck.has(connection)) return false
  return true
}

/** Returns the checkout in progress, else the first waiter: `assertSingle` allows only one caller at a time. */
const soleCheckout = ({ leakDetection, waiters }: PoolState): Checkout | undefined => {
  const checkout = leakDetection?.oldest
  if (checkout?.caller !== undefined) return checkout
  for (const waiter of waiters) if (waiter.caller !== undefined) return waiter
  return undefined
}
