/**
 * The turn of a nested part among its siblings. A part takes its turn with its first statement and
 * has it until its end, on all databases: with a turn for each database, two parts could wait for
 * each other.
 */
import type { FifoLock } from "../concurrency/fifoLock.js"

const nothing = () => {}

/** Turn of one nested part. */
export class SiblingTurn {
  private isTaken = false
  private leaveQueue: (() => void) | undefined = undefined
  private readonly waiting = new Set<() => void>()

  constructor(private readonly siblingLock: FifoLock) {}

  /**
   * Calls `start` when the part has its turn, at once if it has it already. The returned function
   * stops waiting.
   */
  take(start: () => void): () => void {
    if (this.isTaken) {
      start()
      return nothing
    }
    this.waiting.add(start)
    this.leaveQueue ??= this.siblingLock.acquire(() => {
      this.isTaken = true
      for (const next of this.waiting) next()
      this.waiting.clear()
    })
    return () => {
      this.waiting.delete(start)
    }
  }

  /** Ends the turn of the part, or stops waiting for it. */
  end(): void {
    if (this.isTaken) this.siblingLock.release()
    else this.leaveQueue?.()
    this.isTaken = false
  }
}
