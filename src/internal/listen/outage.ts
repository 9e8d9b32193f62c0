/**
 * The outages of the listening connection, and their pauses.
 */

import * as clock from "../concurrency/clock.js"
import type { ConnectionFailure } from "./failure.js"

/**
 * Pauses of one outage. Each attempt has a pause before it, except an attempt for a new listener.
 * `callback` is called after the pause, with `false` if no further attempt follows. The returned
 * function cancels.
 */
export interface RetryPauses {
  readonly next: (failure: ConnectionFailure, callback: (isRetried: boolean) => void) => () => void
}

/** Time from the loss of the connection until the next one listens to the channels. */
export interface Outage {
  readonly since: number
  readonly pauses: RetryPauses
  /** The message of the first failure. */
  readonly firstMessage: string
  lastFailure: ConnectionFailure
  attempts: number
}

/** Functions that are implemented with Effect, and passed to the callback part. */
export interface ListenEdge {
  /**
   * Begins the pauses of an outage. `onPause` is called before each pause, with its length in ms.
   */
  readonly pauses: (onPause: (pause: number) => void) => RetryPauses
  /** Returns the message of the error that a failure becomes. */
  readonly messageOf: (failure: ConnectionFailure) => string
}

/** Begins an outage. `onPause` is called before each of its pauses, with the length in ms. */
export const beginOutage = (
  failure: ConnectionFailure,
  edge: ListenEdge,
  onPause: (outage: Outage, pause: number) => void
): Outage => {
  const outage: Outage = {
    since: clock.now(),
    pauses: edge.pauses((pause) => onPause(outage, pause)),
    firstMessage: failure._tag === "Lost" ? failure.error.message : edge.messageOf(failure),
    lastFailure: failure,
    attempts: 0
  }
  return outage
}
