/**
 * The outages of the listening connection, and their pauses.
 */

import * as clock from "../concurrency/clock.js"
import type { ConnectionFailure } from "./failure.js"

/**
 * Pauses of one outage, before each attempt except an attempt for a new listener. `callback` is
 * called after the pause, with `false` if no further attempt follows. The returned function
 * cancels.
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

/** Functions of the edge. */
export interface ListenEdge {
  /** Begins the pauses of an outage; `onPause` gets the length of each before it begins, in ms. */
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
