/**
 * The questions to a primary for its position, one at a time. Callers that ask meanwhile share the
 * next one, because the answer to the one in progress may be older than their tokens.
 */
import * as clock from "../concurrency/clock.js"
import { positionTimeout, queryPositionWithin, type WalStatus } from "../consistency/queryPosition.js"
import type { Pool } from "../pool/pool.js"

const none: ReadonlyArray<never> = []

/** Function that receives the answer, or `undefined` if there is none. */
type OnStatus = (status: WalStatus | undefined) => void

/** Questions to one primary. */
export class PositionQuestions {
  private waiting = new Set<OnStatus>()
  private isAsking = false

  constructor(private readonly pool: Pool) {}

  /** Asks for the position; not while the pool is paused. The returned function cancels a question that waits. */
  ask(callback: OnStatus): () => void {
    const { waiting } = this
    waiting.add(callback)
    this.advance()
    return () => waiting.delete(callback)
  }

  private advance(): void {
    if (this.isAsking || this.waiting.size === 0 || this.pool.isPaused) return
    const callbacks = this.waiting
    this.waiting = new Set()
    this.isAsking = true
    const end: OnStatus = (status) => {
      this.isAsking = false
      for (const callback of callbacks) callback(status)
      this.advance()
    }
    this.pool.checkout(clock.now() + positionTimeout, none, (_, connection) => {
      if (connection === undefined) return end(undefined)
      queryPositionWithin(connection, positionTimeout, (status) => {
        this.pool.checkin(connection)
        end(status)
      })
    })
  }
}
