/**
 * The cancel requests of one exchange.
 */

/**
 * Cancel requests of one exchange. The class records if a request may still arrive at the session.
 *
 * PostgreSQL signals the session before it closes the socket of a cancel request, and a session
 * that waits for its next command ignores the signal. So a cancel request cannot hit a later
 * statement after the server has closed the socket of the request and has refused the cancelled
 * statement.
 */
export class CancelRequests {
  private sent = 0
  private pending = 0
  private areReceived = true
  /**
   * True after all requests have arrived without a visible effect. A Sync was then sent, and its
   * answer proves that no signal is pending.
   */
  isProbing = false

  constructor(
    /**
     * Sends a request; calls back when its socket is closed, with true if the server has closed it.
     */
    private readonly send: (timeout: number, callback: (isReceived: boolean) => void) => void,
    /** Called when the sockets of all requests are closed. */
    private readonly onAllClosed: () => void
  ) {}

  request(timeout: number): void {
    this.sent++
    this.pending++
    this.send(timeout, (isReceived) => {
      this.pending--
      this.areReceived &&= isReceived
      if (this.pending === 0) this.onAllClosed()
    })
  }

  get isPending(): boolean {
    return this.pending > 0
  }

  /**
   * Checks if no request can arrive any more. After two requests the result is false: a cancelled
   * statement proves that one of them has arrived, and a pooler in session mode may pass the other
   * one on after it has closed its socket.
   */
  get isOver(): boolean {
    return this.sent === 1 && this.pending === 0 && this.areReceived
  }
}
