/**
 * Fetches the batches of a portal, one at a time. Interrupting `next` does not cancel the fetch;
 * its result goes to the next caller of `next`.
 */

import type { StatementError } from "../../DatabaseError.js"
import * as clock from "../concurrency/clock.js"
import type { Exchange } from "../connection/connection.js"

type OnFetched = (error: StatementError | undefined, exchange: Exchange | undefined) => void

const nothing = () => {}

export class PortalFetcher {
  private cancelFetch: (() => void) | undefined
  private unclaimed: Parameters<OnFetched> | undefined
  private callback: OnFetched = nothing
  private onIdle = nothing

  constructor(private readonly fetch: (callback: OnFetched) => () => void) {}

  /**
   * Fetches the next batch. The returned function stops waiting for it, but does not cancel the
   * fetch.
   */
  next(callback: OnFetched): () => void {
    const { unclaimed } = this
    if (unclaimed !== undefined) {
      this.unclaimed = undefined
      callback(...unclaimed)
      return nothing
    }
    this.callback = callback
    if (this.cancelFetch === undefined) this.start()
    return () => {
      this.callback = nothing
    }
  }

  /** Cancels the fetch in progress, and with it the transaction. */
  abort(): void {
    this.cancelFetch?.()
  }

  /**
   * Waits up to `timeout` ms for the fetch in progress, then cancels it. `callback` receives true
   * if the fetch was completed.
   */
  drain(timeout: number, callback: (isComplete: boolean) => void): void {
    if (this.cancelFetch === undefined) return callback(true)
    const cancelTimeout = clock.later(timeout, () => {
      this.onIdle = nothing
      this.abort()
      callback(false)
    })
    this.onIdle = () => {
      cancelTimeout()
      callback(true)
    }
  }

  private start(): void {
    let isDone = false
    const cancel = this.fetch((error, exchange) => {
      isDone = true
      this.cancelFetch = undefined
      const { onIdle, callback } = this
      this.callback = nothing
      if (callback === nothing) this.unclaimed = [error, exchange]
      else callback(error, exchange)
      onIdle()
    })
    // the fetch may be done already
    if (!isDone) this.cancelFetch = cancel
  }
}
