/**
 * Those who wait for a connection, in the order in which they came. Each is called once: with a connection, with a failure, or never
 * if he gave up.
 */
import type { Connection } from "../../Connection.js"
import { timer } from "../later.js"
import type { Borrower } from "./borrower.js"
import type { Overload } from "./overload.js"

export interface Waiter<Settle> {
  readonly since: number
  readonly holding: ReadonlyArray<Connection>
  /** Who it is, where somebody wants to know. */
  readonly who: Borrower | undefined
  readonly settle: Settle
}

/** Why somebody is sent away: his time is over, or there are too many. */
type SentAway = "timeout" | "shed"

export class Waiters<Settle> {
  private readonly timers = new Map<Waiter<Settle>, NodeJS.Timeout>()
  private shedder: NodeJS.Timeout | undefined

  constructor(
    private readonly overload: Overload,
    private readonly sendAway: (waiter: Waiter<Settle>, why: SentAway) => void
  ) {}

  get size(): number {
    return this.timers.size
  }

  /** Whether more come than can be served, at this moment. */
  get isOverloaded(): boolean {
    return this.overload.isStill(performance.now())
  }

  [Symbol.iterator](): Iterator<Waiter<Settle>> {
    return this.timers.keys()
  }

  /** Somebody got a connection without waiting. */
  ease(): void {
    this.overload.ease()
  }

  /** Whether somebody who comes now has to be sent away at once. */
  turnsAway(now: number): boolean {
    this.overload.arrive(now, this.size)
    if (this.overload.isOverloaded) this.shed(now)
    return this.size >= this.overload.room
  }

  /** Puts somebody at the end of the queue. */
  add(waiter: Waiter<Settle>, deadline: number): void {
    // a timer counts whole milliseconds from a clock of whole ones, so it may come one too early
    const left = Math.ceil(Math.max(0, deadline - waiter.since)) + 1
    this.timers.set(
      waiter,
      timer(left, () => this.sendAway(waiter, "timeout"))
    )
  }

  /** Takes somebody out of the queue; tells whether he was still there. */
  remove(waiter: Waiter<Settle>): boolean {
    clearTimeout(this.timers.get(waiter))
    return this.timers.delete(waiter)
  }

  /** Takes out the one who waited longest, to be served. */
  take(now: number): Waiter<Settle> | undefined {
    if (this.overload.isOverloaded) this.shed(now)
    for (const waiter of this.timers.keys()) {
      this.remove(waiter)
      this.overload.serve(now, now - waiter.since, this.size)
      return waiter
    }
    return undefined
  }

  /** Takes out all. */
  clear(): ReadonlyArray<Waiter<Settle>> {
    clearTimeout(this.shedder)
    const all = [...this.timers.keys()]
    for (const waiter of all) this.remove(waiter)
    return all
  }

  /** Sends away those who have queued for too long, and comes back for the next. */
  private shed(now: number): void {
    clearTimeout(this.shedder)
    for (const waiter of this.timers.keys()) {
      const left = waiter.since + this.overload.patience - now
      if (left > 0) {
        this.shedder = setTimeout(() => {
          if (this.overload.isOverloaded) this.shed(performance.now())
        }, left)
        return
      }
      this.sendAway(waiter, "shed")
    }
  }
}
