/**
 * The check of all bytes that a server sends, before the parser of the driver reads them. Each
 * message must be due, and its length and the structure of its body must be valid. The check makes
 * one pass over the headers of each chunk, and copies messages that arrive in several chunks,
 * except for rows and the data of a COPY.
 */

import type { ProtocolLimits } from "../../ServerConfig.js"
import { isWellFormed, letters, PartialRow } from "./messageStructure.js"
import { ProtocolViolation } from "./protocolViolation.js"

/** The size of a header, which is the letter and the length of a message, in bytes. */
const header = 5

/**
 * The bounds of the length of each message. The length includes its own four bytes. Rows and
 * notices have other upper bounds, which are settings.
 */
const bounds: ReadonlyArray<readonly [type: keyof typeof letters, least: number, most: number]> = [
  ["authentication", 8, 65_536],
  ["parameterStatus", 6, Number.POSITIVE_INFINITY],
  ["backendKeyData", 12, 12],
  ["readyForQuery", 5, 5],
  ["error", 5, Number.POSITIVE_INFINITY],
  ["notice", 5, Number.POSITIVE_INFINITY],
  // 32,767 columns with names of 63 bytes
  ["rowDescription", 6, 4_194_304],
  ["dataRow", 6, Number.POSITIVE_INFINITY],
  ["parameterDescription", 6, 6 + 4 * 65_535],
  ["commandComplete", 5, 65_536],
  // a payload has up to 8000 bytes, or four times as many if the server was built with larger pages
  ["notification", 10, 65_536],
  ["copyIn", 7, 7 + 2 * 65_535],
  ["copyOut", 7, 7 + 2 * 65_535],
  ["copyData", 4, Number.POSITIVE_INFINITY],
  ["copyDone", 4, 4],
  ["parseComplete", 4, 4],
  ["bindComplete", 4, 4],
  ["closeComplete", 4, 4],
  ["noData", 4, 4],
  ["portalSuspended", 4, 4],
  ["emptyQuery", 4, 4]
]

const names = new Map(bounds.map(([type]) => [letters[type] as number, type]))
const least = new Float64Array(256)
// no length is valid for an unknown letter
const most = new Float64Array(256).fill(-1)
for (const [type, from, to] of bounds) {
  least[letters[type]] = from
  most[letters[type]] = to
}

/** The messages that are due in a login. */
const loginMessages: ReadonlySet<number> = new Set([
  letters.authentication,
  letters.parameterStatus,
  letters.backendKeyData,
  letters.error,
  letters.notice,
  letters.readyForQuery
])

/** Describes a message by its header. */
const headerOf = (type: number, length: number): string => {
  const name = names.get(type)
  return `${name === undefined ? `an unknown message (0x${type.toString(16)})` : `a message (${name})`} of ${length} bytes`
}

/**
 * Checks if a message is a notice, an error or the report of a setting. The total size of these
 * messages is limited until the server is ready, because a server may send any number of them.
 */
const countsAsNotice = (type: number): boolean =>
  type === letters.notice || type === letters.error || type === letters.parameterStatus

const nothing = Buffer.alloc(0)

/** The smallest length that results if four printable characters are read as a length. */
const minTextLength = 0x20202020

/** Checks if the first message belongs to another protocol. */
const isOtherProtocol = (type: number, length: number): boolean =>
  !loginMessages.has(type) || length > (most[type] ?? 0) || length >= minTextLength

/** The first bytes of an HTTP answer, as many as a header has. */
const http = Buffer.from("HTTP/")

/** Check of one connection, beginning with its login. */
export class MessageCheck {
  /** The violation in the last chunk; nothing after it may be read. */
  violation: ProtocolViolation | undefined = undefined
  private hasBegun = false
  private isLoggedIn = false
  private isAuthenticated = false
  /** The number of bytes that are left for the login, or for the notices of an exchange. */
  private budget: number
  /** The letter and length of a partial message, as far as they have arrived. */
  private type = 0
  private length = 0
  private headerBytes = 0
  /** The number of missing bytes of the partial message. */
  private remaining = 0
  private row: PartialRow | undefined = undefined
  /** The received part of the body of the partial message, unless it is a row or data of a COPY. */
  private body = nothing
  private bodyBytes = 0

  constructor(private readonly limits: ProtocolLimits) {
    this.budget = limits.maxStartupBytes
  }

  /**
   * Checks a chunk, and returns the number of bytes that may be read: the bytes before a faulty
   * message, or all.
   */
  check(chunk: Buffer): number {
    const end = chunk.length
    let at = this.remaining > 0 || this.headerBytes > 0 ? this.resumeMessage(chunk) : 0
    while (at < end && this.violation === undefined) {
      if (at + header > end) {
        for (let i = at; i < end; i++) this.addHeaderByte(chunk[i] ?? 0)
        return end
      }
      const type = chunk[at] ?? 0
      const length = chunk.readUInt32BE(at + 1)
      const body = at + header
      const next = at + 1 + length
      if (!this.isDue(type, length)) return at
      if (next > end) {
        this.beginPartial(type, length)
        this.addBody(chunk, body, end)
        return this.violation === undefined ? end : at
      }
      if (!isWellFormed(type, chunk, body, next)) return this.rejectMalformed(type, length, at)
      if (type !== letters.dataRow) this.onValid(type, chunk, body)
      at = next
    }
    return at
  }

  /** Continues a partial message; returns the start of the next one, or 0 if this one is faulty. */
  private resumeMessage(chunk: Buffer): number {
    let at = 0
    while (this.headerBytes > 0 && at < chunk.length) {
      this.addHeaderByte(chunk[at++] ?? 0)
      if (this.headerBytes < header) continue
      this.headerBytes = 0
      const { length, type } = this
      if (!this.isDue(type, length)) return 0
      this.beginPartial(type, length)
      if (this.remaining === 0) this.finish()
    }
    if (this.remaining === 0) return this.violation === undefined ? at : 0
    const to = Math.min(chunk.length, at + this.remaining)
    this.addBody(chunk, at, to)
    return this.violation === undefined ? to : 0
  }

  private addHeaderByte(byte: number): void {
    if (this.headerBytes++ === 0) {
      this.type = byte
      this.length = 0
    } else this.length = this.length * 256 + byte
  }

  private beginPartial(type: number, length: number): void {
    this.type = type
    this.length = length
    this.remaining = length - 4
    this.row = type === letters.dataRow ? new PartialRow() : undefined
  }

  private addBody(chunk: Buffer, from: number, to: number): void {
    this.remaining -= to - from
    if (this.row !== undefined) {
      if (!this.row.add(chunk, from, to)) return void this.rejectMalformed(this.type, this.length, 0)
    } else if (this.type !== letters.copyData) this.bufferBody(chunk, from, to)
    if (this.remaining === 0) this.finish()
  }

  /**
   * Adds a part of a body to a buffer that grows with the received bytes, not the announced length.
   */
  private bufferBody(chunk: Buffer, from: number, to: number): void {
    const size = this.bodyBytes + to - from
    if (size > this.body.length) {
      const larger = Buffer.allocUnsafe(Math.min(this.length, Math.max(size, 2 * this.body.length)))
      this.body.copy(larger, 0, 0, this.bodyBytes)
      this.body = larger
    }
    chunk.copy(this.body, this.bodyBytes, from, to)
    this.bodyBytes = size
  }

  /** Checks a partial message when its last byte has arrived. */
  private finish(): void {
    const { body, bodyBytes, length, row, type } = this
    this.row = undefined
    this.body = nothing
    this.bodyBytes = 0
    if (row === undefined ? isWellFormed(type, body, 0, bodyBytes) : row.isWhole) this.onValid(type, body, 0)
    else this.rejectMalformed(type, length, 0)
  }

  /**
   * Checks that a message of this length is due, and rejects it if not. Subtracts its length from
   * the budget if the budget applies to it.
   */
  private isDue(type: number, length: number): boolean {
    if (!this.hasBegun && isOtherProtocol(type, length)) return this.rejectBegin(type, length)
    if (!(length >= (least[type] ?? 0) && length <= (most[type] ?? 0))) {
      return this.reject(headerOf(type, length))
    }
    if (!this.isLoggedIn) return this.isDueAtLogin(type, length)
    const { maxNoticeBytes, maxRowBytes } = this.limits
    if (type === letters.dataRow || type === letters.copyData) {
      return length <= maxRowBytes || this.reject(`a row of ${length} bytes, and maxRowBytes is ${maxRowBytes}`)
    }
    if (countsAsNotice(type)) {
      this.budget -= length
      return this.budget >= 0 || this.reject(`more notices in one answer than maxNoticeBytes, ${maxNoticeBytes}`)
    }
    const isLoginOnly = type === letters.authentication || type === letters.backendKeyData
    return !isLoginOnly || this.reject(`a message of a login (${names.get(type)}) after its end`)
  }

  /**
   * Rejects a first message that does not belong to a login. On a port of another protocol, the
   * bytes that are read as letter and length are often a part of a text.
   */
  private rejectBegin(type: number, length: number): false {
    if (type === http[0] && length === http.readUInt32BE(1)) {
      return this.reject("began with HTTP, so it is no PostgreSQL server")
    }
    return this.reject(`began with ${headerOf(type, length)}, so it is probably no PostgreSQL server`)
  }

  private isDueAtLogin(type: number, length: number): boolean {
    const isEarly = !this.isAuthenticated && (type === letters.readyForQuery || type === letters.backendKeyData)
    if (isEarly || !loginMessages.has(type))
      return this.reject(`a message that is not due in a login (${names.get(type)})`)
    this.hasBegun = true
    this.budget -= length
    const { maxStartupBytes } = this.limits
    return this.budget >= 0 || this.reject(`more bytes in a login than maxStartupBytes, ${maxStartupBytes}`)
  }

  /** Updates the state after a valid message. */
  private onValid(type: number, bytes: Buffer, from: number): void {
    if (type === letters.readyForQuery) {
      this.isLoggedIn = true
      this.budget = this.limits.maxNoticeBytes
    } else if (type === letters.authentication && bytes.readInt32BE(from) === 0) this.isAuthenticated = true
  }

  private rejectMalformed(type: number, length: number, at: number): number {
    this.reject(`a malformed message (${names.get(type)}) of ${length} bytes`)
    return at
  }

  private reject(violation: string): false {
    this.violation = new ProtocolViolation(this.hasBegun ? `sent ${violation}` : violation)
    return false
  }
}
