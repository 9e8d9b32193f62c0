/** The last failure to connect to a server, and the pause before the next attempt. */

import * as clock from "../concurrency/clock.js"
import { mayPass } from "../connection/connectFailure.js"
import type { ConnectFailure } from "../connection/connection.js"

/**
 * Pauses before the next attempt, in ms; each one is twice as long as the one before. If
 * connections are open (`spare`), callers can do without a new one, so the pause may be long. If
 * none is open (`needed`), one attempt is made for all callers that wait, so the next one follows
 * soon.
 */
const pauses = { shortest: 100, longest: { spare: 1000, needed: 250 } }

/**
 * Pause of load shedding after an outage, in ms: during and right after it, the queue does not show
 * the throughput of the pool.
 */
export const initialPause = 1000

export class ConnectBackoff {
  /** The last failure to connect; `undefined` if there was none since the last success. */
  lastFailure: ConnectFailure | undefined
  /**
   * True if the server accepts no more connections, so that waiters depend on those that are open.
   */
  isRejecting = false
  private failures = 0
  private timer: clock.Timer | undefined

  constructor(private readonly retry: () => void) {}

  /** Checks if the pause before the next attempt is running. */
  get isPausing(): boolean {
    return this.timer !== undefined
  }

  /** Checks if the server is unavailable for a reason that may pass by itself. */
  get isAway(): boolean {
    return this.lastFailure !== undefined && mayPass(this.lastFailure)
  }

  /**
   * Records a failed connect and begins the pause, unless it is running. `isImmediate` marks a
   * failure within the expected connect time, for example of a server that rejects the connection.
   */
  onFailure(failure: ConnectFailure, isImmediate: boolean, need: keyof typeof pauses.longest): void {
    this.lastFailure = failure
    this.isRejecting = isImmediate || (failure.reason !== "unreachable" && failure.reason !== "unresponsive")
    if (this.timer !== undefined) return
    const pause = Math.min(pauses.shortest * 2 ** this.failures++, pauses.longest[need])
    this.timer = clock.timer(pause, () => {
      this.timer = undefined
      this.isRejecting = false
      this.retry()
    })
    this.timer.unref()
  }

  /** Records a successful connect: the next pause is the shortest again. */
  onSuccess(): void {
    this.lastFailure = undefined
    this.isRejecting = false
    this.failures = 0
  }

  stop(): void {
    clock.clear(this.timer)
  }
}
