/**
 * Bounds for what a server may send.
 */

/**
 * How much a server may ask of its client. A server that goes beyond is one whose connection is lost: `Disconnected`, or `ConnectFailed` at
 * login.
 *
 * @since 0.1.0
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

/** Bytes that are no message of PostgreSQL's protocol, or one that is not due, or one beyond its bound. */
export class ProtocolViolation extends Error {
  override readonly name = "ProtocolViolation"

  constructor(what: string) {
    super(`the server broke PostgreSQL's protocol: it ${what}`)
  }
}
