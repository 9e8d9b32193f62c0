/**
 * The parts of a stream's rows, fetched one after the other. Who stops waiting for one has not stopped it: it goes to who asks next.
 */

import type { StatementError } from "../../DatabaseError.js"
import * as clock from "../concurrency/clock.js"
import type { Exchange } from "../connection/connection.js"

type OnFetched = (error: StatementError | undefined, flight: Exchange | undefined) => void

const nothing = () => {}

export class PortalFetcher {
  private stop: (() => void) | undefined
  private unseen: Parameters<OnFetched> | undefined
  private waiting: OnFetched = nothing
  private onIdle = nothing

  constructor(private readonly fetch: (done: OnFetched) => () => void) {}

  /** Fetches the next part; the returned function is for who does not wait for it any more. */
  next(done: OnFetched): () => void {
    const { unseen } = this
    if (unseen !== undefined) {
      this.unseen = undefined
      done(...unseen)
      return nothing
    }
    this.waiting = done
    if (this.stop === undefined) this.start()
    return () => {
      this.waiting = nothing
    }
  }

  /** Stops the fetch that is under way, and with it the transaction. */
  abort(): void {
    this.stop?.()
  }

  /** Waits for the end of the fetch that is under way, for so many ms; then stops it. Tells whether it came to its end. */
  settle(patience: number, done: (ended: boolean) => void): void {
    if (this.stop === undefined) return done(true)
    const leave = clock.later(patience, () => {
      this.onIdle = nothing
      this.abort()
      done(false)
    })
    this.onIdle = () => {
      leave()
      done(true)
    }
  }

  private start(): void {
    let isOver = false
    const stop = this.fetch((error, flight) => {
      isOver = true
      this.stop = undefined
      const { onIdle, waiting } = this
      this.waiting = nothing
      if (waiting === nothing) this.unseen = [error, flight]
      else waiting(error, flight)
      onIdle()
    })
    // it may be over at once
    if (!isOver) this.stop = stop
  }
}
