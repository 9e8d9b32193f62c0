/**
 * The callers of one database that wait for a server that is away: in the queue of a pool, or
 * between two attempts to check out a connection. Their number has a limit, so that the waiting
 * work does not grow without end during an outage.
 */
export class OutageWaiters {
  private pausing = 0
  private readonly queues: Array<() => number> = []

  constructor(private readonly limit: number) {}

  /** Adds a pool: `queued` returns the number of its waiters while its server is away, else 0. */
  add(queued: () => number): void {
    this.queues.push(queued)
  }

  /** Checks if another caller may wait. */
  get hasRoom(): boolean {
    return this.queues.reduce((waiting, queued) => waiting + queued(), this.pausing) < this.limit
  }

  enter(): void {
    this.pausing++
  }

  leave(): void {
    this.pausing--
  }
}
