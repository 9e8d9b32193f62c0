/**
 * What a pool tells: to observers what happens, to the meter how often and for how long.
 */

import type { PoolExhausted } from "../../DatabaseError.js"
import { type CloseReason, Observation, type Observer } from "../../Observation.js"
import type { ConnectFailure, Connection } from "../connection/connection.js"
import type { ErrorLocation } from "../connection/statementError.js"
import type { PoolMetrics } from "../observability/poolMetrics.js"
import type { Notice } from "../protocol/pgDriver.js"
import type { Borrower } from "./borrower.js"

export class PoolEvents {
  private hasConnected = false

  constructor(
    private readonly place: ErrorLocation,
    private readonly observer: Observer,
    private readonly meter: PoolMetrics
  ) {}

  connected({ processId }: Connection, took: number): void {
    const isFirst = !this.hasConnected
    this.hasConnected = true
    this.meter.created(took)
    this.observe(() => Observation.Connected({ ...this.place, processId, took, isFirst }))
  }

  connectFailed({ error, reason }: ConnectFailure): void {
    this.observe(() => Observation.ConnectFailed({ ...this.place, reason, message: error.message }))
  }

  checkedOut({ processId }: Connection, waited: number, label: string | undefined): void {
    this.meter.waited(waited)
    // without a closure: this is the hot path
    if (this.observer.active) this.observer.observe(Observation.CheckedOut({ ...this.place, processId, waited, label }))
  }

  checkedIn({ processId }: Connection, used: number): void {
    this.meter.used(used)
    if (this.observer.active) this.observer.observe(Observation.CheckedIn({ ...this.place, processId, used }))
  }

  exhausted(reason: PoolExhausted["reason"], waited: number): void {
    if (reason !== "single") this.meter.timedOut()
    this.observe(() => Observation.Exhausted({ ...this.place, reason, waited }))
  }

  reset({ processId }: Connection): void {
    this.observe(() => Observation.Reset({ ...this.place, processId }))
  }

  invalidated(mode: "soft" | "hard", connections: number): void {
    this.observe(() => Observation.Invalidated({ ...this.place, mode, connections }))
  }

  lost({ processId }: Connection, error: Error): void {
    this.observe(() => Observation.Lost({ ...this.place, processId, message: error.message }))
  }

  noticed({ processId }: Connection, notice: Notice): void {
    const { code: sqlState = "", detail, hint, message = "", severity = "" } = notice
    this.observe(() => Observation.Noticed({ ...this.place, processId, severity, sqlState, message, detail, hint }))
  }

  closed({ processId }: Connection, reason: CloseReason): void {
    this.observe(() => Observation.Closed({ ...this.place, processId, reason }))
  }

  /** Told whether anybody listens or not. */
  leaked({ processId }: Connection, held: number, who: Borrower | undefined): void {
    this.observer.observe(Observation.Leaked({ ...this.place, processId, held, fiber: who?.fiber, place: who?.place }))
  }

  private observe(make: () => Observation): void {
    if (this.observer.active) this.observer.observe(make())
  }
}
