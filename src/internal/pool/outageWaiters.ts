/**
 * The callers of one database that wait for a server that is away: in the queue of a pool, or between two attempts to get a connection.
 * Their number has a limit: an outage must not become a pile-up.
 */
export class OutageWaiters {
  private pausing = 0
  private readonly queues: Array<() => number> = []

  constructor(private readonly most: number) {}

  /** Adds a pool: `queued` returns how many callers queue in it while its server is away, else 0. */
  add(queued: () => number): void {
    this.queues.push(queued)
  }

  /** Checks if another caller may wait. */
  get hasRoom(): boolean {
    return this.queues.reduce((waiting, queued) => waiting + queued(), this.pausing) < this.most
  }

  enter(): void {
    this.pausing++
  }

  leave(): void {
    this.pausing--
  }
}
