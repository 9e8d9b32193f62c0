/**
 * The turn of a nested part among concurrent ones. A part takes its turn with its first statement
 * and has it until its end, on all databases: with a turn for each database, two parts could wait
 * for each other.
 */
import type { FifoLock } from "../concurrency/fifoLock.js"

const nothing = () => {}

export class NestedGate {
  private isInside = false
  private leaveQueue: (() => void) | undefined = undefined
  private readonly waiting = new Set<() => void>()

  constructor(private readonly siblingLock: FifoLock) {}

  /**
   * Calls `start` when the part has its turn, at once if it has it already. The returned function
   * stops waiting.
   */
  enter(start: () => void): () => void {
    if (this.isInside) {
      start()
      return nothing
    }
    this.waiting.add(start)
    this.leaveQueue ??= this.siblingLock.acquire(() => {
      this.isInside = true
      for (const next of this.waiting) next()
      this.waiting.clear()
    })
    return () => {
      this.waiting.delete(start)
    }
  }

  /** Ends the turn of the part, or stops waiting for it. */
  leave(): void {
    if (this.isInside) this.siblingLock.release()
    else this.leaveQueue?.()
    this.isInside = false
  }
}
