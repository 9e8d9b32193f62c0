/** The events of a pool: observations for the observers, counts and durations for the metrics. */

import type { CloseReason, Observation, Observer } from "../../Observation.js"
import type { ConnectFailure, Connection } from "../connection/connection.js"
import type { PlainFailure } from "../connection/failure.js"
import type { ErrorLocation } from "../connection/statementFailure.js"
import type { PoolMetrics } from "../observability/poolMetrics.js"
import type { Notice } from "../protocol/pgDriver.js"
import type { Caller } from "./caller.js"

export class PoolEvents {
  private hasConnected = false

  constructor(
    private readonly location: ErrorLocation,
    private readonly observer: Observer,
    private readonly metrics: PoolMetrics
  ) {}

  connected({ processId }: Connection, took: number): void {
    const isFirst = !this.hasConnected
    this.hasConnected = true
    this.metrics.created(took)
    this.observe(() => ({ _tag: "Connected", ...this.location, processId, tookMillis: took, isFirst }))
  }

  connectFailed({ error, reason }: ConnectFailure): void {
    this.observe(() => ({ _tag: "ConnectFailed", ...this.location, reason, message: error.message }))
  }

  checkedOut({ processId }: Connection, waited: number, label: string | undefined): void {
    this.metrics.waited(waited)
    // without a closure, because this is the hot path
    if (this.observer.active)
      this.observer.observe({ _tag: "CheckedOut", ...this.location, processId, waitedMillis: waited, label })
  }

  checkedIn({ processId }: Connection, used: number): void {
    this.metrics.used(used)
    if (this.observer.active)
      this.observer.observe({ _tag: "CheckedIn", ...this.location, processId, usedMillis: used })
  }

  exhausted(reason: PlainFailure<"PoolExhausted">["reason"], waited: number): void {
    if (reason !== "single") this.metrics.timedOut()
    this.observe(() => ({ _tag: "Exhausted", ...this.location, reason, waitedMillis: waited }))
  }

  reset({ processId }: Connection): void {
    this.observe(() => ({ _tag: "Reset", ...this.location, processId }))
  }

  invalidated(mode: "soft" | "hard", connections: number): void {
    this.observe(() => ({ _tag: "Invalidated", ...this.location, mode, connections }))
  }

  lost({ processId }: Connection, error: Error): void {
    this.observe(() => ({ _tag: "Lost", ...this.location, processId, message: error.message }))
  }

  noticed({ processId }: Connection, notice: Notice): void {
    const { code: sqlState = "", detail, hint, message = "", severity = "" } = notice
    this.observe(() => ({ _tag: "Noticed", ...this.location, processId, severity, sqlState, message, detail, hint }))
  }

  closed({ processId }: Connection, reason: CloseReason): void {
    this.observe(() => ({ _tag: "Closed", ...this.location, processId, reason }))
  }

  /** Reports a leak even if there are no subscribers, because the observer logs leaks. */
  leaked({ processId }: Connection, held: number, caller: Caller | undefined): void {
    this.observer.observe({
      _tag: "Leaked",
      ...this.location,
      processId,
      heldMillis: held,
      fiber: caller?.fiber,
      location: caller?.location
    })
  }

  private observe(build: () => Observation): void {
    if (this.observer.active) this.observer.observe(build())
  }
}
