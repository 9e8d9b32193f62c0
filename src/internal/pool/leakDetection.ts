/**
 * Who holds which connection, since when: kept only where somebody asked for it, by `leakThreshold` or `assertSingle`.
 */

import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import type { Borrower } from "./borrower.js"

export interface Checkout {
  readonly since: number
  readonly who: Borrower | undefined
}

export class LeakDetection {
  /** By the time at which they were made. */
  private readonly loans = new Map<Connection, Checkout>()
  private readonly told = new WeakSet<Connection>()
  private timer: clock.Timer | undefined

  constructor(
    private readonly threshold: number,
    private readonly tell: (connection: Connection, held: number, who: Borrower | undefined) => void
  ) {}

  get oldest(): Checkout | undefined {
    // one that is on its way out, or whose statement was interrupted, is nobody's any more
    for (const [connection, loan] of this.loans) if (connection.isUsable) return loan
    return undefined
  }

  add(connection: Connection, now: number, who: Borrower | undefined): void {
    this.loans.set(connection, { since: now, who })
    if (this.timer === undefined && Number.isFinite(this.threshold)) this.wait(this.threshold)
  }

  remove(connection: Connection): void {
    this.loans.delete(connection)
    this.told.delete(connection)
  }

  stop(): void {
    clock.clear(this.timer)
  }

  private wait(millis: number): void {
    this.timer = clock.timer(millis, () => this.look())
    this.timer.unref()
  }

  /** Tells of those that are held for too long, once each. */
  private look(): void {
    this.timer = undefined
    const now = clock.now()
    let isStopping = false
    for (const [connection, loan] of this.loans) {
      if (connection.broken !== undefined || this.told.has(connection)) continue
      // given up, and closed or given back within a second; or in a transaction that goes on
      if (connection.isStopping) {
        isStopping = true
        continue
      }
      const left = loan.since + this.threshold - now
      if (left > 0) return this.wait(Math.ceil(left))
      this.told.add(connection)
      this.tell(connection, now - loan.since, loan.who)
    }
    if (isStopping) this.wait(this.threshold)
  }
}
