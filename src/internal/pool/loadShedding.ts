/**
 * When a pool is overloaded, that is, when it has a standing queue that only grows; and how long the queue may be then.
 *
 * Time is cut into windows. A window is slow if nobody in it got a connection within the target. A pool is overloaded once, over slow
 * windows, the queue has become longer than ever again and again, by ten times the connections in all, the first two times left out; and it
 * stays so for as long as clearly more callers come than are served. A burst that drains, or a fixed number of fibers that wait for each
 * other, makes the queue longer than ever once, or twice where a window ends in between, and is thereby never taken for an overload.
 *
 * While it is overloaded only as many queue as are likely to be served within the target. A process that is short of time itself may be
 * late with that, so those who queue are sent away only after twice the target.
 */

/** A window, in targets. */
const targetsPerWindow = 5

/** How many times the queue may become longer than ever before that is more than a step. */
const steps = 2

/** How much the queue must have grown after that, per connection. */
const growthPerConnection = 10

/** How many more must come than are served. */
const excess = 1.1

/** After how many windows without news what was seen before does not count any more. */
const memory = 4

export class LoadShedding {
  isOverloaded = false
  /** How many may queue. */
  room = Number.POSITIVE_INFINITY
  /** How long they may queue, in ms. */
  readonly patience: number
  private readonly window: number
  private start = 0
  private arrived = 0
  private served = 0
  private isSlow = true
  private waiting = 0
  /** The longest queue at the end of a slow window. */
  private longest = 0
  /** How many times that was a longer one than before, and how long it was when these were no more than steps. */
  private records = 0
  private base = 0
  /** Until when no queue counts. */
  private restsUntil = 0
  /** For how many windows there was no news: no record, or no excess while it is overloaded. */
  private quiet = 0

  constructor(
    private readonly target: number,
    private readonly connections: number
  ) {
    this.patience = 2 * target
    this.window = target * targetsPerWindow
  }

  /** Whether it is overloaded by now; it may be long since anybody came. */
  isStill(now: number): boolean {
    this.turn(now)
    return this.isOverloaded
  }

  /** Ends an overload, and takes no queue for one before that moment. */
  rest(until: number): void {
    this.forget()
    this.room = Number.POSITIVE_INFINITY
    this.restsUntil = until
  }

  /** Somebody was served at once: there is no standing queue. */
  ease(): void {
    this.isSlow = false
  }

  /** Somebody is about to queue; so many do already. */
  arrive(now: number, waiting: number): void {
    this.turn(now)
    this.arrived++
    this.waiting = waiting
  }

  /** Somebody who waited got a connection; so many are left. */
  serve(now: number, waited: number, waiting: number): void {
    this.turn(now)
    this.served++
    this.waiting = waiting
    if (waited <= this.target) this.isSlow = false
  }

  private turn(now: number): void {
    const age = now - this.start
    if (now < this.restsUntil) return this.begin(now)
    if (age < this.window) return
    // nobody came for a whole window
    if (age >= 2 * this.window) this.forget()
    else if (this.isOverloaded) this.lookForEnd()
    else if (!this.isSlow) this.forget()
    // without anybody served nothing is known of what the pool can do: then it is stuck, and each has a deadline of his own
    else if (this.served > 0) this.lookForGrowth()
    this.room = this.isOverloaded
      ? Math.max(this.connections, (this.served / age) * this.target)
      : Number.POSITIVE_INFINITY
    this.begin(now)
  }

  /** Begins a window. */
  private begin(now: number): void {
    this.start = now
    this.arrived = 0
    this.served = 0
    this.isSlow = true
  }

  private get isExcess(): boolean {
    return this.arrived > this.served * excess
  }

  private lookForEnd(): void {
    this.quiet = this.isExcess ? 0 : this.quiet + 1
    if (this.quiet === memory) this.forget()
  }

  private lookForGrowth(): void {
    // as many as there are connections come and go together
    if (this.waiting <= this.longest + this.connections) {
      this.quiet++
      if (this.quiet === memory) this.records = 0
      return
    }
    this.quiet = 0
    this.longest = this.waiting
    this.records++
    if (this.records <= steps) this.base = this.waiting
    else this.isOverloaded = this.isExcess && this.waiting - this.base > this.connections * growthPerConnection
  }

  private forget(): void {
    this.isOverloaded = false
    this.longest = 0
    this.records = 0
    this.quiet = 0
  }
}
