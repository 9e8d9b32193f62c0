/**
 * The parts of node-postgres that this library uses, with types for those that its published types leave out. No other file imports `pg`.
 */
import { EventEmitter } from "node:events"
import type { Socket } from "node:net"
import type { ConnectionOptions } from "node:tls"
import pg from "pg"
import { FrameCheck } from "./frameCheck.js"
import type { ProtocolLimits } from "./protocolLimits.js"
import { type TlsSettings, tlsOptions } from "./tlsOptions.js"

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
  readonly handleCopyData: (message: { readonly chunk: Buffer }) => void
  readonly handleError: (error: Error) => void
}

/** A client with the members that the types leave out. */
export interface Client extends EventEmitter {
  readonly connection: Protocol
  /** The stream to the server, which is beneath TLS where there is any. */
  readonly transport: Socket
  readonly processID: number | null
  readonly secretKey: number | null
  readonly connect: (done: (error: Error | null | undefined) => void) => void
  readonly query: (query: Query) => void
  readonly end: () => Promise<void>
  readonly getTransactionStatus: () => "I" | "T" | "E" | null
  readonly getTypeParser: (oid: number, format: "text") => (value: string) => unknown
}

/** The whole configuration of a client; nothing comes from the environment or from the driver's own defaults. */
export interface ClientOptions {
  /** Connects by itself, to wherever it leads; the driver has no say in it. */
  readonly stream: Socket
  /** The name that the server's certificate is to have. */
  readonly host: string
  /** The beginning of TLS. */
  readonly tls: TlsSettings
  /** True if the server is to prove that TLS ends at it. */
  readonly bindsChannel: boolean
  readonly database: string
  readonly user: string
  readonly password: string | undefined
  readonly ssl: boolean | ConnectionOptions
  readonly applicationName: string
  /** Settings of the session, as a server takes them at login. */
  readonly options: string
  /** After how many ms of silence TCP asks whether the other side is there. */
  readonly keepAlive: number | undefined
  readonly types: pg.CustomTypesConfig | undefined
  readonly limits: ProtocolLimits
}

/** Thrown by a client whose server asks for a password. */
const noPassword = () => {
  throw new Error("it asks for a password, and none was given")
}

/** What the driver would take from the environment, or from its own defaults, where it is left out or empty. */
const unset = {
  replication: undefined,
  fallback_application_name: undefined,
  statement_timeout: false,
  lock_timeout: false,
  idle_in_transaction_session_timeout: false,
  query_timeout: false
}

/** Removes from a client the settings that come from the environment or from the driver's own defaults. */
export const isolateDriver = (client: object, given: { readonly user: string; readonly options: string }): void => {
  // the published type lacks them
  const { connectionParameters } = client as { readonly connectionParameters: object }
  Object.assign(connectionParameters, unset, given)
  Object.assign(client, { binary: false })
}

/** Creates a client that is not connected yet. Throws where the options make no sense, such as a TLS key that is none. */
export const makeClient = (given: ClientOptions): Client => {
  const { host, keepAlive, limits, options, password, ssl, stream, tls, types, user } = given
  // the published type lacks the last one
  const config: pg.ClientConfig & { readonly scramMaxIterations: number } = {
    // an address, for the driver puts a name in place of the one that TLS is to have
    host: "0.0.0.0",
    port: 1,
    stream: () => stream,
    database: given.database,
    user,
    // without one, or with an empty one, the driver looks for one in the environment and in a file
    password: password || noPassword,
    ssl: ssl === false ? false : tlsOptions(ssl, host, tls),
    sslnegotiation: ssl !== false && tls.isDirectTls ? "direct" : "postgres",
    enableChannelBinding: given.bindsChannel,
    client_encoding: "utf8",
    application_name: given.applicationName,
    options,
    keepAlive: keepAlive !== undefined,
    keepAliveInitialDelayMillis: keepAlive,
    scramMaxIterations: limits.maxScramIterations,
    ...(types === undefined ? {} : { types })
  }
  // the published type lacks `connection`, `processID`, `secretKey` and `getTransactionStatus`, which the class has
  const client = Object.assign(new pg.Client(config) as unknown as Omit<Client, "transport">, { transport: stream })
  isolateDriver(client, { user, options })
  checkMessages(client.connection, limits)
  return client
}

/**
 * Checks what arrives before the driver reads it. What breaks the protocol, or cannot be read, is an error of that socket: the driver would
 * read on for ever, or throw out of the socket's event, which would end the process.
 */
const checkMessages = (protocol: Protocol, limits: ProtocolLimits): void => {
  const attach = protocol.attachListeners
  protocol.attachListeners = (stream) => {
    const reader = new EventEmitter()
    attach.call(protocol, reader)
    const frames = new FrameCheck(limits)
    stream.on("data", (chunk: Buffer) => {
      const sound = frames.check(chunk)
      try {
        // what came before the fault is an answer, such as that of a COMMIT
        if (sound > 0) reader.emit("data", sound === chunk.length ? chunk : chunk.subarray(0, sound))
      } catch (cause) {
        return void protocol.stream.destroy(toError(cause))
      }
      if (frames.violation !== undefined) protocol.stream.destroy(frames.violation)
    })
  }
}

/** Whether an error came from the server as a message, and not from the socket. */
export const isServerError = (error: Error): error is ServerError => error instanceof pg.DatabaseError

/** Returns what was thrown, as an error. */
export const toError = (cause: unknown): Error => (cause instanceof Error ? cause : new Error(String(cause)))

/** Quotes a name as an identifier. The name holds no NUL. */
export const escapeIdentifier = (name: string): string => pg.escapeIdentifier(name)

/** Quotes a text as a literal. */
export const escapeLiteral = (text: string): string => pg.escapeLiteral(text)

/** Converts a value to the text or bytes of a parameter. Dates are not given to it: how it writes them depends on `pg.defaults`. */
export const prepareValue: (value: unknown) => unknown =
  // @types/pg does not know `utils`, which pg exports for exactly this
  (pg as unknown as { readonly utils: { readonly prepareValue: (value: unknown) => unknown } }).utils.prepareValue

/** Reads the text of an array of texts, the type 1009. */
export const readTextArray: (text: string) => unknown = pg.types.getTypeParser(
  1009 as Parameters<typeof pg.types.getTypeParser>[0],
  "text"
)
