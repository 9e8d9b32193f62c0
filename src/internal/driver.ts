/**
 * The parts of node-postgres that this library stands on and that its published types leave out.
 */
import { EventEmitter } from "node:events"
import type { Socket } from "node:net"
import pg from "pg"

/** The protocol object below a client: it emits one event per message of the server. */
export interface Protocol extends EventEmitter {
  readonly stream: Socket
  /** Reads the messages that arrive; called for the socket, or for the TLS that was put over it. */
  attachListeners: (stream: EventEmitter) => void
  readonly sendCopyFail: (message: string) => void
  readonly sync: () => void
}

/** What the server said when it refused something, field by field. */
export interface ServerError extends Error {
  readonly severity?: string
  readonly code?: string
  readonly detail?: string
  readonly hint?: string
  readonly position?: string
  readonly where?: string
  readonly schema?: string
  readonly table?: string
  readonly column?: string
  readonly dataType?: string
  readonly constraint?: string
}

/** What the server said beside its answers, such as a warning. */
export interface Notice {
  readonly message?: string | undefined
  readonly severity?: string | undefined
  readonly code?: string | undefined
  readonly detail?: string | undefined
  readonly hint?: string | undefined
}

/** A column of a result. */
export interface Field {
  readonly name: string
  readonly tableID: number
  readonly columnID: number
  readonly dataTypeID: number
  readonly dataTypeSize: number
  readonly dataTypeModifier: number
  readonly format: string
}

/** What node-postgres calls back on the object that is being queried. */
export interface Query {
  readonly submit: (protocol: Protocol) => Error | null
  readonly handleRowDescription: (message: { readonly fields: ReadonlyArray<Field> }) => void
  readonly handleDataRow: (message: { readonly fields: ReadonlyArray<string | null> }) => void
  readonly handleCommandComplete: (message: { readonly text: string }) => void
  readonly handleEmptyQuery: () => void
  readonly handlePortalSuspended: () => void
  readonly handleReadyForQuery: () => void
  readonly handleCopyInResponse: (protocol: Protocol) => void
  readonly handleCopyData: () => void
  readonly handleError: (error: Error) => void
}

/** A client with the members that the types leave out. */
export interface Client extends EventEmitter {
  readonly connection: Protocol
  readonly processID: number | null
  readonly secretKey: number | null
  readonly connect: (done: (error: Error | null | undefined) => void) => void
  readonly query: (query: Query) => void
  readonly end: () => Promise<void>
  readonly getTransactionStatus: () => "I" | "T" | "E" | null
  readonly getTypeParser: (oid: number, format: "text") => (value: string) => unknown
}

/** A client that is not connected yet. */
export const makeClient = (config: pg.ClientConfig): Client => {
  // the published type lacks `connection`, `processID`, `secretKey` and `getTransactionStatus`, which the class has
  const client = new pg.Client(config) as unknown as Client & {
    readonly connectionParameters: { options: string | undefined }
  }
  // where there are none it would take PGOPTIONS from the environment, which is not asked for anything else either
  client.connectionParameters.options = config.options
  guard(client.connection)
  return client
}

/** What cannot be read is an error of that socket. The driver throws it, out of the socket's event, which would end the process. */
const guard = (protocol: Protocol): void => {
  const attach = protocol.attachListeners
  protocol.attachListeners = (stream) => {
    const reader = new EventEmitter()
    attach.call(protocol, reader)
    stream.on("data", (chunk: Buffer) => {
      try {
        reader.emit("data", chunk)
      } catch (cause) {
        protocol.stream.destroy(cause instanceof Error ? cause : new Error(String(cause)))
      }
    })
  }
}

/** Whether an error came from the server as a message, and not from the socket. */
export const isServerError = (error: Error): error is ServerError => error instanceof pg.DatabaseError
