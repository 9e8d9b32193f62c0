/** The figures of a pool at one moment. */

import type { PoolStats } from "../../Pool.js"
import type { ConnectionOpener } from "./connectionOpener.js"
import type { PoolState } from "./poolState.js"

/** Returns the figures of this moment. */
export const poolStats = ({ connections, options, waiters }: PoolState, opener: ConnectionOpener): PoolStats => {
  const { maxConnections, maxOverflow, minConnections } = options.pool
  const idle = connections.idle.length
  return {
    min: minConnections,
    max: maxConnections,
    maxOverflow,
    total: connections.all.size,
    // a closing connection counts in `total`, but not as active, because it has no caller
    active: connections.openCount - idle,
    idle,
    connecting: opener.pendingConnects.size,
    waiting: waiters.size,
    overloaded: waiters.isOverloaded,
    lastConnectFailure: opener.backoff.lastFailure?.error.message
  }
}
