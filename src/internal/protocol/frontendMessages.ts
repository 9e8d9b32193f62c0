/**
 * The messages for the server, as buffers, so that all messages of an exchange are one write.
 */
import { serialize } from "pg-protocol"
import { encodeParameter } from "./parameterEncoder.js"

/** Encoded command without parameters. Its rows are not used. */
export interface Step {
  /** The form for an exchange with other commands: parse, bind and execute, all unnamed. */
  readonly extended: Buffer
  /**
   * The form for an exchange of its own: the simple protocol needs half as many messages each way.
   */
  readonly simple: Buffer
  /** True if the session has prepared the text already, so that the step parses nothing. */
  readonly isParsed?: boolean | undefined
}

/** Returns the number of parses in a list of steps. */
export const parseCount = (steps: ReadonlyArray<Step>): number => {
  let count = 0
  for (const { isParsed } of steps) if (isParsed !== true) count++
  return count
}

const sync = serialize.sync()
const execute = serialize.execute()
const executeAndSync = Buffer.concat([execute, sync])
const describePortal = serialize.describe({ type: "P", name: "" })

/** @internal A Sync, which the server answers with ReadyForQuery. */
export const syncOnly: Buffer = sync

const constants = new Map<string, Step>()

/** Returns the step of a constant text, which is created once. */
export const constantStep = (text: string): Step => {
  let known = constants.get(text)
  if (known === undefined) {
    known = step(text)
    constants.set(text, known)
  }
  return known
}

/** Creates a step of any text. */
export const step = (text: string): Step => ({
  extended: Buffer.concat([serialize.parse({ text }), serialize.bind({}), execute]),
  simple: serialize.query(text)
})

/** Step of a statement that a session keeps prepared. */
export interface PreparedStep {
  /** The first use in a session. */
  readonly first: Step
  /** Every later use. */
  readonly again: Step
}

/**
 * Creates the step of a text that a session keeps prepared under a name. The first use closes an
 * earlier statement of that name, which is no error if there is none.
 */
export const preparedStep = (name: string, text: string): PreparedStep => {
  const run = Buffer.concat([serialize.bind({ statement: name }), execute])
  const simple = serialize.query(text)
  return {
    first: {
      extended: Buffer.concat([serialize.close({ type: "S", name }), serialize.parse({ name, text }), run]),
      simple
    },
    again: { extended: run, simple }
  }
}

/**
 * Creates the step of a text with parameters, which a session keeps prepared under a name, if that
 * is not empty. `isParsed` is false for the first use in a session. `simple` has the values in the
 * text.
 */
export const parameterStep = (
  name: string,
  text: string,
  values: ReadonlyArray<string | null>,
  isParsed: boolean,
  simple: () => string
): Step => {
  const run = Buffer.concat([serialize.bind({ statement: name, values: [...values] }), execute])
  const first = () => Buffer.concat([serialize.close({ type: "S", name }), serialize.parse({ name, text }), run])
  return {
    extended: isParsed ? run : first(),
    get simple() {
      return serialize.query(simple())
    },
    isParsed
  }
}

const bind = (statement: string, portal: string, values: ReadonlyArray<unknown>): Buffer => {
  if (values.length > 65_535) throw new Error(`${values.length} parameters; the protocol allows 65535`)
  // the types of the serializer demand a mutable array, although the serializer only reads the
  // array
  return serialize.bind({ statement, portal, values: values as Array<unknown>, valueMapper: encodeParameter })
}

/** Statement of an exchange, with the messages that it needs. */
export interface MainStatement {
  readonly text: string
  readonly values: ReadonlyArray<unknown>
  /** The name of the prepared statement on the server, empty for none. */
  readonly name: string
  readonly needsParse: boolean
  readonly needsDescribe: boolean
  /** Removes and returns the names of the prepared statements to close first. */
  readonly drainToClose: () => ReadonlyArray<string>
}

/** Encodes an exchange with one Sync at its end: if a step fails, the server skips the rest. */
export const encodeExchange = (
  before: ReadonlyArray<Step>,
  main: MainStatement,
  after: ReadonlyArray<Step>
): Buffer => {
  const bound = bind(main.name, "", main.values)
  if (before.length === 0 && after.length === 0 && !main.needsParse && !main.needsDescribe) {
    return Buffer.concat([bound, executeAndSync])
  }
  const parts: Array<Buffer> = []
  for (const name of main.drainToClose()) parts.push(serialize.close({ type: "S", name }))
  for (const { extended } of before) parts.push(extended)
  if (main.needsParse) parts.push(serialize.parse({ text: main.text, name: main.name }))
  parts.push(bound)
  if (main.needsDescribe) parts.push(describePortal)
  if (after.length === 0) parts.push(executeAndSync)
  else {
    parts.push(execute)
    for (const { extended } of after) parts.push(extended)
    parts.push(sync)
  }
  return Buffer.concat(parts)
}

/** Encodes steps alone: a BEGIN, a COMMIT, a ROLLBACK TO with its RELEASE. */
export const encodeSteps = (all: ReadonlyArray<Step>): Buffer => {
  const [only] = all
  return all.length === 1 && only !== undefined
    ? only.simple
    : Buffer.concat([...all.map(({ extended }) => extended), sync])
}

/** Encodes the opening of a named portal and the fetch of its first rows. */
export const encodeOpenPortal = (
  before: ReadonlyArray<Step>,
  portal: string,
  text: string,
  values: ReadonlyArray<unknown>,
  rows: number
): Buffer =>
  Buffer.concat([
    ...before.map(({ extended }) => extended),
    serialize.parse({ text }),
    bind("", portal, values),
    serialize.describe({ type: "P", name: portal }),
    serialize.execute({ portal, rows }),
    sync
  ])

/** Encodes the fetch of the next rows of an open portal. */
export const encodeFetchPortal = (before: ReadonlyArray<Step>, portal: string, rows: number): Buffer =>
  Buffer.concat([...before.map(({ extended }) => extended), serialize.execute({ portal, rows }), sync])

/** Encodes the closing of a portal; the server reports no error if it is closed already. */
export const encodeClosePortal = (portal: string): Buffer =>
  Buffer.concat([serialize.close({ type: "P", name: portal }), sync])

/** Encodes a text with several commands, by the simple protocol. */
export const encodeSimple = (text: string): Buffer => serialize.query(text)

/** Encodes the header of a message with data of a COPY. */
export const encodeCopyHeader = (length: number): Buffer => {
  const head = Buffer.allocUnsafe(5)
  head[0] = 0x64
  head.writeUInt32BE(length + 4, 1)
  return head
}

/** The message that ends the data of a COPY. */
export const copyDone: Buffer = serialize.copyDone()

/** Encodes the message that fails a COPY, so that the server stores none of its data. */
export const encodeCopyFail = (reason: string): Buffer => serialize.copyFail(reason)

/** Encodes the request to cancel the command of a server process. It needs a socket of its own. */
export const encodeCancel = (processId: number, secretKey: number): Buffer => serialize.cancel(processId, secretKey)

/** The request for TLS, the first message on a socket. */
export const sslRequest: Buffer = serialize.requestSsl()
