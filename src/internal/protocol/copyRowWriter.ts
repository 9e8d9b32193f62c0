/**
 * A writer of rows as lines of a COPY.
 */
import { blockSize } from "./copyData.js"
import { encodeParameter } from "./parameterEncoder.js"
import { thrownMessage } from "./thrownValue.js"

/** Format of lines; a missing option has PostgreSQL's default. */
export interface LineFormat {
  readonly format?: "text" | "csv" | undefined
  readonly delimiter?: string | undefined
  readonly null?: string | undefined
  readonly quote?: string | undefined
  readonly escape?: string | undefined
  /** The encoding of the parts that are bytes. Rows, and parts that are text, are always UTF-8. */
  readonly encoding?: string | undefined
}

/**
 * Error of a row that cannot be written, with the number of the row, counted from 1, and the
 * column.
 */
export class RowInvalid extends Error {
  constructor(
    readonly row: number,
    readonly column: string | undefined,
    reason: string
  ) {
    super(reason)
  }
}

const letters: Readonly<Record<string, string>> = {
  "\b": "\\b",
  "\f": "\\f",
  "\n": "\\n",
  "\r": "\\r",
  "\t": "\\t",
  "\v": "\\v"
}

const quotedForRegExp = (text: string): string => text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&")

/**
 * Function that returns the field for a text; `undefined` if the server would read the field as
 * NULL.
 */
type Field = (text: string) => string | undefined

const textField = (delimiter: string, nullText: string): Field => {
  const special = new RegExp(`[\\\\\\b\\f\\n\\r\\t\\v${quotedForRegExp(delimiter)}]`, "g")
  return (text) => {
    const escaped = text.replace(special, (char) => letters[char] ?? `\\${char}`)
    return escaped === nullText ? undefined : escaped
  }
}

const csvField = (delimiter: string, nullText: string, quote: string, escape: string): Field => {
  const special = new RegExp(`[\\n\\r${quotedForRegExp(delimiter + quote + escape)}]`)
  const inside = new RegExp(`[${quotedForRegExp(quote + escape)}]`, "g")
  return (text) =>
    // the server reads a line of \. alone as the end of the data
    text === "" || text === nullText || text === "\\." || special.test(text)
      ? quote + text.replace(inside, (char) => escape + char) + quote
      : text
}

/**
 * The byte order mark, with which spreadsheets begin CSV in UTF-8. The server would read it as a
 * part of the first field.
 */
const byteOrderMark = Buffer.from("\uFEFF")

const isUtf8 = (encoding: string | undefined): boolean => encoding === undefined || /^utf[-_ ]?8$/i.test(encoding)

const isRecord = (row: unknown): row is Readonly<Record<string, unknown>> => typeof row === "object" && row !== null

/** Writer of the data of a COPY, from rows and from parts that are text already. */
export class RowWriter {
  /** The number of rows so far, without the rows in parts that were text already. */
  rows = 0
  private parts: Array<Uint8Array> = []
  private size = 0
  private lines = ""
  private readonly delimiter: string
  private readonly nullText: string
  private readonly field: Field
  private isBegun = false
  /**
   * The start of the data, while it may be a part of a byte order mark; `undefined` afterwards.
   */
  private start: Uint8Array | undefined

  constructor(
    private readonly columns: ReadonlyArray<string>,
    format: LineFormat,
    /** The names of the columns for the first line, if it is requested. */
    private readonly header: ReadonlyArray<string> | undefined
  ) {
    const isCsv = format.format === "csv"
    this.start = isCsv && isUtf8(format.encoding) ? byteOrderMark.subarray(0, 0) : undefined
    this.delimiter = format.delimiter ?? (isCsv ? "," : "\t")
    this.nullText = format.null ?? (isCsv ? "" : "\\N")
    const quote = format.quote ?? '"'
    this.field = isCsv
      ? csvField(this.delimiter, this.nullText, quote, format.escape ?? quote)
      : textField(this.delimiter, this.nullText)
  }

  /** True if there is enough data for a message. */
  get isFull(): boolean {
    return this.size + this.lines.length >= blockSize
  }

  /**
   * Adds a row, which is an array or an object, or a part that is text or bytes already. Throws
   * `RowInvalid` if a row cannot be written.
   */
  add(row: unknown): void {
    if (typeof row === "string" || row instanceof Uint8Array) {
      this.flushLines()
      this.push(this.withoutMark(typeof row === "string" ? Buffer.from(row) : row))
      return
    }
    this.endStart()
    if (!this.isBegun && this.header !== undefined) this.lines += this.line(this.header)
    this.isBegun = true
    this.rows++
    this.lines += this.line(this.values(row))
  }

  /** Removes and returns the data so far. */
  drain(): Uint8Array {
    this.endStart()
    this.flushLines()
    const { parts } = this
    this.parts = []
    this.size = 0
    return parts.length === 1 && parts[0] !== undefined ? parts[0] : Buffer.concat(parts)
  }

  private values(row: unknown): ReadonlyArray<unknown> {
    const { columns, rows } = this
    if (Array.isArray(row)) {
      if (columns.length > 0 && row.length !== columns.length) {
        throw new RowInvalid(rows, undefined, `it has ${row.length} values for ${columns.length} columns`)
      }
      return row
    }
    if (!isRecord(row))
      throw new RowInvalid(rows, undefined, `it is ${row === null ? "null" : `a ${typeof row}`}, not a row`)
    if (columns.length === 0) throw new RowInvalid(rows, undefined, "an object needs the names of columns")
    return columns.map((column) => {
      if (column in row) return row[column]
      throw new RowInvalid(rows, column, "it is missing: give null for NULL")
    })
  }

  private line(values: ReadonlyArray<unknown>): string {
    return `${values.map((value, i) => this.write(value, this.columns[i])).join(this.delimiter)}\n`
  }

  private write(value: unknown, column: string | undefined): string {
    const text = this.textOf(value, column)
    if (text === undefined) return this.nullText
    const written = this.field(text)
    if (written === undefined) {
      throw new RowInvalid(
        this.rows,
        column,
        `${JSON.stringify(text)} is the text that stands for NULL: choose another \`null\``
      )
    }
    return written
  }

  private textOf(value: unknown, column: string | undefined): string | undefined {
    let encoded: unknown
    try {
      encoded = encodeParameter(value)
    } catch (cause) {
      throw new RowInvalid(this.rows, column, thrownMessage(cause))
    }
    if (encoded === null || encoded === undefined) return undefined
    return Buffer.isBuffer(encoded) ? `\\x${encoded.toString("hex")}` : String(encoded)
  }

  /**
   * Returns a piece of the data without the byte order mark. A piece that may be a part of the mark
   * is held back until the next one.
   */
  private withoutMark(piece: Uint8Array): Uint8Array {
    if (this.start === undefined) return piece
    const all = this.start.length === 0 ? piece : Buffer.concat([this.start, piece])
    const isPart = byteOrderMark.subarray(0, all.length).equals(all.subarray(0, byteOrderMark.length))
    this.start = isPart && all.length < byteOrderMark.length ? all : undefined
    if (this.start !== undefined) return byteOrderMark.subarray(0, 0)
    return isPart ? all.subarray(byteOrderMark.length) : all
  }

  /**
   * Records that no byte order mark can follow, and adds the piece that was held back to the data.
   */
  private endStart(): void {
    if (this.start !== undefined) this.push(this.start)
    this.start = undefined
  }

  private flushLines(): void {
    if (this.lines === "") return
    this.push(Buffer.from(this.lines))
    this.lines = ""
  }

  private push(part: Uint8Array): void {
    this.parts.push(part)
    this.size += part.length
  }
}
