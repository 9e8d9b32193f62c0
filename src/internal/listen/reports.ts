/**
 * The observations of the listening connection.
 */

import type { Observer } from "../../Observation.js"
import * as clock from "../concurrency/clock.js"
import type { ErrorLocation } from "../connection/statementFailure.js"
import type { ListenEdge, Outage } from "./outage.js"

/** Reports to the observer of a database, if it is active. */
export class ListenReports {
  constructor(
    private readonly observer: Observer,
    private readonly location: ErrorLocation,
    private readonly messageOf: ListenEdge["messageOf"]
  ) {}

  /** Reports that a listener is too slow for its buffer. */
  overflowed(channel: string): void {
    const { database } = this.location
    if (this.observer.active) this.observer.observe({ _tag: "ListenOverflowed", database, channel })
  }

  /** Reports that the connection is lost. */
  lost(processId: number, { message }: Error): void {
    if (this.observer.active) this.observer.observe({ _tag: "ListenLost", ...this.location, processId, message })
  }

  /** Reports a pause, in ms, before another attempt. */
  retried({ attempts, lastFailure }: Outage, pause: number): void {
    if (!this.observer.active) return
    this.observer.observe({
      _tag: "ListenRetried",
      ...this.location,
      attempt: attempts + 1,
      pauseMillis: pause,
      message: this.messageOf(lastFailure)
    })
  }

  /** Reports the end of an outage. */
  restored({ attempts, since }: Outage): void {
    if (!this.observer.active) return
    this.observer.observe({ _tag: "ListenRestored", ...this.location, attempts, tookMillis: clock.now() - since })
  }
}
