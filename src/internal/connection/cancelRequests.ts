/**
 * The cancel requests of one exchange.
 */

/**
 * Cancel requests of one exchange. They record if one of them may still arrive.
 *
 * PostgreSQL signals the session before it closes the socket of a cancel request, and a session
 * that waits for its next command ignores the signal. So a cancel request cannot hit another
 * statement if the server has closed its socket and has refused the statement because of it.
 */
export class CancelRequests {
  private sent = 0
  private pending = 0
  private areReceived = true
  /**
   * True if all requests have arrived without a visible effect, and another answer of the session
   * is awaited as a proof.
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
   * Checks if no request can arrive any more. After two requests this is unknown: a pooler in
   * session mode may pass one of them on after it has closed the socket.
   */
  get isOver(): boolean {
    return this.sent === 1 && this.pending === 0 && this.areReceived
  }
}
