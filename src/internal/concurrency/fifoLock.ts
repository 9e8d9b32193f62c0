/**
 * A lock that callers get in the order in which they have called `acquire`.
 */

/** Lock with one holder at a time and a queue of waiters. */
export class FifoLock {
  private held = false
  private isReleasing = false
  /** Waiters in order, made for the first of them: most transactions never have one. */
  private waiters: Set<() => void> | undefined

  get isHeld(): boolean {
    return this.held
  }

  /**
   * Calls `start` when the caller holds the lock, at once if no waiter is before it. The returned
   * function leaves the queue.
   */
  acquire(start: () => void): () => void {
    if (!this.held && (this.waiters === undefined || this.waiters.size === 0)) {
      this.held = true
      start()
      return nothing
    }
    this.waiters ??= new Set()
    const { waiters } = this
    waiters.add(start)
    return () => {
      waiters.delete(start)
    }
  }

  /** Releases the lock and calls the next waiter. */
  release(): void {
    this.held = false
    // a waiter that releases at once calls this again: the loop keeps a long queue from growing the
    // stack
    const { waiters } = this
    if (this.isReleasing || waiters === undefined) return
    this.isReleasing = true
    try {
      for (const next of waiters) {
        waiters.delete(next)
        this.held = true
        next()
        if (this.held) break
      }
    } finally {
      this.isReleasing = false
    }
  }
}

const nothing = () => {}
