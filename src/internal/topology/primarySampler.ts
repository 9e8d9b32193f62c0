/**
 * The sampler of the positions of a primary, which show how far its replicas are behind.
 */
import * as clock from "../concurrency/clock.js"
import { type PrimaryPosition, PrimaryPositions } from "./primaryPositions.js"
import type { ProbeResult } from "./probe.js"

/** Function that probes the primary, if it is known. */
export type AskPrimary = (timeout: number, callback: (result: ProbeResult | undefined) => void) => void

/** Sampler of the primary of one database. */
export class PrimarySampler {
  readonly positions = new PrimaryPositions()

  constructor(private readonly ask: AskPrimary) {}

  /**
   * Asks the primary for its position, unless the latest known one was asked for less than `maxAge`
   * ms ago. Calls back with true if the position is that new, and with false after a failure or
   * after `timeout` ms.
   */
  sample(timeout: number, maxAge: number, callback: (isAnswered: boolean) => void): void {
    const { latest } = this.positions
    if (latest !== undefined && clock.now() - latest.from < maxAge) return callback(true)
    let isDone = false
    const finish = (isAnswered: boolean) => {
      if (isDone) return
      isDone = true
      cancel()
      callback(isAnswered)
    }
    const cancel = clock.later(timeout, () => finish(false))
    this.ask(timeout, (result) => {
      const isAnswered = result?._tag === "Answered" && !result.report.isStandby
      if (isAnswered) this.positions.record(result.report, result.askedAt, clock.now())
      finish(isAnswered)
    })
  }

  /**
   * Calls back with a position that has everything which was committed by a moment, or with
   * `undefined` if the primary reports none within `timeout` ms. The returned function cancels.
   */
  since(moment: number, timeout: number, callback: (position: PrimaryPosition | undefined) => void): () => void {
    const known = this.positions.oldestSince(moment)
    if (known !== undefined) {
      callback(known)
      return () => {}
    }
    let isDone = false
    const finish = (position: PrimaryPosition | undefined) => {
      if (isDone) return
      isDone = true
      clock.clear(timer)
      callback(position)
    }
    // the caller keeps the process alive, unlike the probe
    const timer = clock.timer(timeout, () => finish(undefined))
    this.sample(timeout, 0, (isAnswered) => {
      const position = this.positions.oldestSince(moment)
      if (position !== undefined || !isAnswered) return finish(position)
      // the answer was to a query that had been sent before the moment
      this.sample(timeout, 0, () => finish(this.positions.oldestSince(moment)))
    })
    return () => {
      isDone = true
      clock.clear(timer)
    }
  }
}
