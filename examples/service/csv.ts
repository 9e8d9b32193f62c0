import { stat } from "node:fs/promises"
import { pipeline } from "node:stream"
import * as NodeStream from "@effect/platform-node/NodeStream"
import { CsvError, parse } from "csv-parse"
import { Array as Arr, Data, Effect, Either, Option, ParseResult, Schema, Stream } from "effect"
import { openToRead } from "../openToRead.js"
import { Airport } from "./records.js"

/** The largest number of problems. A file with so many problems is not read to its end, because it may be long. */
const mostProblems = 1000

/** The faults of a file, each with its line. */
export class CsvInvalid extends Data.TaggedError("CsvInvalid")<{
  readonly file: string
  readonly problems: ReadonlyArray<string>
}> {
  override get message(): string {
    const shown = this.problems.slice(0, 10).map((problem) => `\n  ${problem}`)
    const rest = this.problems.length < mostProblems ? "" : ", and the rest has not been read"
    const more = this.problems.length > 10 ? `\n  and ${this.problems.length - 10} more${rest}` : ""
    return `${this.file} cannot be imported, and nothing of it is stored:${shown.join("")}${more}`
  }
}

export interface Row {
  readonly airport: Airport
  /** The position that the file has been read to, in bytes. */
  readonly bytes: number
}

interface Line {
  /** The number of the line on which the record begins, as editors count lines. */
  readonly at: number
  readonly fields: ReadonlyArray<string>
  readonly bytes: number
}

const columns = Object.keys(Airport.fields)

const degrees = Schema.compose(
  Schema.String.pipe(Schema.pattern(/^[+-]?\d+(\.\d*)?$/, { message: () => "expected a number like 12.5" })),
  Schema.NumberFromString
)

const decode = Schema.decodeUnknownEither(
  Schema.compose(Schema.Struct({ ...Airport.fields, latitude: degrees, longitude: degrees }), Airport),
  { errors: "all" }
)

/** Quotes a text for a message, and shortens a long one. */
const shown = (text: string): string => JSON.stringify(text.length > 100 ? `${text.slice(0, 100)}...` : text)

const breaks = (text: string): number => text.split(/\r\n|\n|\r/).length - 1

/** Parses a file into records; the number of fields is checked later. Fails with the description of the fault. */
const lines = (file: string): Stream.Stream<Line, string> =>
  Stream.suspend(() => {
    let next = 1
    const parser = parse({
      bom: true,
      max_record_size: 1_000_000,
      record_delimiter: ["\r\n", "\n", "\r"],
      relax_column_count: true,
      // records are numbered here and not by the consumer, because the parser may fail before the consumer has got all of them
      on_record: (fields, { bytes }) => {
        const at = next
        next += 1 + fields.reduce((sum, field) => sum + breaks(field), 0)
        // the parser's types allow only texts in a record
        return [String(at), String(bytes), ...fields]
      }
    })
    // an error of the file is reported by the parser
    pipeline(openToRead(file), parser, () => {})
    // an async iteration would not end before the next line, which a pipe may never have
    const records = NodeStream.fromReadable<string, ReadonlyArray<string>>(
      () => parser,
      (cause) => complaint(cause, next)
    )
    return records.pipe(Stream.map(([at, bytes, ...fields]) => ({ at: Number(at), bytes: Number(bytes), fields })))
  })

const complaints: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file",
  EISDIR: "it is a folder",
  EACCES: "it may not be read",
  CSV_QUOTE_NOT_CLOSED: "a quote is opened and never closed",
  CSV_INVALID_CLOSING_QUOTE: "a quote is in the wrong place",
  INVALID_OPENING_QUOTE: "a quote is in the wrong place",
  CSV_MAX_RECORD_SIZE: "it is longer than a million characters; is a quote missing?"
}

const complaint = (cause: unknown, at: number): string => {
  if (!(cause instanceof Error)) return String(cause)
  const text = ("code" in cause ? complaints[String(cause.code)] : undefined) ?? cause.message
  return cause instanceof CsvError ? `line ${at}: ${text}` : text
}

/** Reader of the records of one file, the header first. It collects the problems of the records. */
class Sheet {
  readonly problems: Array<string> = []
  private header: ReadonlyArray<string> | undefined
  private readonly seen = new Map<string, number>()

  /** True if no further problem is recorded. */
  get isFull(): boolean {
    return this.problems.length >= mostProblems
  }

  take({ at, bytes, fields }: Line): Option.Option<Row> {
    const isBlank = fields.length === 1 && fields[0] === ""
    if (isBlank) return Option.none()
    if (this.header === undefined) return this.readHeader(at, fields)
    const airport = this.read(at, this.header, fields)
    // a file with a problem is not stored, so further rows are only checked
    return airport === undefined || this.problems.length > 0 ? Option.none() : Option.some({ airport, bytes })
  }

  /** Records a problem at the end of the file if it has no header. */
  end(): void {
    if (this.header !== undefined || this.problems.length > 0) return
    this.problems.push(`it is empty; expected the columns ${columns.join(",")}`)
  }

  private readHeader(at: number, record: ReadonlyArray<string>): Option.Option<Row> {
    const missing = Arr.difference(columns, record)
    const unknown = Arr.difference(record, columns)
    if (missing.length > 0) this.problems.push(`line ${at}: the column ${missing.join(", ")} is missing`)
    if (unknown.length > 0) {
      this.problems.push(`line ${at}: there is no column ${unknown.slice(0, 10).map(shown).join(", ")}`)
    }
    if (new Set(record).size < record.length) this.problems.push(`line ${at}: a column is there twice`)
    // under a wrong header every line is wrong
    this.header = this.problems.length === 0 ? record : []
    return Option.none()
  }

  private read(at: number, header: ReadonlyArray<string>, record: ReadonlyArray<string>): Airport | undefined {
    if (header.length === 0) return undefined
    if (record.length !== header.length)
      return this.refuse(at, `it has ${record.length} fields, expected ${header.length}`)
    // the decoder has put U+FFFD in the place of bytes that are not UTF-8, so they cannot be shown
    if (record.some((field) => field.includes("\uFFFD"))) return this.refuse(at, "it is not UTF-8")
    const fields = Object.fromEntries(Arr.zip(header, record))
    const decoded = decode(fields)
    if (Either.isLeft(decoded)) {
      for (const { message, path } of ParseResult.ArrayFormatter.formatErrorSync(decoded.left)) {
        const column = String(path[0])
        this.refuse(at, `${column} is ${shown(fields[column] ?? "")}: ${message}`)
      }
      return undefined
    }
    const { iata } = decoded.right
    const first = this.seen.get(iata)
    if (first !== undefined) return this.refuse(at, `iata ${shown(iata)} is on line ${first} already`)
    this.seen.set(iata, at)
    return decoded.right
  }

  private refuse(at: number, problem: string): undefined {
    if (!this.isFull) this.problems.push(`line ${at}: ${problem}`)
  }
}

/** Reads the rows of a file. Fails with all of its problems, if there are any. */
export const rows = (file: string): Stream.Stream<Row, CsvInvalid> =>
  Stream.suspend(() => {
    const sheet = new Sheet()
    const verdict = Effect.suspend(() => {
      sheet.end()
      return sheet.problems.length === 0 ? Effect.void : Effect.fail(new CsvInvalid({ file, problems: sheet.problems }))
    })
    return lines(file).pipe(
      Stream.map((line) => sheet.take(line)),
      Stream.takeUntil(() => sheet.isFull),
      Stream.filterMap((row) => row),
      Stream.catchAll((problem) => {
        sheet.problems.push(problem)
        return Stream.empty
      }),
      Stream.concat(Stream.drain(Stream.fromEffect(verdict)))
    )
  })

// a pipe can be read only once
const canBeReadAgain = (file: string) =>
  stat(file).then(
    (found) => found.isFile() || found.isDirectory(),
    () => true
  )

/** Reads a file only to find its problems, before anything is started for its rows. */
export const check = (file: string): Effect.Effect<void, CsvInvalid> =>
  Effect.whenEffect(
    Stream.runDrain(rows(file)),
    Effect.promise(() => canBeReadAgain(file))
  )
