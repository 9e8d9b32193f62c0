/** The state that the parts of a pool share. */

import type { ErrorLocation } from "../connection/statementFailure.js"
import type { OnCheckout } from "./caller.js"
import type { Connections } from "./connections.js"
import type { PoolEvents } from "./events.js"
import type { LeakDetection } from "./leakDetection.js"
import type { RunningTasks } from "./lifecycleTasks.js"
import type { PoolDependencies } from "./poolDependencies.js"
import type { Validation } from "./validation.js"
import type { WaitQueue } from "./waitQueue.js"

/** State of a pool. */
export interface PoolState {
  readonly options: PoolDependencies
  readonly location: ErrorLocation
  readonly connections: Connections
  readonly waiters: WaitQueue<OnCheckout>
  readonly tasks: RunningTasks
  readonly validation: Validation
  /** The open checkouts, if a setting needs them. */
  readonly leakDetection: LeakDetection | undefined
  readonly events: PoolEvents
  /** True while checkouts are held back. */
  readonly isPaused: boolean
}
