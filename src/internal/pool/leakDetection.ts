/**
 * The open checkouts with their callers, and the report of leaks. Checkouts are recorded only with
 * `leakThreshold` or `assertSingle`.
 */

import type { PoolConfig } from "../../DatabaseConfig.js"
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import type { Caller } from "./caller.js"

export interface Checkout {
  readonly since: number
  readonly caller: Caller | undefined
}

type OnLeak = (connection: Connection, held: number, caller: Caller | undefined) => void

/** Makes the leak detection of a pool, or returns `undefined` if no setting needs it. */
export const makeLeakDetection = (config: PoolConfig, onLeak: OnLeak): LeakDetection | undefined =>
  Number.isFinite(config.leakThreshold) || config.strategy === "assertSingle"
    ? new LeakDetection(config.leakThreshold, onLeak)
    : undefined

export class LeakDetection {
  /** Checkouts in the order in which they began. */
  private readonly checkouts = new Map<Connection, Checkout>()
  private readonly reported = new WeakSet<Connection>()
  private timer: clock.Timer | undefined

  constructor(
    private readonly threshold: number,
    private readonly onLeak: OnLeak
  ) {}

  get oldest(): Checkout | undefined {
    // a connection that is closing, or whose statement was interrupted, has no caller any more
    for (const [connection, checkout] of this.checkouts) if (connection.isUsable) return checkout
    return undefined
  }

  add(connection: Connection, now: number, caller: Caller | undefined): void {
    this.checkouts.set(connection, { since: now, caller })
    if (this.timer === undefined && Number.isFinite(this.threshold)) this.scheduleCheck(this.threshold)
  }

  remove(connection: Connection): void {
    this.checkouts.delete(connection)
    this.reported.delete(connection)
  }

  stop(): void {
    clock.clear(this.timer)
  }

  private scheduleCheck(millis: number): void {
    this.timer = clock.timer(millis, () => this.check())
    this.timer.unref()
  }

  /** Reports each checkout above the threshold once, and schedules the next check. */
  private check(): void {
    this.timer = undefined
    const now = clock.now()
    let hasStopping = false
    for (const [connection, checkout] of this.checkouts) {
      if (connection.broken !== undefined || this.reported.has(connection)) continue
      // after an interruption the connection is closed or checked in within a second, or its
      // transaction continues
      if (connection.isStopping) {
        hasStopping = true
        continue
      }
      const left = checkout.since + this.threshold - now
      if (left > 0) return this.scheduleCheck(Math.ceil(left))
      this.reported.add(connection)
      this.onLeak(connection, now - checkout.since, checkout.caller)
    }
    if (hasStopping) this.scheduleCheck(this.threshold)
  }
}
