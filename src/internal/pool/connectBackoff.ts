/**
 * What is known of a server that could not be connected to, and when it is asked again.
 */

import * as clock from "../concurrency/clock.js"
import { mayPass } from "../connection/connectFailure.js"
import type { ConnectFailure } from "../connection/connection.js"

/**
 * After how long it is asked again, in ms: twice as long each time. Where callers can do without, for connections are open, it may be long;
 * where they wait for nothing else, one attempt stands for all of them, and the next one comes soon.
 */
const pauses = { shortest: 100, longest: { spare: 1000, needed: 250 } }

/** How long load shedding rests, in ms: in an outage and after it a queue says nothing of what the pool can serve. */
export const initialPause = 1000

export class ConnectBackoff {
  /** The last failure to connect, if there was one since the last success. */
  last: ConnectFailure | undefined
  /** Whether the server lets in no more, so that waiters have to do with what is open. */
  isShut = false
  private failures = 0
  private timer: clock.Timer | undefined

  constructor(private readonly askAgain: () => void) {}

  /** Whether it is waited for before the server is asked again. */
  get isPausing(): boolean {
    return this.timer !== undefined
  }

  /** Whether the server is away, and may come back by itself. */
  get isAway(): boolean {
    return this.last !== undefined && mayPass(this.last)
  }

  /** A connect failed, `isSoon` as by a server that says no. */
  failed(failure: ConnectFailure, isSoon: boolean, need: keyof typeof pauses.longest): void {
    this.last = failure
    this.isShut = isSoon || (failure.reason !== "unreachable" && failure.reason !== "unresponsive")
    if (this.timer !== undefined) return
    const pause = Math.min(pauses.shortest * 2 ** this.failures++, pauses.longest[need])
    this.timer = clock.timer(pause, () => {
      this.timer = undefined
      this.isShut = false
      this.askAgain()
    })
    this.timer.unref()
  }

  /** A connect succeeded. */
  over(): void {
    this.last = undefined
    this.isShut = false
    this.failures = 0
  }

  stop(): void {
    clock.clear(this.timer)
  }
}
