/** The dependencies of a pool: the settings of its database, and the objects that it works with. */

import type { PoolConfig, ServerConfig, SessionConfig } from "../../DatabaseConfig.js"
import type { Observer } from "../../Observation.js"
import type { HostLocator } from "../connection/connect.js"
import type { CredentialSource } from "../connection/credentials.js"
import type { MakePoolMetrics, PoolMetrics } from "../observability/poolMetrics.js"
import type { ConnectionTasks } from "./lifecycleTasks.js"
import type { OutageWaiters } from "./outageWaiters.js"

/** Dependencies of a pool. */
export interface PoolDependencies {
  readonly database: string
  readonly server: ServerConfig
  readonly pool: PoolConfig
  readonly session: SessionConfig
  readonly credentials: CredentialSource
  readonly tasks: ConnectionTasks
  /** True if the sessions refuse writes. */
  readonly readOnly: boolean
  readonly observer: Observer
  /** Makes the metrics of the pool. */
  readonly makeMetrics: MakePoolMetrics
  /** @internal The callers of the database that wait while a server is away. */
  readonly outageWaiters: OutageWaiters
  /** Locates the host to connect to, if the server has several hosts and a role. */
  readonly locator?: HostLocator | undefined
  /** Checks if `minConnections` applies: not while the server is known to have another role. */
  readonly isWarm?: (() => boolean) | undefined
  /**
   * Called after each successful connect, and after each failed one; not if the server only rejects
   * further connections while others are open.
   */
  readonly onHealth?: ((healthy: boolean, message: string) => void) | undefined
}

/** Returns the limit for the number of open connections, overflow included. */
export const maxTotal = ({ maxConnections, maxOverflow }: PoolConfig): number => maxConnections + maxOverflow

/** Makes the metrics of a pool with these dependencies. */
export const makeMetrics = ({ database, makeMetrics, pool, readOnly, server }: PoolDependencies): PoolMetrics =>
  makeMetrics({
    database,
    purpose: readOnly ? "reads" : "writes",
    server,
    idleMin: pool.minConnections,
    idleMax: pool.strategy === "none" ? 0 : pool.maxConnections,
    max: maxTotal(pool)
  })
