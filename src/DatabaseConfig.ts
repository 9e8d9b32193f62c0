/**
 * The settings of a database, their defaults, and how URLs are read.
 *
 * @since 0.1.0
 */

import type { ConnectionOptions } from "node:tls"
import type { PgClientConfig } from "@effect/sql-pg/PgClient"
import * as Duration from "effect/Duration"
import * as Either from "effect/Either"
import * as Redacted from "effect/Redacted"
import PgConnectionString from "pg-connection-string"
import { ConfigInvalid } from "./DatabaseError.js"

/**
 * How TLS is used: `false` never, `true` with a verified certificate, or Node's own options.
 *
 * Unless it is given, here or as `sslmode` in the URL, a host that is not loopback or a socket is verified.
 *
 * @since 0.1.0
 * @category models
 */
export type Ssl = boolean | ConnectionOptions

/**
 * One server in parts, for when a URL is not at hand.
 *
 * @since 0.1.0
 * @category models
 */
export interface ServerOptions {
  /** A host name, an address, or the folder of a Unix socket (it starts with `/`). */
  readonly host: string
  /** Default 5432. */
  readonly port?: number | undefined
  readonly database: string
  readonly username: string
  readonly password?: Redacted.Redacted<string> | undefined
  readonly ssl?: Ssl | undefined
}

/**
 * What is at the other end: `"session"`, a server that keeps a session for each connection, or `"transactionPooler"`, a pooler such as
 * PgBouncer in transaction mode, that gives each transaction whatever session is free.
 *
 * To a transaction pooler nothing is said at login that it would have to remember, no statement is prepared under a name, limits are set
 * in each transaction anew, and every statement of a reader is in a read-only transaction of its own, in the same round trip. Where
 * `statementTimeout` or `lockTimeout` is set, a single statement is in a transaction, too, so what refuses to run in one (`VACUUM`,
 * `CREATE INDEX CONCURRENTLY`) fails. `listen` and `reserve` need a session and fail with `ConfigInvalid`; advisory locks of a session,
 * `SET` without `LOCAL` and temporary tables are up to you: nobody notices them, and they fall to whoever comes next.
 *
 * @since 0.1.0
 * @category models
 */
export type Mode = "session" | "transactionPooler"

/**
 * Where a server is: a URL (`postgres://user:password@host:port/database?sslmode=...`) or its parts.
 *
 * The URL may carry `sslmode` (`disable`, `no-verify`, `require`, `verify-ca`, `verify-full`), `application_name` and `pgbouncer`;
 * `require` and stricter ones verify the certificate, `no-verify` encrypts without asking who answers; `pgbouncer=true` in any of a
 * database's URLs is `mode: "transactionPooler"`, unless `mode` says otherwise. Anything else in its query is refused.
 *
 * @since 0.1.0
 * @category models
 */
export type ServerInput = Redacted.Redacted<string> | ServerOptions

/**
 * The rules of a pool. There is one pool per server and purpose.
 *
 * @since 0.1.0
 * @category models
 */
export interface PoolOptions {
  /** Most physical connections of one pool. Default 10. */
  readonly maxConnections?: number | undefined
  /** Connections that are kept open, warm. Default 0. */
  readonly minConnections?: number | undefined
  /** How long a caller waits for a connection, all in all. Default 30 s. */
  readonly acquireTimeout?: Duration.DurationInput | undefined
  /** How long one attempt to connect may take. Default 5 s. */
  readonly connectTimeout?: Duration.DurationInput | undefined
  /** An idle connection is closed after this time; infinity means never. Default 5 min. */
  readonly idleTimeout?: Duration.DurationInput | undefined
  /** A connection is closed after this time, less up to 2.5 %, when it is not in use. Default 30 min. */
  readonly maxLifetime?: Duration.DurationInput | undefined
  /** A connection that was idle for longer is asked for a sign of life before it is handed out. Default 1 s. */
  readonly validateAfterIdle?: Duration.DurationInput | undefined
  /** Which idle connection is handed out: the one used last, or the one unused for longest. Default `"lifo"`. */
  readonly order?: "lifo" | "fifo" | undefined
}

/**
 * The limits that the server keeps for every session. Zero means no limit.
 *
 * @since 0.1.0
 * @category models
 */
export interface SessionOptions {
  /** Default: the server's. */
  readonly statementTimeout?: Duration.DurationInput | undefined
  /** Default: the server's. */
  readonly lockTimeout?: Duration.DurationInput | undefined
  /** Default 1 min: a transaction that forgets to end holds locks and keeps tables from being cleaned. */
  readonly idleInTransactionTimeout?: Duration.DurationInput | undefined
  /** Shown in `pg_stat_activity`. Default `"effect-db"`. */
  readonly applicationName?: string | undefined
}

/**
 * The settings of one named database.
 *
 * @since 0.1.0
 * @category models
 */
export interface DatabaseOptions extends PoolOptions, SessionOptions {
  /** The primary. */
  readonly writer: ServerInput
  /** Its replicas. Default none: readers use the primary, read-only. */
  readonly readers?: ReadonlyArray<ServerInput> | undefined
  /** Default `"session"`. It is for all servers of the database: what is right behind a pooler is right without one. */
  readonly mode?: Mode | undefined
  /** `"verify"` (default): the writer must answer when the layer is built. `"lazy"`: nothing is opened before the first statement. */
  readonly startup?: "verify" | "lazy" | undefined
  /** How long work in flight may go on when the layer is released. Default 5 s. */
  readonly shutdownTimeout?: Duration.DurationInput | undefined
  /** For how long a reader that failed is left out. Default 5 s. */
  readonly readerRetryDelay?: Duration.DurationInput | undefined
  /** Prepared statements that a connection keeps, by the text. 0 prepares none, as does a transaction pooler. Default 256. */
  readonly preparedStatements?: number | undefined
  readonly transformResultNames?: ((name: string) => string) | undefined
  readonly transformQueryNames?: ((name: string) => string) | undefined
  readonly transformJson?: boolean | undefined
  readonly types?: PgClientConfig["types"]
  readonly spanAttributes?: Record<string, unknown> | undefined
}

/**
 * A server's address and credentials, checked and complete.
 *
 * @since 0.1.0
 * @category models
 */
export interface ServerConfig {
  /** `host:port`, as errors and observations name it. */
  readonly name: string
  readonly host: string
  readonly port: number
  readonly database: string
  readonly username: string
  readonly password: Redacted.Redacted<string> | undefined
  readonly ssl: Ssl
}

/**
 * Pool rules with defaults; times in milliseconds.
 *
 * @since 0.1.0
 * @category models
 */
export interface PoolConfig {
  readonly maxConnections: number
  readonly minConnections: number
  readonly acquireTimeout: number
  readonly connectTimeout: number
  readonly idleTimeout: number
  readonly maxLifetime: number
  readonly validateAfterIdle: number
  readonly order: "lifo" | "fifo"
}

/**
 * Session limits with defaults; times in milliseconds, `undefined` where the server decides.
 *
 * @since 0.1.0
 * @category models
 */
export interface SessionConfig {
  readonly mode: Mode
  readonly statementTimeout: number | undefined
  readonly lockTimeout: number | undefined
  readonly idleInTransactionTimeout: number
  readonly applicationName: string
  readonly preparedStatements: number
  readonly types: PgClientConfig["types"]
}

/**
 * Settings, checked and complete.
 *
 * @since 0.1.0
 * @category models
 */
export interface DatabaseConfig {
  readonly name: string
  readonly writer: ServerConfig
  readonly readers: ReadonlyArray<ServerConfig>
  readonly pool: PoolConfig
  readonly session: SessionConfig
  readonly startup: "verify" | "lazy"
  readonly shutdownTimeout: number
  readonly readerRetryDelay: number
  readonly options: DatabaseOptions
}

const isLoopback = (host: string): boolean =>
  host === "localhost" || host === "::1" || host.startsWith("/") || /^127(\.\d{1,3}){3}$/.test(host)

const sslModes: ReadonlyMap<string, Ssl> = new Map<string, Ssl>([
  ["disable", false],
  ["no-verify", { rejectUnauthorized: false }],
  ["require", true],
  ["verify-ca", true],
  ["verify-full", true]
])

class Invalid {
  constructor(
    readonly setting: string,
    readonly given: string,
    readonly expected: string
  ) {}
}

const port = (setting: string, given: number): number => {
  if (!Number.isInteger(given) || given < 1 || given > 65535) {
    throw new Invalid(setting, String(given), "a port from 1 to 65535")
  }
  return given
}

const text = (setting: string, given: string): string => {
  if (given === "") throw new Invalid(setting, "empty", "some text")
  if (given.includes("\0")) throw new Invalid(setting, "text with a NUL character", "text without NUL")
  return given
}

const urlParameters = ["sslmode", "application_name", "host", "pgbouncer"]

const urlForm = "a URL like postgres://user:password@host:5432/database"

const fromUrl = (setting: string, url: string): ServerConfig & { readonly applicationName: string | undefined } => {
  const [base = "", query = ""] = url.split("?", 2)
  // the parts of a malformed URL may be secrets, so none of it is shown
  if (url === "") throw new Invalid(setting, "empty", urlForm)
  if (!/^postgres(ql)?:\/\//.test(base)) throw new Invalid(setting, "not a postgres:// URL", urlForm)
  let parsed: PgConnectionString.ConnectionOptions
  let database: string
  try {
    parsed = PgConnectionString.parse(base)
    // the library leaves some of what is encoded in the database's name as it is
    database = decodeURIComponent(/^[^:]+:\/\/[^/]*\/(.*)$/.exec(base)?.[1] ?? "")
  } catch {
    throw new Invalid(setting, "a malformed URL", urlForm)
  }
  // a password with a question mark that is not encoded looks like a query, so nothing of that is shown either
  if (query.includes("@")) throw new Invalid(setting, "a malformed URL", urlForm)
  const parameters = new URLSearchParams(query)
  for (const key of parameters.keys()) {
    if (!urlParameters.includes(key)) {
      throw new Invalid(setting, "a URL with an unknown parameter", `only ${urlParameters.join(", ")} there`)
    }
  }
  const mode = parameters.get("sslmode")
  if (mode !== null && !sslModes.has(mode)) {
    throw new Invalid(`${setting} (sslmode)`, "unknown", `one of ${[...sslModes.keys()].join(", ")}`)
  }
  if (!["true", "false", null].includes(parameters.get("pgbouncer"))) {
    throw new Invalid(`${setting} (pgbouncer)`, "unknown", "true or false")
  }
  const host = text(`${setting} (host)`, parameters.get("host") ?? parsed.host ?? "")
  const at = port(`${setting} (port)`, Number(parsed.port || 5432))
  return {
    name: host.startsWith("/") ? host : `${host}:${at}`,
    host,
    port: at,
    database: text(`${setting} (database)`, database),
    username: text(`${setting} (user)`, parsed.user ?? ""),
    password: parsed.password ? Redacted.make(parsed.password) : undefined,
    ssl: mode === null ? !isLoopback(host) : (sslModes.get(mode) ?? true),
    applicationName: parameters.get("application_name") ?? undefined
  }
}

/** Whether the URL of a server says that a pooler is in between. */
const saysPooled = (input: ServerInput): boolean =>
  Redacted.isRedacted(input) && new URLSearchParams(Redacted.value(input).split("?", 2)[1]).get("pgbouncer") === "true"

const server = (
  setting: string,
  input: ServerInput
): ServerConfig & { readonly applicationName: string | undefined } => {
  if (Redacted.isRedacted(input)) return fromUrl(setting, Redacted.value(input))
  const host = text(`${setting}.host`, input.host)
  const at = port(`${setting}.port`, input.port ?? 5432)
  return {
    name: host.startsWith("/") ? host : `${host}:${at}`,
    host,
    port: at,
    database: text(`${setting}.database`, input.database),
    username: text(`${setting}.username`, input.username),
    password: input.password,
    ssl: input.ssl ?? !isLoopback(host),
    applicationName: undefined
  }
}

const count = (setting: string, given: number | undefined, otherwise: number, least: number): number => {
  if (given === undefined) return otherwise
  if (!Number.isInteger(given) || given < least)
    throw new Invalid(setting, String(given), `a whole number from ${least}`)
  return given
}

const time = (
  setting: string,
  given: Duration.DurationInput | undefined,
  otherwise: Duration.DurationInput
): number => {
  const decoded = Duration.decodeUnknown(given ?? otherwise)
  if (decoded._tag === "None") throw new Invalid(setting, String(given), 'a duration like "5 seconds"')
  return Duration.toMillis(decoded.value)
}

const limit = (setting: string, given: Duration.DurationInput | undefined): number | undefined =>
  given === undefined ? undefined : time(setting, given, 0)

const finite = (setting: string, given: number): number => {
  if (!Number.isFinite(given)) throw new Invalid(setting, "infinite", "a finite duration")
  return given
}

const parse = (name: string, options: DatabaseOptions): DatabaseConfig => {
  text("name", name)
  const { applicationName, ...writer } = server("writer", options.writer)
  const readers = (options.readers ?? []).map((input, i) => {
    const { applicationName: _, ...reader } = server(`readers[${i}]`, input)
    return reader
  })
  const preparedStatements = count("preparedStatements", options.preparedStatements, 256, 0)
  const isPooled = [options.writer, ...(options.readers ?? [])].some(saysPooled)
  const mode = options.mode ?? (isPooled ? "transactionPooler" : "session")
  const maxConnections = count("maxConnections", options.maxConnections, 10, 1)
  const minConnections = count("minConnections", options.minConnections, 0, 0)
  if (minConnections > maxConnections) {
    throw new Invalid("minConnections", String(minConnections), `at most maxConnections, ${maxConnections}`)
  }
  return {
    name,
    writer,
    readers,
    pool: {
      maxConnections,
      minConnections,
      acquireTimeout: finite("acquireTimeout", time("acquireTimeout", options.acquireTimeout, "30 seconds")),
      connectTimeout: finite("connectTimeout", time("connectTimeout", options.connectTimeout, "5 seconds")),
      idleTimeout: time("idleTimeout", options.idleTimeout, "5 minutes"),
      maxLifetime: time("maxLifetime", options.maxLifetime, "30 minutes"),
      validateAfterIdle: time("validateAfterIdle", options.validateAfterIdle, "1 second"),
      order: options.order ?? "lifo"
    },
    session: {
      mode,
      statementTimeout: limit("statementTimeout", options.statementTimeout),
      lockTimeout: limit("lockTimeout", options.lockTimeout),
      idleInTransactionTimeout: time("idleInTransactionTimeout", options.idleInTransactionTimeout, "1 minute"),
      applicationName: text("applicationName", options.applicationName ?? applicationName ?? "effect-db"),
      // the next transaction may be in another session, which knows none of the names
      preparedStatements: mode === "transactionPooler" ? 0 : preparedStatements,
      types: options.types
    },
    startup: options.startup ?? "verify",
    shutdownTimeout: finite("shutdownTimeout", time("shutdownTimeout", options.shutdownTimeout, "5 seconds")),
    readerRetryDelay: time("readerRetryDelay", options.readerRetryDelay, "5 seconds"),
    options
  }
}

/**
 * Checks settings and fills in the defaults.
 *
 * @example
 * import { Either, Redacted } from "effect"
 * import { DatabaseConfig } from "effect-db"
 *
 * const config = DatabaseConfig.make("app", { writer: Redacted.make("postgres://me:secret@localhost/app") })
 * console.log(Either.map(config, (_) => _.pool.maxConnections)) // right(10)
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (name: string, options: DatabaseOptions): Either.Either<DatabaseConfig, ConfigInvalid> =>
  Either.try({
    try: () => parse(name, options),
    catch: (e) => {
      if (e instanceof Invalid) return new ConfigInvalid({ database: name, ...e })
      throw e
    }
  })
