/**
 * A lock that callers get in the order of their calls of `acquire`.
 */

/** Lock that one caller has at a time, with a queue of waiters. */
export class FifoLock {
  private held = false
  private isReleasing = false
  /**
   * The waiters in order. The set is created for the first waiter, because most transactions have
   * none.
   */
  private waiters: Set<() => void> | undefined

  get isHeld(): boolean {
    return this.held
  }

  /**
   * Calls `onAcquired` when the caller has the lock: at once if the lock is free and no caller
   * waits. The returned function removes the caller from the queue.
   */
  acquire(onAcquired: () => void): () => void {
    if (!this.held && (this.waiters === undefined || this.waiters.size === 0)) {
      this.held = true
      onAcquired()
      return nothing
    }
    this.waiters ??= new Set()
    const { waiters } = this
    waiters.add(onAcquired)
    return () => {
      waiters.delete(onAcquired)
    }
  }

  /** Releases the lock and calls the next waiter. */
  release(): void {
    this.held = false
    // a waiter may release the lock within `next`; the loop then calls the next waiter, so that a
    // long queue does not grow the stack
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
