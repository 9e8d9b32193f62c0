/**
 * When a pool is overloaded, that is, when it has a standing queue that only grows; and how long the queue may be then.
 *
 * Time is cut into windows. A window is slow if nobody in it got a connection within the target. A pool is overloaded once, over slow
 * windows in a row, the queue has grown by ten times the connections; and it stays so for as long as clearly more callers come than are
 * served. A burst that drains, or a fixed number of fibers that wait for each other, is thereby never taken for an overload.
 *
 * While it is overloaded only as many queue as are likely to be served within the target. A process that is short of time itself may be
 * late with that, so those who queue are sent away only after twice the target.
 */

/** How long a window is, in targets. */
const targetsPerWindow = 10

/** How much the queue must have grown, per connection. */
const growthPerConnection = 10

/** How many more must come than are served. */
const excess = 1.1

export class Overload {
  isOverloaded = false
  /** How many may queue. */
  room = Number.POSITIVE_INFINITY
  /** How long they may queue, in ms. */
  readonly patience: number
  private readonly window: number
  private start = 0
  private arrived = 0
  private served = 0
  private left = 0
  private isSlow = true
  private growth = 0

  constructor(
    private readonly target: number,
    private readonly connections: number
  ) {
    this.patience = 2 * target
    this.window = target * targetsPerWindow
  }

  /** Somebody was served at once: there is no standing queue. */
  ease(): void {
    this.isSlow = false
  }

  /** Somebody is about to queue. */
  arrive(now: number): void {
    this.turn(now)
    this.arrived++
  }

  /** Somebody who waited got a connection. */
  serve(now: number, waited: number): void {
    this.turn(now)
    this.served++
    if (waited <= this.target) this.isSlow = false
  }

  /** Somebody who waited has gone. */
  leave(): void {
    this.left++
  }

  private turn(now: number): void {
    const age = now - this.start
    if (age < this.window) return
    if (age >= 2 * this.window) {
      // nobody came for a whole window
      this.isOverloaded = false
      this.growth = 0
    } else if (this.isOverloaded) {
      this.isOverloaded = this.arrived > this.served * excess
      this.growth = 0
    } else {
      // without anybody served nothing is known of what the pool can do: then it is stuck, and each has a deadline of his own
      this.growth = this.isSlow && this.served > 0 ? this.growth + this.arrived - this.served - this.left : 0
      this.isOverloaded = this.growth > this.connections * growthPerConnection && this.arrived > this.served * excess
    }
    this.room = this.isOverloaded
      ? Math.max(this.connections, (this.served / age) * this.target)
      : Number.POSITIVE_INFINITY
    this.start = now
    this.arrived = 0
    this.served = 0
    this.left = 0
    this.isSlow = true
  }
}
