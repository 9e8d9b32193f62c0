/**
 * Those who wait for a connection, in the order in which they came. Each is called once: with a connection, with a failure, or never
 * if he gave up.
 */

import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import type { Borrower } from "./borrower.js"
import type { LoadShedding } from "./loadShedding.js"

/** A place in the queue. It holds on to a whole operation, so it is a class and no object literal, for the reason that `cancellable` gives. */
export class Waiter<Settle> {
  /** @internal */ isQueued = false
  /** @internal */ previous: Waiter<Settle> | undefined = undefined
  /** @internal */ next: Waiter<Settle> | undefined = undefined

  constructor(
    readonly since: number,
    /** Until when he waits. */
    readonly deadline: number,
    readonly holding: ReadonlyArray<Connection>,
    /** Who it is, where somebody wants to know. */
    readonly who: Borrower | undefined,
    readonly settle: Settle
  ) {}
}

/** Why somebody is sent away: his time is over, or there are too many. */
type SentAway = "timeout" | "shed"

export class WaitQueue<Settle> {
  // linked to each other: a map that is always written to is always being copied
  private first: Waiter<Settle> | undefined
  private last: Waiter<Settle> | undefined
  private count = 0
  /** One for all, for whoever has to go first; it goes on its own way while others come and go. */
  private timer: clock.Timer | undefined
  private timerAt = Number.POSITIVE_INFINITY
  private shedder: clock.Timer | undefined

  constructor(
    private readonly overload: LoadShedding,
    private readonly sendAway: (waiter: Waiter<Settle>, why: SentAway) => void
  ) {}

  get size(): number {
    return this.count
  }

  /** Whether more come than can be served, at this moment. */
  get isOverloaded(): boolean {
    return this.overload.isStill(clock.now())
  }

  *[Symbol.iterator](): Iterator<Waiter<Settle>> {
    for (let waiter = this.first; waiter !== undefined; waiter = waiter.next) yield waiter
  }

  /** Somebody got a connection without waiting. */
  ease(): void {
    this.overload.ease()
  }

  /** Sends nobody away because of a long queue before that moment. */
  rest(until: number): void {
    clock.clear(this.shedder)
    this.overload.rest(until)
  }

  /** Whether somebody who comes now has to be sent away at once. */
  turnsAway(now: number): boolean {
    this.overload.arrive(now, this.size)
    if (this.overload.isOverloaded) this.shed(now)
    return this.size >= this.overload.room
  }

  /** Puts somebody at the end of the queue. */
  add(waiter: Waiter<Settle>): void {
    waiter.isQueued = true
    waiter.previous = this.last
    if (this.last === undefined) this.first = waiter
    else this.last.next = waiter
    this.last = waiter
    this.count++
    if (waiter.deadline < this.timerAt) this.wake(waiter.deadline, waiter.since)
    // who waits keeps the process alive
    else if (this.count === 1) this.timer?.ref()
  }

  /** Takes somebody out of the queue; tells whether he was still there. */
  remove(waiter: Waiter<Settle>): boolean {
    if (!waiter.isQueued) return false
    const { next, previous } = waiter
    if (previous === undefined) this.first = next
    else previous.next = next
    if (next === undefined) this.last = previous
    else next.previous = previous
    waiter.isQueued = false
    waiter.previous = undefined
    waiter.next = undefined
    this.count--
    if (this.count === 0) this.timer?.unref()
    return true
  }

  /** Takes out the one who waited longest, to be served. */
  take(now: number): Waiter<Settle> | undefined {
    if (this.overload.isOverloaded) this.shed(now)
    const waiter = this.first
    if (waiter === undefined) return undefined
    this.remove(waiter)
    this.overload.serve(now, now - waiter.since, this.size)
    return waiter
  }

  /** Takes out all. */
  clear(): ReadonlyArray<Waiter<Settle>> {
    clock.clear(this.shedder)
    clock.clear(this.timer)
    this.timer = undefined
    this.timerAt = Number.POSITIVE_INFINITY
    const all = [...this]
    for (const waiter of all) this.remove(waiter)
    return all
  }

  private wake(deadline: number, now: number): void {
    clock.clear(this.timer)
    this.timerAt = deadline
    // a timer counts whole milliseconds from a clock of whole ones, so it may come one too early
    this.timer = clock.timer(Math.ceil(Math.max(0, deadline - now)) + 1, () => this.look())
  }

  /** Sends away those whose time is over, and comes back for the next. */
  private look(): void {
    this.timer = undefined
    this.timerAt = Number.POSITIVE_INFINITY
    const now = clock.now()
    const late: Array<Waiter<Settle>> = []
    let next = Number.POSITIVE_INFINITY
    for (const waiter of this) {
      if (waiter.deadline <= now) late.push(waiter)
      else next = Math.min(next, waiter.deadline)
    }
    if (next < Number.POSITIVE_INFINITY) this.wake(next, now)
    for (const waiter of late) this.sendAway(waiter, "timeout")
  }

  /** Sends away those who have queued for too long, and comes back for the next. */
  private shed(now: number): void {
    clock.clear(this.shedder)
    for (let waiter = this.first; waiter !== undefined; waiter = this.first) {
      const left = waiter.since + this.overload.patience - now
      if (left > 0) {
        this.shedder = clock.timer(left, () => {
          if (this.overload.isOverloaded) this.shed(clock.now())
        })
        return
      }
      this.sendAway(waiter, "shed")
    }
  }
}
