/**
 * Detection of an overload, which is a queue that only grows, and the limit of the queue during an
 * overload.
 *
 * Time is divided into windows. A window is slow if no caller got a connection in it within the
 * target. A pool becomes overloaded at the third or a later record of the queue's length in slow
 * windows, if in that window clearly more callers arrived than were served, and the queue has grown
 * by more than ten times the connections since the second record. A record is longer than the one
 * before by more than the number of connections. The pool stays overloaded while clearly more
 * callers arrive than are served. A burst that drains sets one record, or two if a window ends
 * while its callers arrive. The same holds for a fixed number of fibers that share the connections.
 * So neither counts as an overload.
 *
 * During an overload only as many callers may queue as are likely to be served within the target,
 * but at least one for each connection. If this process is short of CPU, checkouts may be late, so
 * waiters are rejected only after twice the target.
 */

/** The length of a window, in targets. */
const targetsPerWindow = 5

/** The number of records that a single burst may set. */
const maxSteps = 2

/**
 * The growth of the queue, per connection, that counts as an overload; it is measured from record
 * number `maxSteps`.
 */
const growthPerConnection = 10

/** The ratio of arrivals to served callers that counts as an excess. */
const excessRatio = 1.1

/**
 * The number of windows in a row without a record after which the records are cleared. An overload
 * ends after as many windows without an excess.
 */
const memoryWindows = 4

export class LoadShedding {
  isOverloaded = false
  /** The limit for the number of waiters. */
  maxWaiters = Number.POSITIVE_INFINITY
  /** The limit for the wait of a caller during an overload, in ms. */
  readonly maxWait: number
  private readonly windowMillis: number
  private windowStart = 0
  private arrived = 0
  private served = 0
  private isSlow = true
  private waiting = 0
  /**
   * The length of the queue at the last record; it is kept when the records are cleared, until a
   * reset.
   */
  private longestQueue = 0
  /** The number of records of the queue's length. */
  private records = 0
  /** The length of the queue at the second record, or at the first if there is no second. */
  private baseQueue = 0
  /** The moment before which no queue counts as an overload. */
  private suspendedUntil = 0
  /** The number of windows in a row without a record or, during an overload, without an excess. */
  private quietWindows = 0

  constructor(
    private readonly target: number,
    private readonly connections: number
  ) {
    this.maxWait = 2 * target
    this.windowMillis = target * targetsPerWindow
  }

  /** Checks for an overload at a moment, which may be long after the last arrival. */
  isOverloadedAt(now: number): boolean {
    this.advance(now)
    return this.isOverloaded
  }

  /** Ends an overload, and detects no other before the moment `until`. */
  suspendUntil(until: number): void {
    this.reset()
    this.maxWaiters = Number.POSITIVE_INFINITY
    this.suspendedUntil = until
  }

  /** Records a caller that got a connection at once, which shows that no queue is standing. */
  onImmediateCheckout(): void {
    this.isSlow = false
  }

  /** Records a caller that is about to queue behind `waiting` others. */
  onArrival(now: number, waiting: number): void {
    this.advance(now)
    this.arrived++
    this.waiting = waiting
  }

  /** Records a waiter that got a connection, with `waiting` left in the queue. */
  onServed(now: number, waited: number, waiting: number): void {
    this.advance(now)
    this.served++
    this.waiting = waiting
    if (waited <= this.target) this.isSlow = false
  }

  private advance(now: number): void {
    const age = now - this.windowStart
    if (now < this.suspendedUntil) return this.beginWindow(now)
    if (age < this.windowMillis) return
    // a whole window has passed without an arrival
    if (age >= 2 * this.windowMillis) this.reset()
    else if (this.isOverloaded) this.checkEnd()
    else if (!this.isSlow) this.reset()
    // if no waiter was served, the throughput is unknown, and the deadlines limit the queue
    else if (this.served > 0) this.checkGrowth()
    this.maxWaiters = this.isOverloaded
      ? Math.max(this.connections, (this.served / age) * this.target)
      : Number.POSITIVE_INFINITY
    this.beginWindow(now)
  }

  private beginWindow(now: number): void {
    this.windowStart = now
    this.arrived = 0
    this.served = 0
    this.isSlow = true
  }

  private get isExcess(): boolean {
    return this.arrived > this.served * excessRatio
  }

  private checkEnd(): void {
    this.quietWindows = this.isExcess ? 0 : this.quietWindows + 1
    if (this.quietWindows === memoryWindows) this.reset()
  }

  private checkGrowth(): void {
    // callers that were served together may arrive again together, up to one for each connection
    if (this.waiting <= this.longestQueue + this.connections) {
      this.quietWindows++
      if (this.quietWindows === memoryWindows) this.records = 0
      return
    }
    this.quietWindows = 0
    this.longestQueue = this.waiting
    this.records++
    if (this.records <= maxSteps) this.baseQueue = this.waiting
    else this.isOverloaded = this.isExcess && this.waiting - this.baseQueue > this.connections * growthPerConnection
  }

  private reset(): void {
    this.isOverloaded = false
    this.longestQueue = 0
    this.records = 0
    this.quietWindows = 0
  }
}
