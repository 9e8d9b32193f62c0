/**
 * The error of a message that breaks the protocol.
 */

/** Error of a message that is malformed, not due, or larger than its bound. */
export class ProtocolViolation extends Error {
  override readonly name = "ProtocolViolation"

  constructor(violation: string) {
    super(`the server broke PostgreSQL's protocol: it ${violation}`)
  }
}
