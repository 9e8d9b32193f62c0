/**
 * One or more commands that are sent in one write and answered together, and how the answer is collected.
 */

import * as clock from "../concurrency/clock.js"
import type { Copy } from "./copyData.js"
import type { DisplayedStatement } from "./inlinedText.js"
import {
  type Client,
  type Field,
  isServerError,
  type Protocol,
  type Query,
  type ServerError,
  toError
} from "./pgDriver.js"
import { ProtocolViolation } from "./protocolLimits.js"
import { makeRowDecoder, type ObjectRow, type RowDecoder } from "./rowDecoder.js"
import type { PreparedStatement } from "./statementCache.js"
import type { TypeNames } from "./typeNames.js"

/** What a statement gave. */
export interface Result {
  command: string | null
  rowCount: number | null
  oid: number | null
  rows: Array<ObjectRow | ReadonlyArray<unknown>>
  fields: ReadonlyArray<Field>
}

/** What a flight was asked to run, for errors. */
export interface RequestedStatement {
  readonly text: string
  /** What errors show in place of the text. */
  readonly shown?: DisplayedStatement | undefined
  /** The handle it was asked of. */
  readonly kind?: "reader" | "writer" | undefined
  /** Where it was written, while call sites are followed. */
  readonly site?: { readonly place: string | undefined } | undefined
}

/**
 * How a flight failed. `acknowledged` counts the commands that the server had completed before, `asked` is the statement
 * that it failed with: none where that was a step around it.
 *
 * - `refused`: the server said no; the connection is fine.
 * - `lost`: the connection is gone; `sent` says whether anything was handed to the socket, `undone` that the server has said that nothing
 *   is left of it.
 * - `unsendable`: the statement could not be written, or its rows could not be read: a parameter or a type's parser threw.
 */
export type Failure =
  | {
      readonly _tag: "refused"
      readonly error: ServerError
      readonly acknowledged: number
      readonly statement?: RequestedStatement | undefined
      /** Whether the server, or the session, takes no writes at all. */
      readonly takesNoWrites?: boolean | undefined
    }
  | {
      readonly _tag: "lost"
      readonly error: Error
      readonly sent: boolean
      readonly undone?: true
      readonly acknowledged: number
      readonly statement?: RequestedStatement | undefined
    }
  | {
      readonly _tag: "unsendable"
      readonly error: Error
      readonly acknowledged: number
      readonly statement?: RequestedStatement | undefined
    }

/** Called once, when the server is ready for the next flight, or when the connection is lost. */
export type OnExchange = (failure: Failure | undefined, flight: Exchange) => void

/**
 * What to send and how to read the answer. It holds on to the whole operation, so it is a class and no object literal, for the reason that
 * `cancellable` gives; and with one shape for all of them it is read faster.
 */
export class ExchangeRequest {
  /** How many steps come before the statement; their rows are nobody's. */
  before = 0
  /** How many come after it. */
  after = 0
  /** Number of commands between these two: 0 if the server is only asked whether it is ready. */
  main = 1
  /** Whether its rows are described. The rows of a step are not, and are dropped. */
  isDescribed = true
  asArrays = false
  /** Its rows are as the server writes them, whatever the program reads its own with. */
  isRaw = false
  /** Several commands in one text, by the simple protocol. */
  simple = false
  prepared: PreparedStatement | undefined = undefined
  /** The columns, where they are known and the server is not asked for them. */
  decoder: RowDecoder | undefined = undefined
  /** The source, or the sink, of the data of a COPY. */
  copy: Copy | undefined = undefined
  /** The pool's own doing, which the program has not asked for. */
  isMaintenance = false
  /** It undoes what has failed. */
  isUndo = false
  /** Whether it proves the server's role. */
  provesRole = false
  statement: RequestedStatement | undefined = undefined

  constructor(
    readonly bytes: () => Buffer,
    readonly onDone: OnExchange
  ) {}
}

/** A result whose rows are as the server has written them, until the types of its columns are known. */
interface UndecodedResult {
  readonly result: Result
  readonly fields: ReadonlyArray<Field>
}

/** The data of a refused COPY that is read, so that its connection may be kept, in bytes. */
const maxDroppedBytes = 1_048_576

const noFields: ReadonlyArray<never> = []
const noResults: ReadonlyArray<never> = []

const blankResult = (): Result => ({ command: null, rowCount: null, oid: null, rows: [], fields: noFields })

/** A flight, as node-postgres sees it. */
export class Exchange implements Query {
  readonly startedAt = clock.now()
  /** Completed commands, the steps before and after the statement among them. */
  acknowledged = 0
  /** Completed parses, in the same order. */
  parsed = 0
  /** Completed binds. */
  bound = 0
  /** What the last step before the statement was answered with. */
  precedingTag = ""
  /** Whether a portal has more rows. */
  suspended = false
  /** Whether it was interrupted and its cancel is not seen to have hit it: what was to follow it is not wanted. */
  isStopped = false
  /** The result of the statement; of a text with several commands, that of the last. */
  result: Result = blankResult()
  private completedResults: Array<Result> | undefined = undefined
  decoder: RowDecoder | undefined
  private bytes: Buffer | undefined
  private serverError: ServerError | undefined
  private localError: Error | undefined
  private undecoded: Array<UndecodedResult> | undefined
  /** The data of a refused COPY so far, in bytes. */
  private droppedBytes = 0

  constructor(
    private readonly client: Client,
    readonly request: ExchangeRequest,
    private readonly onLost: (flight: Exchange, error: Error) => void,
    private readonly types?: TypeNames | undefined
  ) {
    this.decoder = request.decoder
  }

  /** Makes the bytes; a parameter without a text form, or an impossible statement, is an error and nothing is sent. */
  prepare(): Error | undefined {
    try {
      this.bytes = this.request.bytes()
      return undefined
    } catch (cause) {
      return toError(cause)
    }
  }

  /** The results of a text with several commands. */
  get results(): ReadonlyArray<Result> {
    return this.completedResults ?? noResults
  }

  /** How it failed, if it did, once the server is ready again. */
  failure(): Failure | undefined {
    const { acknowledged, statement, serverError, localError } = this
    if (localError !== undefined)
      return { _tag: "unsendable", error: localError, acknowledged, statement: this.request.statement }
    if (serverError !== undefined) return { _tag: "refused", error: serverError, acknowledged, statement }
    return undefined
  }

  /** The statement, if the server is at it. */
  get statement(): RequestedStatement | undefined {
    return this.isStatement() ? this.request.statement : undefined
  }

  /** Whether every command has an answer. If the server is ready before, its answers would be taken for those of the next exchange. */
  get isAnswered(): boolean {
    const { after, before, main, simple } = this.request
    const answered = this.acknowledged + (this.suspended ? 1 : 0)
    return simple ? answered > 0 : answered === before + main + after
  }

  submit(protocol: Protocol): null {
    if (this.bytes !== undefined) protocol.stream.write(this.bytes)
    return null
  }

  /** The numbers of the types whose names have to be looked up before the rows can be read. */
  get unknownTypes(): ReadonlyArray<number> {
    const fields = this.undecoded?.flatMap((one) => one.fields) ?? noFields
    return this.types === undefined ? noFields : [...new Set(this.types.unknown(fields))]
  }

  /** Reads the rows that waited for the names of their types. */
  decodePending(): void {
    const { undecoded } = this
    this.undecoded = undefined
    for (const { fields, result } of undecoded ?? []) {
      const rows = result.rows as Array<ReadonlyArray<string | null>>
      result.rows = []
      result.fields = fields
      this.describe(fields)
      for (const row of rows) this.decode(result, row)
    }
  }

  handleRowDescription(message: { readonly fields: ReadonlyArray<Field> }): void {
    if (this.request.isRaw) return
    if (this.types !== undefined && this.types.unknown(message.fields).length > 0) {
      this.undecoded ??= []
      this.undecoded.push({ result: this.result, fields: message.fields })
    } else this.describe(message.fields)
  }

  private describe(fields: ReadonlyArray<Field>): void {
    try {
      this.decoder = makeRowDecoder(this.client, fields, this.types)
    } catch (cause) {
      // the types are the user's, so may be the fault in them
      this.localError = toError(cause)
      return
    }
    if (this.request.prepared !== undefined) this.request.prepared.decoder = this.decoder
  }

  handleDataRow(message: { readonly fields: ReadonlyArray<string | null> }): void {
    if (this.localError !== undefined || !this.isStatement()) return
    if (this.request.isRaw || this.undecoded?.at(-1)?.result === this.result) this.result.rows.push(message.fields)
    else this.decode(this.result, message.fields)
  }

  private decode(result: Result, values: ReadonlyArray<string | null>): void {
    const shape = this.decoder
    if (this.localError !== undefined || (shape === undefined && !this.request.isDescribed)) return
    // read by other columns it would be a wrong answer
    if (shape?.fields.length !== values.length) {
      const due = shape === undefined ? "none" : shape.fields.length
      this.localError = new ProtocolViolation(`sent a row of ${values.length} columns; ${due} were due`)
      return this.onLost(this, this.localError)
    }
    try {
      result.rows.push(this.request.asArrays ? shape.array(values) : shape.object(values))
    } catch (cause) {
      this.localError = toError(cause)
    }
  }

  handleCommandComplete(message: { readonly text: string }): void {
    if (this.acknowledged === this.request.before - 1) this.precedingTag = message.text
    if (this.isStatement()) {
      const result = this.result
      const { text } = message
      const first = text.indexOf(" ")
      if (first < 0) result.command = text
      else {
        // "INSERT 0 1", "SELECT 1", "CREATE TABLE"
        const last = text.lastIndexOf(" ")
        const rows = Number(text.slice(last + 1))
        result.command = text.slice(0, first)
        if (last > first && text.indexOf(" ", first + 1) === last) result.oid = Number(text.slice(first + 1, last))
        if (!Number.isNaN(rows)) result.rowCount = rows
      }
      if (this.decoder !== undefined) result.fields = this.decoder.fields
      if (this.request.simple) {
        this.completedResults ??= []
        this.completedResults.push(result)
        this.result = blankResult()
        this.decoder = undefined
      }
    }
    this.acknowledged++
  }

  handleEmptyQuery(): void {
    this.acknowledged++
  }

  handlePortalSuspended(): void {
    this.suspended = true
  }

  handleReadyForQuery(): void {
    // the connection listens to the protocol itself, so that it hears of the end of a refused flight too
  }

  handleCopyInResponse(protocol: Protocol): void {
    const { copy } = this.request
    if (copy?._tag === "in") return copy.open()
    this.localError = new Error(
      "COPY ... FROM STDIN has no data as a statement - use sql.copyFrom(table, columns, rows)"
    )
    // what follows in this flight would be taken for the data that is copied
    if (this.request.after > 0) return this.onLost(this, this.localError)
    protocol.sendCopyFail(this.localError.message)
    // in copy mode the server has swallowed the Sync of an extended flight
    if (!this.request.simple) protocol.sync()
  }

  /** Notes that the server is going to send the data of a COPY. */
  handleCopyOutResponse(): void {
    if (this.request.copy?._tag === "out") return
    this.localError = new Error("COPY ... TO STDOUT gives no rows as a statement - use sql.copyTo(query)")
  }

  handleCopyData({ chunk }: { readonly chunk: Buffer }): void {
    const { copy } = this.request
    if (copy?._tag === "out") return copy.receive(chunk)
    this.droppedBytes += chunk.length
    // a refused COPY is not read to its end
    if (this.droppedBytes > maxDroppedBytes)
      this.onLost(this, this.localError ?? new Error("data of a COPY came unasked"))
  }

  handleError(error: Error): void {
    if (isServerError(error) && error.severity !== "FATAL" && error.severity !== "PANIC") this.serverError = error
    else this.onLost(this, error)
  }

  private isStatement(): boolean {
    return this.request.simple || this.acknowledged === this.request.before
  }
}
