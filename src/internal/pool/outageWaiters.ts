/**
 * The callers of one database that wait for an unavailable server, in the queue of a pool or
 * between two attempts to check out a connection. Their number has a limit, so that waiting work
 * does not grow without end during an outage.
 */
export class OutageWaiters {
  private pausing = 0
  private readonly queues = new Set<() => number>()

  constructor(private readonly limit: number) {}

  /**
   * Adds a pool. `queued` returns the number of its waiters during an outage, otherwise 0. The
   * returned function removes it.
   */
  add(queued: () => number): () => void {
    this.queues.add(queued)
    return () => {
      this.queues.delete(queued)
    }
  }

  /** Checks if another caller may wait. */
  get hasRoom(): boolean {
    return [...this.queues].reduce((waiting, queued) => waiting + queued(), this.pausing) < this.limit
  }

  /** Counts a caller that waits between two attempts. */
  enter(): void {
    this.pausing++
  }

  /** Removes a caller that {@link enter} has counted. */
  leave(): void {
    this.pausing--
  }
}
