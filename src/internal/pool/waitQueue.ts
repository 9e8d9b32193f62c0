/**
 * The waiters of a pool in the order of their arrival, after the urgent ones. Each waiter is called
 * back once, with a connection or a failure. A cancelled waiter is never called back.
 */

import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import type { PoolMetrics } from "../observability/poolMetrics.js"
import type { Caller } from "./caller.js"
import type { LoadShedding } from "./loadShedding.js"

/** Waiter. It is a class, not a literal, because of the performance rules in CONTRIBUTING.md. */
export class Waiter<Callback> {
  /** @internal */ isQueued = false
  /** @internal */ previous: Waiter<Callback> | undefined = undefined
  /** @internal */ next: Waiter<Callback> | undefined = undefined

  constructor(
    readonly since: number,
    /** The moment until which the caller waits. */
    readonly deadline: number,
    readonly holding: ReadonlyArray<Connection>,
    /** The caller, if the settings or an observer need it. */
    readonly caller: Caller | undefined,
    readonly callback: Callback,
    /** True if the waiter is served before others, and is not rejected because of an overload. */
    readonly isUrgent = false
  ) {}
}

/** The reason to reject a waiter: its deadline has passed, or the queue is too long. */
type WaiterRejection = "timeout" | "shed"

export class WaitQueue<Callback> {
  // a linked list, because V8 copies a map repeatedly if entries are added and removed all the time
  private first: Waiter<Callback> | undefined
  private last: Waiter<Callback> | undefined
  private count = 0
  /** One timer for all waiters, set for a moment that is not after the earliest deadline. */
  private timer: clock.Timer | undefined
  private timerAt = Number.POSITIVE_INFINITY
  private shedTimer: clock.Timer | undefined

  constructor(
    private readonly loadShedding: LoadShedding,
    private readonly rejectWaiter: (waiter: Waiter<Callback>, reason: WaiterRejection) => void,
    private readonly metrics: Pick<PoolMetrics, "setWaiting">
  ) {}

  get size(): number {
    return this.count
  }

  /** Checks if the pool is overloaded at this moment. */
  get isOverloaded(): boolean {
    return this.loadShedding.isOverloadedAt(clock.now())
  }

  *[Symbol.iterator](): Iterator<Waiter<Callback>> {
    for (let waiter = this.first; waiter !== undefined; waiter = waiter.next) yield waiter
  }

  /** Records a caller that got a connection without waiting. */
  onImmediateCheckout(): void {
    this.loadShedding.onImmediateCheckout()
  }

  /** Suspends load shedding until a moment. */
  suspendSheddingUntil(until: number): void {
    clock.clear(this.shedTimer)
    this.loadShedding.suspendUntil(until)
  }

  /**
   * Records an arrival. During an overload, rejects the waiters that have queued for too long.
   * Returns true if the queue is full, so that the arriving caller must be rejected, too.
   */
  rejectsArrival(now: number): boolean {
    this.loadShedding.onArrival(now, this.size)
    if (this.loadShedding.isOverloaded) this.shed(now)
    return this.size >= this.loadShedding.maxWaiters
  }

  /** Adds a waiter at the end of the queue, or an urgent one before those that are not urgent. */
  add(waiter: Waiter<Callback>): void {
    const next = waiter.isUrgent ? this.firstOrdinary : undefined
    const previous = next === undefined ? this.last : next.previous
    waiter.isQueued = true
    waiter.previous = previous
    waiter.next = next
    if (previous === undefined) this.first = waiter
    else previous.next = waiter
    if (next === undefined) this.last = waiter
    else next.previous = waiter
    this.count++
    this.metrics.setWaiting(this.count)
    if (waiter.deadline < this.timerAt) this.scheduleTimeout(waiter.deadline, waiter.since)
    // a waiter must keep the process alive
    else if (this.count === 1) this.timer?.ref()
  }

  /** Removes a waiter. Returns true if it was still in the queue. */
  remove(waiter: Waiter<Callback>): boolean {
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
    this.metrics.setWaiting(this.count)
    if (this.count === 0) this.timer?.unref()
    return true
  }

  /**
   * Removes and returns an urgent waiter, or the one that has waited longest, and records that it was
   * served. During an overload, first rejects the waiters that have queued for too long.
   */
  removeFirst(now: number): Waiter<Callback> | undefined {
    if (this.loadShedding.isOverloaded) this.shed(now)
    const waiter = this.first
    if (waiter === undefined) return undefined
    this.remove(waiter)
    this.loadShedding.onServed(now, now - waiter.since, this.size)
    return waiter
  }

  /** Removes and returns all waiters. */
  clear(): ReadonlyArray<Waiter<Callback>> {
    clock.clear(this.shedTimer)
    clock.clear(this.timer)
    this.timer = undefined
    this.timerAt = Number.POSITIVE_INFINITY
    const all = [...this]
    for (const waiter of all) this.remove(waiter)
    return all
  }

  /** The first waiter that is not urgent. */
  private get firstOrdinary(): Waiter<Callback> | undefined {
    let waiter = this.first
    while (waiter?.isUrgent === true) waiter = waiter.next
    return waiter
  }

  private scheduleTimeout(deadline: number, now: number): void {
    clock.clear(this.timer)
    this.timerAt = deadline
    // Node's timers count whole milliseconds, so a timer may fire one millisecond too early
    this.timer = clock.timer(Math.ceil(Math.max(0, deadline - now)) + 1, () => this.rejectTimedOut())
  }

  /** Rejects the waiters whose deadlines have passed, and sets the timer for the next deadline. */
  private rejectTimedOut(): void {
    this.timer = undefined
    this.timerAt = Number.POSITIVE_INFINITY
    const now = clock.now()
    const timedOut: Array<Waiter<Callback>> = []
    let next = Number.POSITIVE_INFINITY
    for (const waiter of this) {
      if (waiter.deadline <= now) timedOut.push(waiter)
      else next = Math.min(next, waiter.deadline)
    }
    if (next < Number.POSITIVE_INFINITY) this.scheduleTimeout(next, now)
    for (const waiter of timedOut) this.rejectWaiter(waiter, "timeout")
  }

  /** Rejects the waiters that have queued for too long, and sets a timer for the next. */
  private shed(now: number): void {
    clock.clear(this.shedTimer)
    for (let waiter = this.firstOrdinary; waiter !== undefined; waiter = this.firstOrdinary) {
      const remaining = waiter.since + this.loadShedding.maxWait - now
      if (remaining > 0) {
        this.shedTimer = clock.timer(remaining, () => {
          if (this.loadShedding.isOverloaded) this.shed(clock.now())
        })
        return
      }
      this.rejectWaiter(waiter, "shed")
    }
  }
}
