/**
 * The parts of node-postgres that this library uses, with types for the members that the published
 * types lack. No other layer imports `pg`, except `embedded`, which stands beside the layers.
 */
import { EventEmitter } from "node:events"
import type { Socket } from "node:net"
import type { ConnectionOptions } from "node:tls"
import pg from "pg"
import type { ProtocolLimits } from "../../ServerConfig.js"
import { MessageCheck } from "./messageCheck.js"
import { toError } from "./thrownValue.js"
import { type TlsSettings, tlsOptions } from "./tlsOptions.js"

/** Protocol object below a client, which emits one event per message of the server. */
export interface Protocol extends EventEmitter {
  readonly stream: Socket
  /** Begins to read messages. It is called for the socket, or for the TLS stream over it. */
  attachListeners: (stream: EventEmitter) => void
  readonly sendCopyFail: (message: string) => void
  readonly sync: () => void
}

/** Error message of the server, field by field. */
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

/** Notice of the server, such as a warning. */
export interface Notice {
  readonly message?: string | undefined
  readonly severity?: string | undefined
  readonly code?: string | undefined
  readonly detail?: string | undefined
  readonly hint?: string | undefined
}

/** Column of a result. */
export interface Field {
  readonly name: string
  readonly tableID: number
  readonly columnID: number
  readonly dataTypeID: number
  readonly dataTypeSize: number
  readonly dataTypeModifier: number
  readonly format: string
}

/** Callbacks that node-postgres runs on a submitted query. */
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

/** Client with the members that the published types leave out. */
export interface Client extends EventEmitter {
  readonly connection: Protocol
  /** The stream to the server, below TLS if there is any. */
  readonly transport: Socket
  readonly processID: number | null
  readonly secretKey: number | null
  readonly connect: (done: (error: Error | null | undefined) => void) => void
  readonly query: (query: Query) => void
  readonly end: () => Promise<void>
  readonly getTransactionStatus: () => "I" | "T" | "E" | null
  readonly getTypeParser: (oid: number, format: "text") => (value: string) => unknown
}

/** Options of a client; none comes from the environment or from the defaults of the driver. */
export interface ClientOptions {
  /** The stream, which connects by itself: the driver does not choose the target. */
  readonly stream: Socket
  /** The name that the certificate of the server must have. */
  readonly host: string
  /** The settings of the start of TLS. */
  readonly tls: TlsSettings
  /** True if the server must prove by channel binding that TLS ends at the server itself. */
  readonly bindsChannel: boolean
  readonly database: string
  readonly user: string
  readonly password: string | undefined
  readonly ssl: boolean | ConnectionOptions
  readonly applicationName: string
  /** The settings of the session, in the form of the startup message. */
  readonly options: string
  /** The idle time before TCP sends the first keep-alive probe, in ms. */
  readonly keepAlive: number | undefined
  readonly types: pg.CustomTypesConfig | undefined
  readonly limits: ProtocolLimits
}

/** Throws the error for a server that requests a password although none is set. */
const noPassword = () => {
  throw new Error("it asks for a password, and none was given")
}

/**
 * The settings that the driver takes from the environment or its defaults if they are missing or
 * empty.
 */
const unset = {
  replication: undefined,
  fallback_application_name: undefined,
  statement_timeout: false,
  lock_timeout: false,
  idle_in_transaction_session_timeout: false,
  query_timeout: false
}

/**
 * Removes the settings of a client that come from the environment or from the defaults of the
 * driver, and sets the given user and options.
 */
export const isolateDriver = (client: object, given: { readonly user: string; readonly options: string }): void => {
  // the published type lacks them
  const { connectionParameters } = client as { readonly connectionParameters: object }
  Object.assign(connectionParameters, unset, given)
  Object.assign(client, { binary: false })
}

/**
 * Creates a client that is not connected yet. Throws if options are invalid, such as a malformed
 * TLS key.
 */
export const makeClient = (given: ClientOptions): Client => {
  const { host, keepAlive, limits, options, password, ssl, stream, tls, types, user } = given
  // the published type lacks `scramMaxIterations`
  const config: pg.ClientConfig & { readonly scramMaxIterations: number } = {
    // an address and no name: the driver would put a name into the TLS options, over the name that
    // the certificate must have
    host: "0.0.0.0",
    port: 1,
    stream: () => stream,
    database: given.database,
    user,
    // without a password, or with an empty one, the driver reads the environment and a file
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
  // the published type lacks `connection`, `processID`, `secretKey` and `getTransactionStatus`,
  // which the class has
  const client = Object.assign(new pg.Client(config) as unknown as Omit<Client, "transport">, { transport: stream })
  isolateDriver(client, { user, options })
  checkMessages(client.connection, limits)
  return client
}

/**
 * Checks messages before the driver reads them. A message that breaks the protocol, or that the
 * driver cannot read, becomes an error of the socket. Without the check the driver could read
 * without an end, or throw in an event of the socket, which would end the process.
 */
const checkMessages = (protocol: Protocol, limits: ProtocolLimits): void => {
  const attach = protocol.attachListeners
  protocol.attachListeners = (stream) => {
    const reader = new EventEmitter()
    attach.call(protocol, reader)
    const messageCheck = new MessageCheck(limits)
    stream.on("data", (chunk: Buffer) => {
      const valid = messageCheck.check(chunk)
      try {
        // the messages before the faulty one are valid answers, for example to a COMMIT
        if (valid > 0) reader.emit("data", valid === chunk.length ? chunk : chunk.subarray(0, valid))
      } catch (cause) {
        return void protocol.stream.destroy(toError(cause))
      }
      if (messageCheck.violation !== undefined) protocol.stream.destroy(messageCheck.violation)
    })
  }
}

/** Checks that an error is a message of the server and not a failure of the socket. */
export const isServerError = (error: Error): error is ServerError => error instanceof pg.DatabaseError

/** Quotes a name as an identifier. The name holds no NUL. */
export const escapeIdentifier = (name: string): string => pg.escapeIdentifier(name)

/** Quotes a text as a literal. */
export const escapeLiteral = (text: string): string => pg.escapeLiteral(text)

/**
 * Converts a value to the text or bytes of a parameter. Dates must not be passed: their text
 * depends on `pg.defaults`.
 */
export const prepareValue: (value: unknown) => unknown =
  // @types/pg lacks `utils`, which pg exports for this purpose
  (pg as unknown as { readonly utils: { readonly prepareValue: (value: unknown) => unknown } }).utils.prepareValue

/**
 * Reads the text of a `text[]`. Its OID, 1009, is the same on every server; the published list of
 * OIDs has no arrays.
 */
export const readTextArray: (text: string) => unknown = pg.types.getTypeParser(
  1009 as Parameters<typeof pg.types.getTypeParser>[0],
  "text"
)
