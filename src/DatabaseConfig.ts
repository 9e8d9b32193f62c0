/**
 * The settings of a database, their defaults, and how URLs are read.
 *
 * @since 0.1.0
 */

import type { ConnectionOptions } from "node:tls"
import type { SqlClient } from "@effect/sql/SqlClient"
import type { PgClientConfig } from "@effect/sql-pg/PgClient"
import type * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type * as LogLevel from "effect/LogLevel"
import type * as Redacted from "effect/Redacted"
import { ConfigInvalid } from "./DatabaseError.js"
import type { Configured } from "./internal/config/configured.js"
import { fromEnvironment } from "./internal/config/environment.js"
import type { Host } from "./internal/config/hosts.js"
import { type KnownNames, refuseUnknown } from "./internal/config/knownNames.js"
import {
  boolean,
  count,
  duration,
  echo,
  effect,
  finite,
  Invalid,
  keepAlive,
  limit,
  limitIfAny,
  oneOf,
  parsers,
  positive,
  text
} from "./internal/config/optionParsers.js"
import type { AuthMethod } from "./internal/config/requireAuth.js"
import {
  type Connector,
  isEmptyUrl,
  redactInput,
  type ServerInput,
  type ServerOptions,
  type ServerSettings,
  type ServerSocket,
  type ServerUrl,
  type TargetSessionAttrs
} from "./internal/config/serverInput.js"
import { type Endpoint, fileOf, type ServerConfig, serverConfig } from "./internal/config/serverOptions.js"
import type { SessionParameters } from "./internal/config/sessionParameters.js"
import { checkSsl, type Ssl } from "./internal/config/sslOption.js"
import type { TlsFiles } from "./internal/config/tlsParameters.js"
import type { ProtocolLimits } from "./internal/protocol/protocolLimits.js"
import { concealSecrets } from "./internal/protocol/tlsOptions.js"

export type {
  AuthMethod,
  Configured,
  Connector,
  Endpoint,
  Host,
  ProtocolLimits,
  ServerConfig,
  ServerInput,
  ServerOptions,
  ServerSettings,
  ServerSocket,
  ServerUrl,
  SessionParameters,
  Ssl,
  TargetSessionAttrs,
  TlsFiles
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
 * Parsers by the names of types, from the text of the server: `mood`, or `app.mood` for that of one schema only. Columns of the type are read
 * with it, and the elements of columns of its arrays. Numbers of types are looked up on each server when they are met for the first time.
 *
 * @since 0.2.0
 * @category models
 */
export type TypesByName = Readonly<Record<string, (text: string) => unknown>>

/**
 * How columns are read.
 *
 * @since 0.2.0
 * @category models
 */
export type Types = NonNullable<PgClientConfig["types"]> | TypesByName

/**
 * User and password together.
 *
 * @since 0.1.0
 * @category models
 */
export interface Credentials {
  readonly username: string
  readonly password: Redacted.Redacted<string> | undefined
  /**
   * What tells them from others: connections that were made with the same version remain. Default: user and password themselves. A
   * provider that makes a new token each time gives something that stays, such as the user.
   */
  readonly version?: string | number | undefined
}

/**
 * Work on one session of a pool: its `SqlClient` runs every statement on that physical connection. It has `connectTimeout` for it.
 *
 * @since 0.1.0
 * @category models
 */
export type SessionEffect = Effect.Effect<unknown, unknown, SqlClient>

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
  /**
   * Whether a process may end while connections of the pool are idle: they do not keep it alive, a statement or a transaction does. For
   * scripts that do not close their databases; the server then sees these connections break off. A stream that `socket` gives is let go by
   * its `unref`, and keeps the process alive if it has none. Default `false`.
   */
  readonly idleExit?: boolean | undefined
  /** How many there may be beyond `maxConnections`; they are closed as soon as nobody waits for them. Default 0. */
  readonly maxOverflow?: number | undefined
  /** How long a caller waits for a connection, all in all. Default 30 s. */
  readonly acquireTimeout?: Duration.DurationInput | undefined
  /**
   * How many callers of the database may wait for a server that is away; each waits until `acquireTimeout`, or its own timeout. The rest
   * fail at once with `PoolExhausted`, for the reason `outage`. Default 1000.
   */
  readonly maxOutageWaiters?: number | undefined
  /**
   * How long one attempt to connect to a server may take, all its hosts together. It comes before `connect_timeout` of a connection string,
   * which is for each host. Default 5 s.
   */
  readonly connectTimeout?: Duration.DurationInput | undefined
  /** An idle connection is closed after this time; infinity means never. Default 5 min. */
  readonly idleTimeout?: Duration.DurationInput | undefined
  /** A connection is closed after this time, less up to 2.5 %, when it is not in use. Default 30 min. */
  readonly maxLifetime?: Duration.DurationInput | undefined
  /** A connection that was idle for longer is asked for a sign of life before it is handed out. Default 1 s. */
  readonly validateAfterIdle?: Duration.DurationInput | undefined
  /** Which idle connection is handed out: the one used last, or the one unused for longest. Default `"lifo"`. */
  readonly order?: "lifo" | "fifo" | undefined
  /**
   * Whether connections are kept and shared.
   *
   * - `"pooled"` (default).
   * - `"none"`: a connection per checkout, closed after it; `maxConnections` is how many there may be at once.
   * - `"single"`: one connection, which all take in turns.
   * - `"assertSingle"`: one connection; a second checkout at the same time fails, saying where the first was made. For tests.
   */
  readonly strategy?: "pooled" | "none" | "single" | "assertSingle" | undefined
  /**
   * How long callers may queue while clearly more of them come than can be served; who has waited longer then gets `PoolExhausted` at
   * once, so that the others are served fast. A burst that drains is not affected, nor is a fixed number of fibers. Infinity never sends
   * anybody away. Default 50 ms.
   */
  readonly queueTarget?: Duration.DurationInput | undefined
  /**
   * What is done with a connection that comes back, beside closing it where it is busy or in a transaction. `"discardAll"` drops what the
   * session has set, prepared, locked, listened to and stored temporarily, and does `onConnect` again. Where it fails the connection is
   * closed. Default `"none"`.
   */
  readonly resetOnReturn?: "none" | "discardAll" | SessionEffect | undefined
  /** Done with each new connection before it is used. Where it fails, so does the connect. */
  readonly onConnect?: SessionEffect | undefined
  /** Done with a connection before each checkout. Where it fails the connection is closed and another one is tried. */
  readonly onCheckout?: SessionEffect | undefined
  /**
   * A connection that is held for longer is reported, with the fiber that holds it and the place in the program. Noting these down costs
   * some microseconds for each statement. Default infinity: nothing is reported.
   */
  readonly leakThreshold?: Duration.DurationInput | undefined
}

/**
 * The limits that the server keeps for every session. Zero means no limit.
 *
 * @since 0.1.0
 * @category models
 */
export interface SessionOptions {
  /**
   * Default: the server's. Where it is set, a server that says nothing for a second more is given up, as `Disconnected`; one that may be
   * committing, which the limit does not count for, only if it shows no sign of life.
   */
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
  /**
   * User and password, asked for anew for each physical connection, instead of those in `writer` and `readers`. When others are given
   * than before, connections made with the old ones are replaced bit by bit; none in use is cut. A server that refuses what was given
   * is tried once more with what is given then.
   */
  readonly credentials?: Effect.Effect<Credentials, unknown> | undefined
  /** A file that holds the password for every server that has none; it is read again for each new physical connection. */
  readonly passwordFile?: string | undefined
  /** TLS for every server that has no `ssl` of its own, instead of what its URL says. */
  readonly ssl?: Ssl | undefined
  /** Default `"session"`. It is for all servers of the database: what is right behind a pooler is right without one. */
  readonly mode?: Mode | undefined
  /** `"verify"` (default): the writer must answer when the layer is built. `"lazy"`: nothing is opened before the first statement. */
  readonly startup?: "verify" | "lazy" | undefined
  /** How long work in flight may go on when the layer is released. Default 5 s. */
  readonly shutdownTimeout?: Duration.DurationInput | undefined
  /**
   * After how much silence TCP asks the other side whether it is still there, on every connection: a network that has died without a word
   * is noticed some seconds later, and no firewall forgets an idle connection before. At least 1 s, or `false` for never. Default 30 s.
   */
  readonly keepAlive?: Duration.DurationInput | false | undefined
  /** For how long a reader that failed is left out. Default 5 s. */
  readonly readerRetryDelay?: Duration.DurationInput | undefined
  /** How often the connection that listens is asked for a sign of life; infinity means never. Default 30 s. */
  readonly listenHeartbeat?: Duration.DurationInput | undefined
  /** Prepared statements that a connection keeps, by the text. 0 prepares none, as does a transaction pooler. Default 256. */
  readonly preparedStatements?: number | undefined
  /**
   * The largest row, or piece of a COPY, that a server may send, in bytes of the protocol. A statement that is answered with more is
   * `Disconnected`. A row is held twice while it arrives.
   *
   * @default 268435456 (256 MiB)
   */
  readonly maxRowBytes?: number | undefined
  /**
   * Bytes of notices, errors and reported settings that a server may send in answer to one exchange. A statement that is answered with more
   * is `Disconnected`.
   *
   * @default 67108864 (64 MiB)
   */
  readonly maxNoticeBytes?: number | undefined
  /**
   * Bytes that a server may send in a login, and bytes of reported settings in the life of a connection. A server that sends more is `ConnectFailed` with the reason `protocol`.
   *
   * @default 1048576 (1 MiB)
   */
  readonly maxStartupBytes?: number | undefined
  /**
   * Iterations of SCRAM that a server may ask for (`scram_iterations`). Each login computes them: a million take about a second of one
   * of Node's threads. A server that asks for more is `ConnectFailed` with the reason `authentication`.
   *
   * @default 1000000
   */
  readonly maxScramIterations?: number | undefined
  readonly transformResultNames?: ((name: string) => string) | undefined
  readonly transformQueryNames?: ((name: string) => string) | undefined
  readonly transformJson?: boolean | undefined
  /**
   * Parsers of columns: node-postgres' own kind, by number, or {@link TypesByName}. Default: what node-postgres does.
   */
  readonly types?: Types | undefined
  readonly spanAttributes?: Record<string, unknown> | undefined
  /**
   * Whether every observation is logged, by the loggers that are in place where the layer is built: `true` logs all, each at its own
   * level, a level only those of at least that one. Trouble is a warning, the life of connections is info, single transactions and waits
   * are debug; the program's minimum log level holds as well. Default `false`.
   */
  readonly echo?: boolean | LogLevel.Literal | undefined
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
  readonly idleExit: boolean
  readonly maxOverflow: number
  readonly acquireTimeout: number
  readonly maxOutageWaiters: number
  /** The writer's; a reader's is that of its server. */
  readonly connectTimeout: number
  readonly idleTimeout: number
  readonly maxLifetime: number
  readonly validateAfterIdle: number
  readonly order: "lifo" | "fifo"
  readonly strategy: "pooled" | "none" | "single" | "assertSingle"
  /** Infinity where nobody is ever sent away. */
  readonly queueTarget: number
  /** Infinity where nothing is reported. */
  readonly leakThreshold: number
}

/**
 * Session limits with defaults; times in whole milliseconds, 0 for none, `undefined` where the server decides.
 *
 * @since 0.1.0
 * @category models
 */
export interface SessionConfig {
  readonly mode: Mode
  readonly statementTimeout: number | undefined
  readonly lockTimeout: number | undefined
  readonly idleInTransactionTimeout: number | undefined
  readonly applicationName: string
  /** `undefined` where TCP keeps silent. */
  readonly keepAlive: number | undefined
  readonly preparedStatements: number
  readonly limits: ProtocolLimits
  readonly types: Types | undefined
  /** The settings of sessions in the server's connection string, as `-c name=value`. */
  readonly startupOptions?: string
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
  /** The least level at which observations are logged. */
  readonly echo: LogLevel.LogLevel
  readonly listenHeartbeat: number
  readonly options: DatabaseOptions
}

/** How many connections there are, by what kind of pool it is. */
const limits = (options: DatabaseOptions) => {
  const strategy = oneOf("strategy", options.strategy, "pooled", "none", "single", "assertSingle")
  const isOne = strategy === "single" || strategy === "assertSingle"
  const maxConnections = count("maxConnections", options.maxConnections, isOne ? 1 : 10, 1)
  const minConnections = count("minConnections", options.minConnections, 0, 0)
  const maxOverflow = count("maxOverflow", options.maxOverflow, 0, 0)
  if (isOne && maxConnections + maxOverflow > 1) {
    throw new Invalid("maxConnections", String(maxConnections + maxOverflow), `1 with the strategy ${strategy}`)
  }
  const most = strategy === "none" ? 0 : maxConnections
  if (minConnections > most) throw new Invalid("minConnections", String(minConnections), `at most ${most} here`)
  return { strategy, maxConnections, minConnections, maxOverflow }
}

/** Every option; one that is missing here does not compile. */
const known: KnownNames<DatabaseOptions> = {
  maxConnections: true,
  minConnections: true,
  idleExit: true,
  maxOverflow: true,
  acquireTimeout: true,
  maxOutageWaiters: true,
  connectTimeout: true,
  idleTimeout: true,
  maxLifetime: true,
  validateAfterIdle: true,
  order: true,
  strategy: true,
  queueTarget: true,
  resetOnReturn: true,
  onConnect: true,
  onCheckout: true,
  leakThreshold: true,
  statementTimeout: true,
  lockTimeout: true,
  idleInTransactionTimeout: true,
  applicationName: true,
  writer: true,
  readers: true,
  credentials: true,
  passwordFile: true,
  ssl: true,
  mode: true,
  startup: true,
  shutdownTimeout: true,
  keepAlive: true,
  readerRetryDelay: true,
  listenHeartbeat: true,
  preparedStatements: true,
  maxRowBytes: true,
  maxNoticeBytes: true,
  maxStartupBytes: true,
  maxScramIterations: true,
  transformResultNames: true,
  transformQueryNames: true,
  transformJson: true,
  types: true,
  spanAttributes: true,
  echo: true
}

/** The words of other libraries for the options. */
const synonyms: Readonly<Record<string, string>> = {
  url: "writer",
  connectionString: "writer",
  host: "writer",
  replicas: "readers",
  max: "maxConnections",
  poolSize: "maxConnections",
  maxPoolSize: "maxConnections",
  min: "minConnections",
  idleTimeoutMillis: "idleTimeout",
  connectionTimeoutMillis: "connectTimeout",
  connectionTTL: "maxLifetime",
  debug: "echo",
  pgbouncer: "mode",
  tls: "ssl"
}

/** Returns a server with what its connection string says and no option overrides. */
const belowOptions = (
  { isPooled: _, ...given }: ReturnType<typeof serverConfig>,
  options: DatabaseOptions
): ServerConfig => {
  const { applicationName, keepAlive, ...own } = given.own
  const limitsIdleness = /\bidle_in_transaction_session_timeout\b/.test(own.startupOptions ?? "")
  return {
    ...given,
    own: {
      ...own,
      // the default gives way to the connection string
      ...(limitsIdleness && options.idleInTransactionTimeout === undefined
        ? { idleInTransactionTimeout: undefined }
        : {}),
      ...(applicationName === undefined || options.applicationName !== undefined ? {} : { applicationName }),
      ...("keepAlive" in given.own && options.keepAlive === undefined ? { keepAlive } : {})
    }
  }
}

/** The readers that are given; an empty variable of the environment names none. */
const readersOf = (readers: DatabaseOptions["readers"]): ReadonlyArray<ServerInput> => {
  if (readers === undefined) return []
  if (!Array.isArray(readers)) throw new Invalid("readers", "no list", "a list of URLs or servers in parts")
  return readers.length === 1 && isEmptyUrl(readers[0]) ? [] : readers
}

/** Bytes that every login takes. */
const leastStartup = 16_384

const protocolLimits = (options: DatabaseOptions): ProtocolLimits => ({
  maxRowBytes: count("maxRowBytes", options.maxRowBytes, 268_435_456, 1024),
  maxNoticeBytes: count("maxNoticeBytes", options.maxNoticeBytes, 67_108_864, leastStartup),
  maxStartupBytes: count("maxStartupBytes", options.maxStartupBytes, 1_048_576, leastStartup),
  maxScramIterations: count("maxScramIterations", options.maxScramIterations, 1_000_000, 4096)
})

const parse = (name: string, options: DatabaseOptions): DatabaseConfig => {
  text("name", name)
  refuseUnknown("", options, known, synonyms)
  const hasCredentials = options.credentials !== undefined
  checkSsl("ssl", options.ssl)
  const common = {
    passwordFile: fileOf("passwordFile", options.passwordFile, hasCredentials),
    hasCredentials,
    ssl: options.ssl,
    connectTimeout:
      options.connectTimeout === undefined
        ? undefined
        : positive("connectTimeout", finite("connectTimeout", duration("connectTimeout", options.connectTimeout, 0)))
  }
  const givenWriter = serverConfig("writer", options.writer, "writer", common)
  const givenReaders = readersOf(options.readers).map((input, i) =>
    serverConfig(`readers[${i}]`, input, "reader", common)
  )
  const writer = belowOptions(givenWriter, options)
  const readers = givenReaders.map((reader) => belowOptions(reader, options))
  if (typeof options.resetOnReturn === "string") oneOf("resetOnReturn", options.resetOnReturn, "none", "discardAll")
  else effect("resetOnReturn", options.resetOnReturn)
  effect("credentials", options.credentials)
  effect("onConnect", options.onConnect)
  effect("onCheckout", options.onCheckout)
  const preparedStatements = count("preparedStatements", options.preparedStatements, 256, 0)
  const isPooled = [givenWriter, ...givenReaders].some((server) => server.isPooled)
  const mode = oneOf(
    "mode",
    options.mode ?? (isPooled ? "transactionPooler" : "session"),
    "session",
    "transactionPooler"
  )
  if (mode === "transactionPooler" && options.resetOnReturn === "discardAll") {
    throw new Invalid(
      "resetOnReturn",
      "discardAll",
      '"none" behind a transaction pooler, where there is no session to reset'
    )
  }
  return {
    name,
    writer,
    readers,
    pool: {
      ...limits(options),
      idleExit: boolean("idleExit", options.idleExit),
      acquireTimeout: finite("acquireTimeout", duration("acquireTimeout", options.acquireTimeout, "30 seconds")),
      maxOutageWaiters: count("maxOutageWaiters", options.maxOutageWaiters, 1000, 0),
      connectTimeout: writer.connectTimeout,
      idleTimeout: duration("idleTimeout", options.idleTimeout, "5 minutes"),
      maxLifetime: positive("maxLifetime", duration("maxLifetime", options.maxLifetime, "30 minutes")),
      validateAfterIdle: duration("validateAfterIdle", options.validateAfterIdle, "1 second"),
      order: oneOf("order", options.order, "lifo", "fifo"),
      queueTarget: positive("queueTarget", duration("queueTarget", options.queueTarget, "50 millis")),
      leakThreshold: positive("leakThreshold", duration("leakThreshold", options.leakThreshold, Duration.infinity))
    },
    session: {
      mode,
      statementTimeout: limitIfAny("statementTimeout", options.statementTimeout),
      lockTimeout: limitIfAny("lockTimeout", options.lockTimeout),
      idleInTransactionTimeout: limit("idleInTransactionTimeout", options.idleInTransactionTimeout ?? "1 minute"),
      applicationName: text("applicationName", options.applicationName ?? writer.own.applicationName ?? "effect-db"),
      keepAlive: keepAlive(options.keepAlive),
      // the next transaction may be in another session, which knows none of the names
      preparedStatements: mode === "transactionPooler" ? 0 : preparedStatements,
      limits: protocolLimits(options),
      types: parsers("types", options.types)
    },
    startup: oneOf("startup", options.startup, "verify", "lazy"),
    shutdownTimeout: finite("shutdownTimeout", duration("shutdownTimeout", options.shutdownTimeout, "5 seconds")),
    readerRetryDelay: duration("readerRetryDelay", options.readerRetryDelay, "5 seconds"),
    echo: echo(options.echo),
    listenHeartbeat: positive("listenHeartbeat", duration("listenHeartbeat", options.listenHeartbeat, "30 seconds")),
    options: {
      ...options,
      writer: redactInput(options.writer),
      readers: options.readers?.map(redactInput),
      ...(options.ssl === undefined ? {} : { ssl: concealSecrets(options.ssl) })
    }
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

/**
 * TLS of which some options come from `Config`.
 *
 * @since 0.2.0
 * @category models
 */
export type ConfigSsl = Ssl | Config.Config<Ssl | undefined> | Configured<ConnectionOptions>

type ConfigParts<A extends ServerSettings> = Configured<Omit<A, "ssl">> & { readonly ssl?: ConfigSsl | undefined }

/**
 * A server of which the whole or some parts come from `Config`.
 *
 * @since 0.2.0
 * @category models
 */
export type ConfigServer =
  | ServerInput
  | Config.Config<ServerInput>
  | ConfigParts<ServerOptions>
  | ConfigParts<ServerUrl>
  | ConfigParts<ServerSocket>

/**
 * Settings of which some come from `Config` and others are plain values.
 *
 * @since 0.2.0
 * @category models
 */
export type ConfigOptions = Configured<Omit<DatabaseOptions, "writer" | "readers" | "ssl">> & {
  readonly writer: ConfigServer
  readonly readers?: ReadonlyArray<ConfigServer> | Config.Config<ReadonlyArray<ServerInput> | undefined> | undefined
  readonly ssl?: ConfigSsl | undefined
}

/**
 * Reads a server from libpq's environment, as a connection string.
 *
 * The variables (`PGHOST`, `PGPORT`, `PGUSER`, `PGPASSWORD`, `PGSSLMODE` and so on) are read by Effect's `ConfigProvider`, each with
 * `prefix` before its name; so are the service file (`PGSERVICE`, `PGSERVICEFILE`, `~/.pg_service.conf`) and the password file
 * (`PGPASSFILE`, `~/.pgpass`). A connection string that is given comes before the service file, and that before the variables. Nothing else
 * in this library reads them.
 *
 * Fails with `ConfigError` if the connection string or the service cannot be read.
 *
 * @see {@link https://www.postgresql.org/docs/18/libpq-envars.html} for the variables
 *
 * @example
 * import { DatabaseConfig, Database } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const DbLive = Db.layerConfig({ writer: DatabaseConfig.fromEnv("APP_"), maxConnections: 20 })
 *
 * @since 0.2.0
 * @category constructors
 */
export const fromEnv = (
  prefix = "",
  url?: Redacted.Redacted<string> | undefined
): Config.Config<Redacted.Redacted<string>> => fromEnvironment(prefix, url)
