/**
 * What is written to the server: whole messages as buffers, so that a flight of several is one write.
 */
import { serialize } from "pg-protocol"
import { parameter } from "./parameterEncoder.js"

/** One command without parameters and rows, ready to send. */
export interface Step {
  /** Among others in one flight: parse, bind, execute, all unnamed. */
  readonly extended: Buffer
  /** On its own: the simple protocol, half as many messages each way. */
  readonly simple: Buffer
}

const sync = serialize.sync()
const execute = serialize.execute()
const executeAndSync = Buffer.concat([execute, sync])
const describePortal = serialize.describe({ type: "P", name: "" })

/** @internal */
export const syncOnly: Buffer = sync

const constants = new Map<string, Step>()

/** A step whose text is one of few: made once. */
export const constantStep = (text: string): Step => {
  let made = constants.get(text)
  if (made === undefined) {
    made = step(text)
    constants.set(text, made)
  }
  return made
}

/** A step of any text. */
export const step = (text: string): Step => ({
  extended: Buffer.concat([serialize.parse({ text }), serialize.bind({}), execute]),
  simple: serialize.query(text)
})

const bind = (statement: string, portal: string, values: ReadonlyArray<unknown>): Buffer => {
  if (values.length > 65_535) throw new Error(`${values.length} parameters; the protocol allows 65535`)
  // the serializer's own types leave no room for a read-only array; it only reads
  return serialize.bind({ statement, portal, values: values as Array<unknown>, valueMapper: parameter })
}

/** How the main statement of a flight is sent. */
export interface MainStatement {
  readonly text: string
  readonly values: ReadonlyArray<unknown>
  /** The prepared statement's name on the server, empty for none. */
  readonly name: string
  readonly parse: boolean
  readonly describe: boolean
  /** The names of prepared statements to close first. */
  readonly close: () => ReadonlyArray<string>
}

/** A whole flight that ends with the one Sync: if a step fails, the server skips what follows it. */
export const exchange = (before: ReadonlyArray<Step>, main: MainStatement, after: ReadonlyArray<Step>): Buffer => {
  const bound = bind(main.name, "", main.values)
  if (before.length === 0 && after.length === 0 && !main.parse && !main.describe) {
    return Buffer.concat([bound, executeAndSync])
  }
  const parts: Array<Buffer> = []
  for (const name of main.close()) parts.push(serialize.close({ type: "S", name }))
  for (const one of before) parts.push(one.extended)
  if (main.parse) parts.push(serialize.parse({ text: main.text, name: main.name }))
  parts.push(bound)
  if (main.describe) parts.push(describePortal)
  if (after.length === 0) parts.push(executeAndSync)
  else {
    parts.push(execute)
    for (const one of after) parts.push(one.extended)
    parts.push(sync)
  }
  return Buffer.concat(parts)
}

/** Only steps: a BEGIN, a COMMIT, a ROLLBACK TO with its RELEASE. */
export const steps = (all: ReadonlyArray<Step>): Buffer => {
  const [only] = all
  return all.length === 1 && only !== undefined ? only.simple : Buffer.concat([...all.map((one) => one.extended), sync])
}

/** Opens a named portal and fetches its first rows. */
export const openPortal = (
  before: ReadonlyArray<Step>,
  portal: string,
  text: string,
  values: ReadonlyArray<unknown>,
  rows: number
): Buffer =>
  Buffer.concat([
    ...before.map((one) => one.extended),
    serialize.parse({ text }),
    bind("", portal, values),
    serialize.describe({ type: "P", name: portal }),
    serialize.execute({ portal, rows }),
    sync
  ])

/** Fetches the next rows of an open portal. */
export const fetchPortal = (before: ReadonlyArray<Step>, portal: string, rows: number): Buffer =>
  Buffer.concat([...before.map((one) => one.extended), serialize.execute({ portal, rows }), sync])

/** Closes a portal; one that is closed already is no error. */
export const closePortal = (portal: string): Buffer =>
  Buffer.concat([serialize.close({ type: "P", name: portal }), sync])

/** Several commands in one text, by the simple protocol. */
export const simple = (text: string): Buffer => serialize.query(text)

/** Returns the head of a message with data of a COPY. */
export const copyHead = (length: number): Buffer => {
  const head = Buffer.allocUnsafe(5)
  head[0] = 0x64
  head.writeUInt32BE(length + 4, 1)
  return head
}

/** Tells the server that a COPY has all of its data. */
export const copyDone: Buffer = serialize.copyDone()

/** Tells the server that there is no more data for a COPY, and that nothing of it is to be stored. */
export const copyFail = (reason: string): Buffer => serialize.copyFail(reason)

/** Asks the server, on a socket of its own, to cancel what a backend is doing. */
export const cancel = (processId: number, secretKey: number): Buffer => serialize.cancel(processId, secretKey)

/** Asks the server, before anything else on a socket, whether it takes TLS. */
export const sslRequest: Buffer = serialize.requestSsl()
