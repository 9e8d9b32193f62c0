/**
 * The callers of one database that pause between two attempts to get a connection while a server is away. With the callers in a pool's
 * queue they are all that wait through an outage, and their number has a limit: an outage must not become a pile-up.
 */
export class OutageWaiters {
  private pausing = 0

  constructor(private readonly most: number) {}

  /** Whether one more caller may wait beside those in a queue of that length. */
  hasRoom(queued = 0): boolean {
    return this.pausing + queued < this.most
  }

  enter(): void {
    this.pausing++
  }

  leave(): void {
    this.pausing--
  }
}
