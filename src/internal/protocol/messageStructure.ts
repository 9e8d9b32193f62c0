/**
 * Checks of the body of a message by its type. The parser of node-postgres does not check the
 * structure: if a text has no end, the parser reads the next message as a part of the text, or
 * never stops.
 */

/** The letters of the server's messages. */
export const letters = {
  authentication: 0x52,
  parameterStatus: 0x53,
  backendKeyData: 0x4b,
  readyForQuery: 0x5a,
  error: 0x45,
  notice: 0x4e,
  rowDescription: 0x54,
  dataRow: 0x44,
  parameterDescription: 0x74,
  commandComplete: 0x43,
  notification: 0x41,
  copyIn: 0x47,
  copyOut: 0x48,
  copyData: 0x64,
  copyDone: 0x63,
  parseComplete: 0x31,
  bindComplete: 0x32,
  closeComplete: 0x33,
  noData: 0x6e,
  portalSuspended: 0x73,
  emptyQuery: 0x49
} as const

const int16 = (bytes: Buffer, at: number): number => ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0)

/**
 * Returns the position after the text that begins at `at` and its NUL, or -1 if the text has no end
 * before `to`.
 */
const afterText = (bytes: Buffer, at: number, to: number): number => {
  for (let end = at; end < to; end++) if (bytes[end] === 0) return end + 1
  return -1
}

const isTexts = (bytes: Buffer, from: number, to: number, count: number): boolean => {
  let at = from
  for (let i = 0; i < count && at >= 0; i++) at = afterText(bytes, at, to)
  return at === to
}

/**
 * Checks that the bytes are a list of texts that are not empty, with a NUL at the end of the list,
 * such as the fields of a notice.
 */
const isList = (bytes: Buffer, from: number, to: number): boolean => {
  let at = from
  while (at >= 0 && at < to) {
    if (bytes[at] === 0) return at + 1 === to
    at = afterText(bytes, at + 1, to)
  }
  return false
}

/** The largest number of columns: node-postgres reads larger numbers as negative. */
const mostColumns = 0x7fff

const isRowDescription = (bytes: Buffer, from: number, to: number): boolean => {
  const columns = int16(bytes, from)
  if (columns > mostColumns) return false
  let at = from + 2
  for (let i = 0; i < columns; i++) {
    const end = afterText(bytes, at, to)
    if (end < 0) return false
    // table, column, type, size, modifier and format
    at = end + 18
  }
  return at === to
}

/**
 * Checks a row that has arrived as a whole. The check runs for every row, so it reads only lengths.
 */
const isDataRow = (bytes: Buffer, from: number, to: number): boolean => {
  const columns = int16(bytes, from)
  if (columns > mostColumns) return false
  let at = from + 2
  for (let i = 0; i < columns; i++) {
    if (at + 4 > to) return false
    const size =
      ((bytes[at] ?? 0) << 24) | ((bytes[at + 1] ?? 0) << 16) | ((bytes[at + 2] ?? 0) << 8) | (bytes[at + 3] ?? 0)
    at += 4
    if (size > 0) at += size
    // -1 is NULL
    else if (size < -1) return false
  }
  return at === to
}

/** Row that arrives in parts. No part is kept, because a row may be large. */
export class PartialRow {
  /** The number of columns that are still to come; -1 before the number is known. */
  private columnsLeft = -1
  /** The number of bytes of the current value that are still to come. */
  private valueBytesLeft = 0
  private word = 0
  private wordBytes = 0

  /** Adds the next part; returns false if it does not fit the structure of a row. */
  add(bytes: Buffer, from: number, to: number): boolean {
    let at = from
    while (at < to) {
      if (this.valueBytesLeft > 0) {
        const taken = Math.min(this.valueBytesLeft, to - at)
        this.valueBytesLeft -= taken
        at += taken
      } else if (this.columnsLeft === 0) return false
      else if (!this.addByte(bytes[at++] ?? 0)) return false
    }
    return true
  }

  get isWhole(): boolean {
    return this.columnsLeft === 0 && this.valueBytesLeft === 0
  }

  private addByte(byte: number): boolean {
    this.word = (this.word << 8) | byte
    this.wordBytes++
    const { word } = this
    if (this.columnsLeft < 0) {
      if (this.wordBytes < 2) return true
      this.columnsLeft = word
    } else {
      if (this.wordBytes < 4) return true
      if (word > 0) this.valueBytesLeft = word
      this.columnsLeft--
    }
    this.word = 0
    this.wordBytes = 0
    return this.columnsLeft <= mostColumns && word >= -1
  }
}

/** Checks an Authentication message; the driver rejects the kinds that are not listed here. */
const isAuthentication = (bytes: Buffer, from: number, to: number): boolean => {
  const size = to - from
  switch (bytes.readInt32BE(from)) {
    // AuthenticationOk; a password in clear text
    case 0:
    case 3:
      return size === 4
    // a password by MD5, with its salt
    case 5:
      return size === 8
    // the mechanisms of SASL
    case 10:
      return isList(bytes, from + 4, to)
    default:
      return true
  }
}

const statuses = [0x49, 0x54, 0x45]

/**
 * Checks that a body has the structure of its type. Its length must be within the bounds of the
 * type.
 */
export const isWellFormed = (type: number, bytes: Buffer, from: number, to: number): boolean => {
  switch (type) {
    case letters.dataRow:
      return isDataRow(bytes, from, to)
    case letters.commandComplete:
      return isTexts(bytes, from, to, 1)
    case letters.readyForQuery:
      return statuses.includes(bytes[from] ?? 0)
    case letters.rowDescription:
      return isRowDescription(bytes, from, to)
    case letters.error:
    case letters.notice:
      return isList(bytes, from, to)
    case letters.notification:
      return isTexts(bytes, from + 4, to, 2)
    case letters.parameterStatus:
      return isTexts(bytes, from, to, 2)
    case letters.authentication:
      return isAuthentication(bytes, from, to)
    case letters.parameterDescription:
      return to - from === 2 + 4 * int16(bytes, from)
    case letters.copyIn:
    case letters.copyOut:
      return to - from === 3 + 2 * int16(bytes, from + 1)
    default:
      return true
  }
}
