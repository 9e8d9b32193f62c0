/**
 * The messages of PostgreSQL's protocol, version 3, as the server reads and writes them.
 */

/** Message of the client. */
export type FrontendMessage =
  | { readonly type: "query"; readonly text: string }
  | { readonly type: "parse"; readonly name: string; readonly text: string }
  | {
      readonly type: "bind"
      readonly portal: string
      readonly statement: string
      readonly values: ReadonlyArray<string | null>
    }
  | { readonly type: "describe"; readonly kind: string; readonly name: string }
  | { readonly type: "execute"; readonly portal: string; readonly rows: number }
  | { readonly type: "close"; readonly kind: string; readonly name: string }
  | { readonly type: "sync" }
  | { readonly type: "terminate" }
  | { readonly type: "password"; readonly text: string }

/** First message of a connection. */
export type StartMessage =
  | { readonly type: "startup"; readonly parameters: ReadonlyMap<string, string> }
  | { readonly type: "ssl" }
  | { readonly type: "cancel"; readonly processId: number; readonly secretKey: number }

/** Reader of the fields of a message. */
class Fields {
  private at = 0

  constructor(private readonly bytes: Buffer) {}

  text(): string {
    const end = this.bytes.indexOf(0, this.at)
    const text = this.bytes.toString("utf8", this.at, end)
    this.at = end + 1
    return text
  }

  int16(): number {
    this.at += 2
    return this.bytes.readInt16BE(this.at - 2)
  }

  int32(): number {
    this.at += 4
    return this.bytes.readInt32BE(this.at - 4)
  }

  byte(): string {
    return String.fromCharCode(this.bytes[this.at++] ?? 0)
  }

  value(): string | null {
    const length = this.int32()
    if (length < 0) return null
    this.at += length
    return this.bytes.toString("utf8", this.at - length, this.at)
  }
}

/** Reader of the messages of one connection. */
export class MessageReader {
  private rest: Buffer = Buffer.alloc(0)
  private hasStarted = false

  add(chunk: Buffer): void {
    this.rest = this.rest.length === 0 ? chunk : Buffer.concat([this.rest, chunk])
  }

  /** Returns the first message of a connection, if it has arrived. */
  start(): StartMessage | undefined {
    if (this.hasStarted || this.rest.length < 8) return undefined
    const length = this.rest.readInt32BE(0)
    if (this.rest.length < length) return undefined
    const fields = new Fields(this.rest.subarray(4, length))
    this.rest = this.rest.subarray(length)
    const code = fields.int32()
    if (code === 80_877_103) return { type: "ssl" }
    this.hasStarted = true
    if (code === 80_877_102) return { type: "cancel", processId: fields.int32(), secretKey: fields.int32() }
    if (code !== 196_608) throw new Error(`unknown protocol version ${code}`)
    const parameters = new Map<string, string>()
    for (let name = fields.text(); name !== ""; name = fields.text()) parameters.set(name, fields.text())
    return { type: "startup", parameters }
  }

  /** Returns the next message, if it has arrived. */
  next(): FrontendMessage | undefined {
    if (this.rest.length < 5) return undefined
    const length = this.rest.readInt32BE(1) + 1
    if (this.rest.length < length) return undefined
    const letter = String.fromCharCode(this.rest[0] ?? 0)
    const fields = new Fields(this.rest.subarray(5, length))
    this.rest = this.rest.subarray(length)
    return readMessage(letter, fields)
  }
}

const readMessage = (letter: string, fields: Fields): FrontendMessage => {
  switch (letter) {
    case "Q":
      return { type: "query", text: fields.text() }
    case "P":
      return { type: "parse", name: fields.text(), text: fields.text() }
    case "B":
      return readBind(fields)
    case "D":
      return { type: "describe", kind: fields.byte(), name: fields.text() }
    case "E":
      return { type: "execute", portal: fields.text(), rows: fields.int32() }
    case "C":
      return { type: "close", kind: fields.byte(), name: fields.text() }
    case "S":
      return { type: "sync" }
    case "X":
      return { type: "terminate" }
    case "p":
      return { type: "password", text: fields.text() }
    default:
      throw new Error(`the scripted server does not read the message ${letter}`)
  }
}

const readBind = (fields: Fields): FrontendMessage => {
  const portal = fields.text()
  const statement = fields.text()
  const formats = fields.int16()
  for (let i = 0; i < formats; i++) if (fields.int16() !== 0) throw new Error("a parameter is binary")
  const values: Array<string | null> = []
  for (let count = fields.int16(); count > 0; count--) values.push(fields.value())
  return { type: "bind", portal, statement, values }
}

const message = (letter: string, ...parts: ReadonlyArray<Buffer>): Buffer => {
  const length = parts.reduce((sum, part) => sum + part.length, 4)
  const head = Buffer.allocUnsafe(5)
  head.write(letter, 0, "latin1")
  head.writeInt32BE(length, 1)
  return Buffer.concat([head, ...parts], length + 1)
}

const text = (value: string): Buffer => Buffer.from(`${value}\0`)

const ints16 = (...values: ReadonlyArray<number>): Buffer => {
  const bytes = Buffer.allocUnsafe(2 * values.length)
  values.forEach((value, i) => bytes.writeInt16BE(value, 2 * i))
  return bytes
}

const ints32 = (...values: ReadonlyArray<number>): Buffer => {
  const bytes = Buffer.allocUnsafe(4 * values.length)
  values.forEach((value, i) => bytes.writeInt32BE(value, 4 * i))
  return bytes
}

/** Column of a result: its name and the number of its type. */
export interface Column {
  readonly name: string
  readonly type: number
}

/** Error of the server. */
export interface ServerFailure {
  readonly severity: "ERROR" | "FATAL"
  readonly code: string
  readonly message: string
  readonly schema?: string
  readonly table?: string
}

export const authenticationOk: Buffer = message("R", ints32(0))
export const cleartextPassword: Buffer = message("R", ints32(3))
export const md5Password = (salt: Buffer): Buffer => message("R", ints32(5), salt)
export const parameterStatus = (name: string, value: string): Buffer => message("S", text(name), text(value))
export const backendKeyData = (processId: number, secretKey: number): Buffer =>
  message("K", ints32(processId, secretKey))
export const readyForQuery = (status: string): Buffer => message("Z", Buffer.from(status, "latin1"))
export const parseComplete: Buffer = message("1")
export const bindComplete: Buffer = message("2")
export const closeComplete: Buffer = message("3")
export const noData: Buffer = message("n")
export const portalSuspended: Buffer = message("s")
export const commandComplete = (tag: string): Buffer => message("C", text(tag))
/** The answer to a request for TLS by a server without it. */
export const noTls: Buffer = Buffer.from("N")

export const rowDescription = (columns: ReadonlyArray<Column>): Buffer =>
  message(
    "T",
    ints16(columns.length),
    ...columns.map(({ name, type }) =>
      Buffer.concat([text(name), ints32(0), ints16(0), ints32(type), ints16(-1), ints32(-1), ints16(0)])
    )
  )

export const dataRow = (values: ReadonlyArray<string | null>): Buffer =>
  message(
    "D",
    ints16(values.length),
    ...values.map((value) => {
      if (value === null) return ints32(-1)
      const bytes = Buffer.from(value)
      return Buffer.concat([ints32(bytes.length), bytes])
    })
  )

export const errorResponse = ({ code, message: reason, schema, severity, table }: ServerFailure): Buffer => {
  const fields = [`S${severity}`, `V${severity}`, `C${code}`, `M${reason}`]
  if (schema !== undefined) fields.push(`s${schema}`)
  if (table !== undefined) fields.push(`t${table}`)
  return message("E", ...fields.map(text), Buffer.from([0]))
}
