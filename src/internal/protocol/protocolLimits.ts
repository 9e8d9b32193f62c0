/**
 * Bounds for what a server may send.
 */

/**
 * Bounds for the messages of a server. A server that exceeds one loses its connection: `Disconnected`, or `ConnectFailed` at login.
 *
 * @since 0.2.0
 * @category models
 */
export interface ProtocolLimits {
  /** The largest row, or piece of a COPY, in bytes of the protocol. */
  readonly maxRowBytes: number
  /** All notices, errors and reported settings in the answer to one exchange, in bytes. */
  readonly maxNoticeBytes: number
  /** All messages of a login together, in bytes; and all settings that a server reports in the life of a connection. */
  readonly maxStartupBytes: number
  /** The iterations of SCRAM that a server may ask for; each costs time at login. */
  readonly maxScramIterations: number
}

/** A message that is malformed, not due, or larger than its bound. */
export class ProtocolViolation extends Error {
  override readonly name = "ProtocolViolation"

  constructor(what: string) {
    super(`the server broke PostgreSQL's protocol: it ${what}`)
  }
}
