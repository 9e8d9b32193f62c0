/**
 * Who may use something that only one may use at a time: first come, first served.
 */
export class Turns {
  private taken = false
  private passing = false
  private readonly queue = new Set<() => void>()

  /** Calls `start` when it is its turn, at once where nobody is before it. The returned function leaves the queue. */
  take(start: () => void): () => void {
    if (!this.taken && this.queue.size === 0) {
      this.taken = true
      start()
      return nothing
    }
    this.queue.add(start)
    return () => {
      this.queue.delete(start)
    }
  }

  /** Ends a turn. */
  pass(): void {
    this.taken = false
    // a turn that ends at once comes back here: a loop, so that a long queue does not grow the stack
    if (this.passing) return
    this.passing = true
    try {
      for (const next of this.queue) {
        this.queue.delete(next)
        this.taken = true
        next()
        if (this.taken) break
      }
    } finally {
      this.passing = false
    }
  }
}

const nothing = () => {}
