/**
 * When a pool is overloaded: a standing queue that only grows.
 *
 * Time is cut into windows. A window is slow if nobody in it got a connection within the target. A pool is overloaded once, over slow
 * windows in a row, the queue has grown by ten times the connections; and it stays so for as long as clearly more callers come than are
 * served. A burst that drains, or a fixed number of fibers that wait for each other, is thereby never taken for an overload.
 */

/** A window, in targets. */
const windowsPerTarget = 10

/** How much the queue must have grown, per connection. */
const growthPerConnection = 10

/** How many more must come than are served. */
const excess = 1.1

export class Overload {
  /** Whether those who waited for longer than the target are to be sent away. */
  isOverloaded = false
  private readonly window: number
  private start = 0
  private arrived = 0
  private served = 0
  private isSlow = true
  private growth = 0

  constructor(
    readonly target: number,
    private readonly connections: number
  ) {
    this.window = target * windowsPerTarget
  }

  /** Somebody was served at once: there is no standing queue. */
  ease(): void {
    this.isSlow = false
  }

  /** Somebody queues. */
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
      this.growth = this.isSlow && this.served > 0 ? this.growth + this.arrived - this.served : 0
      this.isOverloaded = this.growth > this.connections * growthPerConnection && this.arrived > this.served * excess
    }
    this.start = now
    this.arrived = 0
    this.served = 0
    this.isSlow = true
  }
}
