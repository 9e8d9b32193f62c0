/**
 * The cancel requests of one exchange.
 */

/**
 * Cancel requests of one exchange. They record if one of them may still arrive.
 *
 * PostgreSQL signals the session before it closes the socket of a cancel request, and a session
 * that waits for its next command ignores the signal. So if the server has closed the socket of a
 * cancel request, and has refused the statement for it, the request cannot hit another statement.
 */
export class CancelAttempts {
  private sent = 0
  private pending = 0
  private areReceived = true
  /**
   * True if all requests have arrived without a visible effect, and another answer of the session
   * is awaited.
   */
  isProbing = false

  constructor(
    /**
     * Sends a request; calls back when its socket is closed, with true if the server has closed it.
     */
    private readonly send: (timeout: number, callback: (isReceived: boolean) => void) => void,
    /** Called when no request is pending any more. */
    private readonly onSettled: () => void
  ) {}

  request(timeout: number): void {
    this.sent++
    this.pending++
    this.send(timeout, (isReceived) => {
      this.pending--
      this.areReceived &&= isReceived
      if (this.pending === 0) this.onSettled()
    })
  }

  get isPending(): boolean {
    return this.pending > 0
  }

  /**
   * Checks if all requests have arrived. After two requests this is unknown: a pooler in session
   * mode may pass one of them on after it has closed the socket.
   */
  get isOver(): boolean {
    return this.sent === 1 && this.pending === 0 && this.areReceived
  }
}
