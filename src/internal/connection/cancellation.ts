/**
 * The cancel requests of one exchange, and whether one of them may still arrive.
 *
 * PostgreSQL signals the session before it closes the socket of a cancel request, and a session that waits for its next command ignores the
 * signal. So a cancel whose socket the server has closed, and whose statement was refused for it, hits nothing any more.
 */
export class Cancellation {
  private sent = 0
  private travelling = 0
  private isTaken = true
  /** Whether all that was sent has arrived without being seen to hit, and one more answer of the session is awaited. */
  isProbing = false

  constructor(
    /** Sends a request; calls back when its socket is closed, with whether the server has closed it. */
    private readonly send: (patience: number, closed: (isTaken: boolean) => void) => void,
    /** Called when no request is on its way any more. */
    private readonly settled: () => void
  ) {}

  request(patience: number): void {
    this.sent++
    this.travelling++
    this.send(patience, (isTaken) => {
      this.travelling--
      this.isTaken &&= isTaken
      if (this.travelling === 0) this.settled()
    })
  }

  get isTravelling(): boolean {
    return this.travelling > 0
  }

  /** Whether all that was sent has arrived. Of two, one may be what a pooler in session mode passes on after it has closed the socket. */
  get isOver(): boolean {
    return this.sent === 1 && this.travelling === 0 && this.isTaken
  }
}
