/**
 * Who may use something that only one may use at a time: first come, first served.
 */
export class FifoLock {
  private taken = false
  private passing = false
  /** Made when somebody has to wait, which in most transactions nobody ever does. */
  private queue: Set<() => void> | undefined

  get isTaken(): boolean {
    return this.taken
  }

  /** Calls `start` when it is its turn, at once where nobody is before it. The returned function leaves the queue. */
  take(start: () => void): () => void {
    if (!this.taken && (this.queue === undefined || this.queue.size === 0)) {
      this.taken = true
      start()
      return nothing
    }
    this.queue ??= new Set()
    const { queue } = this
    queue.add(start)
    return () => {
      queue.delete(start)
    }
  }

  /** Ends a turn. */
  pass(): void {
    this.taken = false
    // a turn that ends at once comes back here: a loop, so that a long queue does not grow the stack
    const { queue } = this
    if (this.passing || queue === undefined) return
    this.passing = true
    try {
      for (const next of queue) {
        queue.delete(next)
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
