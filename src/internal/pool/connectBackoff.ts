/** The last failure to connect to a server, and the pause before the next attempt. */

import * as clock from "../concurrency/clock.js"
import { mayPass } from "../connection/connectFailure.js"
import type { ConnectFailure } from "../connection/connection.js"

/**
 * The shortest and the longest pause before the next attempt, in ms. Each pause is twice as long as
 * the one before, up to the longest. If connections are open (`spare`), callers can use these, so
 * the pause may be long. If none is open (`needed`), all waiters depend on the next attempt, so the
 * pause is short.
 */
const pauses = { shortest: 100, longest: { spare: 1000, needed: 250 } }

/**
 * Pause of load shedding after an outage, in ms. During an outage and right after it, the length of
 * the queue does not show the throughput of the pool.
 */
export const sheddingPause = 1000

export class ConnectBackoff {
  /** The last failure to connect; `undefined` if there was none since the last success. */
  lastFailure: ConnectFailure | undefined
  /**
   * True during the pause after a failure that the server has reported or that came at once.
   * Waiters then depend on the open connections.
   */
  isRejecting = false
  private failures = 0
  private timer: clock.Timer | undefined

  constructor(private readonly retry: () => void) {}

  /** Checks if the pause before the next attempt is running. */
  get isPausing(): boolean {
    return this.timer !== undefined
  }

  /** Checks if the last connect failed for a temporary reason. */
  get isAway(): boolean {
    return this.lastFailure !== undefined && mayPass(this.lastFailure)
  }

  /**
   * Records a failed connect. Begins the pause unless one is running. `isImmediate` marks a failure
   * within the expected connect time, for example because the server rejects the connection.
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

  /** Records a successful connect. The next pause is the shortest again. */
  onSuccess(): void {
    this.lastFailure = undefined
    this.isRejecting = false
    this.failures = 0
  }

  stop(): void {
    clock.clear(this.timer)
  }
}
