/**
 * Bounds for the messages of a server, and the error of a message that breaks the protocol.
 */

/**
 * Bounds for the messages of a server. If a server exceeds a bound, the connection is closed, with
 * `Disconnected`, or with `ConnectFailed` at login.
 *
 * @since 0.2.0
 * @category models
 */
export interface ProtocolLimits {
  /** The largest row, or piece of a COPY, in bytes of the protocol. */
  readonly maxRowBytes: number
  /** All notices, errors and reported settings in the answer to one exchange, in bytes. */
  readonly maxNoticeBytes: number
  /**
   * All messages of a login together, in bytes; and all settings that a server reports in the life
   * of a connection.
   */
  readonly maxStartupBytes: number
  /** The iterations of SCRAM that a server may request; each costs time at login. */
  readonly maxScramIterations: number
}

/** Error of a message that is malformed, not due, or larger than its bound. */
export class ProtocolViolation extends Error {
  override readonly name = "ProtocolViolation"

  constructor(violation: string) {
    super(`the server broke PostgreSQL's protocol: it ${violation}`)
  }
}
