/**
 * Fetches the batches of a portal, one at a time. Interrupting `next` does not cancel the fetch;
 * its result goes to the next caller of `next`.
 */

import * as clock from "../concurrency/clock.js"
import type { OnStatement } from "./autocommit.js"

const nothing = () => {}

export class PortalFetcher {
  private cancelFetch: (() => void) | undefined
  private unclaimed: Parameters<OnStatement> | undefined
  private callback: OnStatement = nothing
  private onIdle = nothing

  constructor(private readonly fetch: (callback: OnStatement) => () => void) {}

  /**
   * Fetches the next batch. The returned function stops waiting for it, but does not cancel the
   * fetch.
   */
  next(callback: OnStatement): () => void {
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

  /** Cancels the fetch in progress, which fails the transaction. */
  abort(): void {
    this.cancelFetch?.()
  }

  /**
   * Waits up to `timeout` ms for the fetch in progress, then cancels it. `callback` receives true
   * if the fetch was completed, or if there was none.
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
    const cancel = this.fetch((failure, exchange) => {
      isDone = true
      this.cancelFetch = undefined
      const { onIdle, callback } = this
      this.callback = nothing
      if (callback === nothing) this.unclaimed = [failure, exchange]
      else callback(failure, exchange)
      onIdle()
    })
    // the fetch may be done already
    if (!isDone) this.cancelFetch = cancel
  }
}
