/**
 * An exchange: commands that are sent in one write and answered together, and the results that are
 * collected from the answer.
 */

import * as clock from "../concurrency/clock.js"
import type { Copy } from "./copyData.js"
import type { DisplayedStatement } from "./inlinedText.js"
import type { TypeNames } from "./parsersByName.js"
import { type Client, type Field, isServerError, type Protocol, type Query, type ServerError } from "./pgDriver.js"
import { ProtocolViolation } from "./protocolViolation.js"
import { makeRowDecoder, type ObjectRow, type RowDecoder } from "./rowDecoder.js"
import type { PreparedStatement } from "./statementCache.js"
import { toError } from "./thrownValue.js"

/** Result of a statement. */
export interface Result {
  command: string | null
  rowCount: number | null
  oid: number | null
  rows: Array<ObjectRow | ReadonlyArray<unknown>>
  fields: ReadonlyArray<Field>
}

/** Statement of an exchange, as errors report it. */
export interface RequestedStatement {
  readonly text: string
  /** The form that errors show in place of the text. */
  readonly shown?: DisplayedStatement | undefined
  /** The handle that the program has used. */
  readonly kind?: "reader" | "writer" | undefined
  /** The call site, if call sites are recorded. */
  readonly site?: { readonly location: string | undefined } | undefined
}

/**
 * Failure of an exchange. `acknowledged` counts the commands that the server had completed before.
 * `statement` is the statement that failed, or `undefined` if a step before or after it failed.
 *
 * - `refused`: the server has sent an error; the connection is usable.
 * - `lost`: the connection is lost. `sent` is true if anything was written to the socket. `undone`
 *   is true if the server has reported that the statement has no effect.
 * - `unsendable`: the statement could not be written, or its rows could not be read, because the
 *   conversion of a parameter or the parser of a type threw.
 */
export type Failure =
  | {
      readonly _tag: "refused"
      readonly error: ServerError
      readonly acknowledged: number
      readonly statement?: RequestedStatement | undefined
      /** True if the server, or the session, takes no writes at all. */
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

/**
 * Callback that is called once, when the server is ready for the next exchange or the connection is
 * lost.
 */
export type OnExchange = (failure: Failure | undefined, exchange: Exchange) => void

/**
 * Request of an exchange: the messages to send, and the way to read the answer. It lives as long as
 * the operation, so it is a class and no object literal (see "Performance rules" in
 * CONTRIBUTING.md). V8 also reads objects faster if all have one shape.
 */
export class ExchangeRequest {
  /** The number of steps before the statement. Their rows are discarded. */
  before = 0
  /** The number of steps after the statement. */
  after = 0
  /** The number of commands between the steps: 1, or 0 if the exchange has no command. */
  main = 1
  /**
   * True if the server describes the rows. The rows of a step are not described, and are discarded.
   */
  isDescribed = true
  asArrays = false
  /** True if rows keep the texts of the server, regardless of the parsers of the program. */
  isRaw = false
  /** True for a text with several commands, by the simple protocol. */
  isSimple = false
  prepared: PreparedStatement | undefined = undefined
  /** The decoder of the rows, if the columns are known and the server does not describe them. */
  decoder: RowDecoder | undefined = undefined
  /** The data of a COPY, in either direction. */
  copy: Copy | undefined = undefined
  /** True if the pool or the connection has begun the exchange, and not the program. */
  isMaintenance = false
  /** True if the exchange rolls back after a failure. */
  isUndo = false
  /** True if success proves the role of the server. */
  provesRole = false
  statement: RequestedStatement | undefined = undefined

  constructor(
    readonly bytes: () => Buffer,
    readonly onDone: OnExchange
  ) {}
}

/** Result with rows that are not decoded until the types of its columns are known. */
interface UndecodedResult {
  readonly result: Result
  readonly fields: ReadonlyArray<Field>
}

/** The longest data of a rejected COPY that is read in order to keep the connection, in bytes. */
const maxDroppedBytes = 1_048_576

const noFields: ReadonlyArray<never> = []
const noResults: ReadonlyArray<never> = []

const blankResult = (): Result => ({ command: null, rowCount: null, oid: null, rows: [], fields: noFields })

/** Exchange, with the callbacks that node-postgres calls. */
export class Exchange implements Query {
  readonly startedAt = clock.now()
  /** The number of completed commands, including the steps before and after the statement. */
  acknowledged = 0
  /** The number of completed parses, including those of the steps. */
  parsed = 0
  /** The number of completed binds, including those of the steps. */
  bound = 0
  /** The command tag of the last step before the statement. */
  precedingTag = ""
  /** The texts of the last row of the steps after the statement, if they have returned one. */
  stepRow: ReadonlyArray<string | null> | undefined = undefined
  /** True if a portal has more rows. */
  isSuspended = false
  /**
   * True if the exchange was interrupted and its cancel request had no visible effect. Further
   * steps of the operation must not be sent.
   */
  isStopped = false
  /**
   * The result of the statement. For a text with several commands, the result of the command in
   * progress.
   */
  result: Result = blankResult()
  private completedResults: Array<Result> | undefined = undefined
  decoder: RowDecoder | undefined
  private bytes: Buffer | undefined
  private serverError: ServerError | undefined
  private localError: Error | undefined
  private undecoded: Array<UndecodedResult> | undefined
  /** The size of the data of a rejected COPY so far, in bytes. */
  private droppedBytes = 0

  constructor(
    private readonly client: Client,
    readonly request: ExchangeRequest,
    private readonly onLost: (exchange: Exchange, error: Error) => void,
    private readonly types?: TypeNames | undefined
  ) {
    this.decoder = request.decoder
  }

  /**
   * Encodes the messages. Returns the error if a parameter or the statement cannot be encoded; the
   * exchange must not be sent then.
   */
  prepare(): Error | undefined {
    try {
      this.bytes = this.request.bytes()
      return undefined
    } catch (cause) {
      return toError(cause)
    }
  }

  /** Returns the results of a text with several commands. */
  get results(): ReadonlyArray<Result> {
    return this.completedResults ?? noResults
  }

  /** Returns the failure, if there is one, when the server is ready again. */
  failure(): Failure | undefined {
    const { acknowledged, statement, serverError, localError } = this
    if (localError !== undefined)
      return { _tag: "unsendable", error: localError, acknowledged, statement: this.request.statement }
    if (serverError !== undefined) return { _tag: "refused", error: serverError, acknowledged, statement }
    return undefined
  }

  /**
   * Returns the statement while it is the next command to complete; `undefined` while a step is.
   */
  get statement(): RequestedStatement | undefined {
    return this.isStatement() ? this.request.statement : undefined
  }

  /**
   * Checks that every command has an answer. If the server is ready before that, its later answers
   * would be taken for answers to the next exchange.
   */
  get isAnswered(): boolean {
    const { after, before, isSimple, main } = this.request
    const answered = this.acknowledged + (this.isSuspended ? 1 : 0)
    return isSimple ? answered > 0 : answered === before + main + after
  }

  submit(protocol: Protocol): null {
    if (this.bytes !== undefined) protocol.stream.write(this.bytes)
    return null
  }

  /** Returns the OIDs of the types that must be looked up before the rows can be decoded. */
  get unknownTypes(): ReadonlyArray<number> {
    const fields = this.undecoded?.flatMap(({ fields }) => fields) ?? noFields
    return this.types === undefined ? noFields : [...new Set(this.types.unknownIn(fields))]
  }

  /** Decodes the rows that waited for the names of their types. */
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
    if (this.types !== undefined && this.types.unknownIn(message.fields).length > 0) {
      this.undecoded ??= []
      this.undecoded.push({ result: this.result, fields: message.fields })
    } else this.describe(message.fields)
  }

  private describe(fields: ReadonlyArray<Field>): void {
    try {
      this.decoder = makeRowDecoder(this.client, fields, this.types)
    } catch (cause) {
      // the parsers belong to the program and may throw
      this.localError = toError(cause)
      return
    }
    if (this.request.prepared !== undefined) this.request.prepared.decoder = this.decoder
  }

  handleDataRow(message: { readonly fields: ReadonlyArray<string | null> }): void {
    if (this.localError !== undefined) return
    if (!this.isStatement()) {
      if (this.acknowledged > this.request.before) this.stepRow = message.fields
      return
    }
    if (this.request.isRaw || this.undecoded?.at(-1)?.result === this.result) this.result.rows.push(message.fields)
    else this.decode(this.result, message.fields)
  }

  private decode(result: Result, values: ReadonlyArray<string | null>): void {
    const { decoder } = this
    if (this.localError !== undefined || (decoder === undefined && !this.request.isDescribed)) return
    // a row that is decoded by the columns of another result would have wrong values
    if (decoder?.fields.length !== values.length) {
      const expected = decoder === undefined ? "none" : decoder.fields.length
      this.localError = new ProtocolViolation(`sent a row of ${values.length} columns; ${expected} were due`)
      return this.onLost(this, this.localError)
    }
    try {
      result.rows.push(this.request.asArrays ? decoder.array(values) : decoder.object(values))
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
      if (this.request.isSimple) {
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
    this.isSuspended = true
  }

  handleReadyForQuery(): void {
    // the connection listens to this message itself, because the driver does not call this method
    // after an error of the server
  }

  handleCopyInResponse(protocol: Protocol): void {
    const { copy } = this.request
    if (copy?._tag === "in") return copy.open()
    this.localError = new Error(
      "COPY ... FROM STDIN has no data as a statement - use sql.copyFrom(table, columns, rows)"
    )
    // the server would read the following messages of this exchange as data of the COPY
    if (this.request.after > 0) return this.onLost(this, this.localError)
    protocol.sendCopyFail(this.localError.message)
    // in copy mode the server ignores the Sync that an extended exchange has sent already
    if (!this.request.isSimple) protocol.sync()
  }

  /** Rejects the data of a COPY that was sent as a statement. */
  handleCopyOutResponse(): void {
    if (this.request.copy?._tag === "out") return
    this.localError = new Error("COPY ... TO STDOUT returns no rows as a statement - use sql.copyTo(query)")
  }

  handleCopyData({ chunk }: { readonly chunk: Buffer }): void {
    const { copy } = this.request
    if (copy?._tag === "out") return copy.receive(chunk)
    this.droppedBytes += chunk.length
    // a long COPY is not read to its end
    if (this.droppedBytes > maxDroppedBytes)
      this.onLost(this, this.localError ?? new Error("the server sent the data of a COPY that was not requested"))
  }

  handleError(error: Error): void {
    if (isServerError(error) && error.severity !== "FATAL" && error.severity !== "PANIC") this.serverError = error
    else this.onLost(this, error)
  }

  private isStatement(): boolean {
    return this.request.isSimple || this.acknowledged === this.request.before
  }
}
