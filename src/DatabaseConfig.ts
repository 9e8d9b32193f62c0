/**
 * The settings of a database and their defaults.
 *
 * @since 0.1.0
 */

import type { ConnectionOptions } from "node:tls"
import type * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Either from "effect/Either"
import type * as LogLevel from "effect/LogLevel"
import type * as Redacted from "effect/Redacted"
import { ConfigInvalid } from "./DatabaseError.js"
import type {
  CommonOptions,
  DatabaseOptions,
  HostsOption,
  Mode,
  Types,
  WhenAllBehind,
  WriterOption
} from "./DatabaseOptions.js"
import { serversOf } from "./internal/config/databaseServers.js"
import { fromEnvironment } from "./internal/config/environment.js"
import { protocolLimits } from "./internal/config/messageLimits.js"
import { type GivenOptions, refuseUnknownOptions } from "./internal/config/optionNames.js"
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
  longerThan,
  oneOf,
  parsers,
  positive,
  text
} from "./internal/config/optionParsers.js"
import { connectionCounts, primaryReads } from "./internal/config/poolCounts.js"
import { redactInput } from "./internal/config/serverInput.js"
import { fileOf } from "./internal/config/serverOptions.js"
import { checkSsl } from "./internal/config/sslCheck.js"
import { concealSecrets } from "./internal/protocol/tlsOptions.js"
import type {
  ClusterConfig,
  ProtocolLimits,
  ServerConfig,
  ServerInput,
  ServerOptions,
  ServerSettings,
  ServerSocket,
  ServerUrl,
  Ssl
} from "./ServerConfig.js"

export type {
  CommonOptions,
  Credentials,
  DatabaseOptions,
  HostsOption,
  Mode,
  PoolOptions,
  SessionEffect,
  SessionOptions,
  Types,
  TypesByName,
  WhenAllBehind,
  WriterOption
} from "./DatabaseOptions.js"
export type {
  AuthMethod,
  ClusterConfig,
  Connector,
  DiscoveredHost,
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
} from "./ServerConfig.js"

/**
 * Options of a pool with defaults; times in milliseconds.
 *
 * @see {@link PoolOptions} for the meaning of each field
 * @since 0.1.0
 * @category models
 */
export interface PoolConfig {
  /** The largest number of physical connections. */
  readonly maxConnections: number
  /** The number of connections that stay open while they are idle. */
  readonly minConnections: number
  /** True if the process may end while connections are idle. */
  readonly idleExit: boolean
  /** The number of connections beyond `maxConnections`. */
  readonly maxOverflow: number
  /** The time that a caller waits for a connection. */
  readonly acquireTimeout: number
  /** The number of callers that may wait for an unavailable server. */
  readonly maxOutageWaiters: number
  /** The timeout of one attempt to connect to the writer; a reader has it in its `ServerConfig`. */
  readonly connectTimeout: number
  /** The time after which an idle connection is closed. */
  readonly idleTimeout: number
  /** The age from which a connection is closed. */
  readonly maxLifetime: number
  /** The idle time after which a connection is validated before its checkout. */
  readonly validateAfterIdle: number
  /** The choice among idle connections. */
  readonly order: "lifo" | "fifo"
  /** The way in which connections are reused and shared. */
  readonly strategy: "pooled" | "none" | "single" | "assertSingle"
  /**
   * The time within which callers should be served during an overload; infinity without load
   * shedding.
   */
  readonly queueTarget: number
  /** The time after which a connection in use is a leak; infinity if none is reported. */
  readonly leakThreshold: number
}

/**
 * Session limits with defaults. Times are in whole milliseconds; 0 means no limit, and `undefined`
 * the server's limit.
 *
 * @see {@link SessionOptions} and {@link DatabaseOptions} for the meaning of each field
 * @since 0.1.0
 * @category models
 */
export interface SessionConfig {
  /** The kind of all servers of the database. */
  readonly mode: Mode
  /** The limit of a statement. */
  readonly statementTimeout: number | undefined
  /** The limit of the wait for a lock. */
  readonly lockTimeout: number | undefined
  /** The limit of an idle transaction. */
  readonly idleInTransactionTimeout: number | undefined
  /** The name that `pg_stat_activity` shows. */
  readonly applicationName: string
  /** The idle time after which TCP sends probes; `undefined` if it sends none. */
  readonly keepAlive: number | undefined
  /** The number of prepared statements that a connection caches; 0 behind a transaction pooler. */
  readonly preparedStatements: number
  /** The bounds for the messages of a server. */
  readonly limits: ProtocolLimits
  /** The parsers of columns; `undefined` for those of node-postgres. */
  readonly types: Types | undefined
  /** The session settings of the server's connection string, as `-c name=value`, if it has any. */
  readonly startupOptions?: string
}

/**
 * Limits for the lag of a reader.
 *
 * @see {@link DatabaseOptions} for the options `maxLag` and `maxLagBytes`
 * @since 0.3.0
 * @category models
 */
export interface LagLimits {
  /** The time, in milliseconds. */
  readonly millis: number
  /** The bytes of the log. */
  readonly bytes: number
}

/**
 * Options of the choice of a reader, with defaults.
 *
 * @see {@link DatabaseOptions} for the meaning of each field
 * @since 0.3.0
 * @category models
 */
export interface RoutingConfig {
  /** The limits above which a reader is left out. */
  readonly lagLimits: LagLimits
  /** The server of a read if all readers are left out. */
  readonly whenAllBehind: WhenAllBehind
  /** The limit of connections for reads on the primary. */
  readonly maxPrimaryReads: number
}

/**
 * Options of the monitors with defaults; times in milliseconds.
 *
 * @see {@link DatabaseOptions} for the meaning of each field
 * @since 0.3.0
 * @category models
 */
export interface MonitorConfig {
  /** True if the hosts of a writer and the readers are monitored. */
  readonly isOn: boolean
  /** The interval of the monitor. */
  readonly interval: number
  /** The time after which a silent server is given up. */
  readonly detectionTime: number
}

/**
 * Settings of a database, checked and complete; times in milliseconds.
 *
 * @see {@link make}, which returns it
 * @see {@link DatabaseOptions} for the meaning of each field
 * @since 0.1.0
 * @category models
 */
export interface DatabaseConfig {
  /** The name of the database. */
  readonly name: string
  /** The primary. */
  readonly writer: ServerConfig
  /** The replicas. */
  readonly readers: ReadonlyArray<ServerConfig>
  /**
   * The cluster, if the option `hosts` was given: its hosts are those of `writer`, and each of them
   * is one of `readers`.
   */
  readonly cluster: ClusterConfig | undefined
  /** The options of its pools. */
  readonly pool: PoolConfig
  /** The limits and settings of its sessions. */
  readonly session: SessionConfig
  /** The time of the first connect. */
  readonly startup: "verify" | "lazy"
  /** The time that statements and transactions have to end when the layer is released. */
  readonly shutdownTimeout: number
  /** The treatment of a COMMIT whose answer was lost. */
  readonly outcome: "status" | "marker" | "unknown"
  /** True if the table of markers is created if it is missing. */
  readonly createsOutcomeTable: boolean
  /** The time after which markers are deleted. */
  readonly outcomeRetention: number
  /** True if transactions may end in two phases. */
  readonly twoPhase: boolean
  /** The longest time to find out if a COMMIT without an answer is stored. */
  readonly resolveWithin: number
  /**
   * The time for which a failed reader takes no part in routing, or in which its monitor tries it.
   */
  readonly readerRetryDelay: number
  /** The options of the choice of a reader. */
  readonly routing: RoutingConfig
  /** The options of the monitors. */
  readonly monitor: MonitorConfig
  /** The lowest level of logged observations. */
  readonly echo: LogLevel.LogLevel
  /** The interval of heartbeats on the listening connection; infinity without heartbeats. */
  readonly listenHeartbeat: number
  /** The settings as they were given, with their secrets redacted. */
  readonly options: CommonOptions & Partial<WriterOption & HostsOption>
}

/** The shortest time for which the markers of decisions are kept, in ms. */
const shortestDecisionRetention = 3_600_000

const parse = (name: string, options: GivenOptions): DatabaseConfig => {
  text("name", name)
  refuseUnknownOptions(options)
  const hasCredentials = options.credentials !== undefined
  checkSsl("ssl", options.ssl)
  const common = {
    passwordFile: fileOf("passwordFile", options.passwordFile, hasCredentials),
    hasCredentials,
    isDiscovered: options.discover !== undefined,
    ssl: options.ssl,
    connectTimeout:
      options.connectTimeout === undefined
        ? undefined
        : positive("connectTimeout", finite("connectTimeout", duration("connectTimeout", options.connectTimeout, 0)))
  }
  const { cluster, given, isPooled, readers, writer } = serversOf(options, common)
  if (typeof options.resetOnReturn === "string") oneOf("resetOnReturn", options.resetOnReturn, "none", "discardAll")
  else effect("resetOnReturn", options.resetOnReturn)
  effect("credentials", options.credentials)
  effect("onConnect", options.onConnect)
  effect("onCheckout", options.onCheckout)
  const counts = connectionCounts(options)
  const preparedStatements = count("preparedStatements", options.preparedStatements, 256, 0)
  const outcome = oneOf("outcome", options.outcome, "status", "marker", "unknown")
  const twoPhase = boolean("twoPhase", options.twoPhase)
  if (twoPhase && outcome !== "marker")
    throw new Invalid("twoPhase", `true with outcome: "${outcome}"`, 'outcome: "marker"')
  const resolveWithin = finite("resolveWithin", duration("resolveWithin", options.resolveWithin, "5 seconds"))
  const outcomeRetention = longerThan(
    "outcomeRetention",
    duration("outcomeRetention", options.outcomeRetention, "1 day"),
    resolveWithin,
    "resolveWithin"
  )
  // a decision whose marker is deleted counts as undone
  if (twoPhase && outcomeRetention < shortestDecisionRetention)
    throw new Invalid("outcomeRetention", `${outcomeRetention} ms`, "an hour or longer, with twoPhase")
  const mode = oneOf(
    "mode",
    options.mode ?? (isPooled ? "transactionPooler" : "session"),
    "session",
    "transactionPooler"
  )
  if (mode === "transactionPooler" && options.discover !== undefined) {
    throw new Invalid("discover", "given behind a transaction pooler", "the poolers as hosts, without discover")
  }
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
    cluster,
    pool: {
      ...counts,
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
      // the next transaction may be in another session, which does not have the prepared statements
      preparedStatements: mode === "transactionPooler" ? 0 : preparedStatements,
      limits: protocolLimits(options),
      types: parsers("types", options.types)
    },
    startup: oneOf("startup", options.startup, "verify", "lazy"),
    shutdownTimeout: finite("shutdownTimeout", duration("shutdownTimeout", options.shutdownTimeout, "5 seconds")),
    outcome,
    createsOutcomeTable: oneOf("outcomeTable", options.outcomeTable, "create", "exists") === "create",
    outcomeRetention,
    twoPhase,
    resolveWithin,
    readerRetryDelay: duration("readerRetryDelay", options.readerRetryDelay, "5 seconds"),
    routing: {
      lagLimits: {
        millis: positive("maxLag", duration("maxLag", options.maxLag, "1 minute")),
        bytes:
          options.maxLagBytes === Number.POSITIVE_INFINITY
            ? Number.POSITIVE_INFINITY
            : count("maxLagBytes", options.maxLagBytes, Number.POSITIVE_INFINITY, 1)
      },
      whenAllBehind: oneOf("whenAllBehind", options.whenAllBehind, "primary", "leastBehind", "fail"),
      maxPrimaryReads: primaryReads(options, counts.maxConnections)
    },
    monitor: {
      isOn: boolean("monitor", options.monitor ?? true),
      interval: positive("monitorInterval", duration("monitorInterval", options.monitorInterval, "5 seconds")),
      detectionTime: positive(
        "detectionTime",
        finite("detectionTime", duration("detectionTime", options.detectionTime, "1 second"))
      )
    },
    echo: echo(options.echo),
    listenHeartbeat: positive("listenHeartbeat", duration("listenHeartbeat", options.listenHeartbeat, "30 seconds")),
    options: {
      ...options,
      ...given,
      readers: options.readers?.map(redactInput),
      ...(options.ssl === undefined ? {} : { ssl: concealSecrets(options.ssl) })
    }
  }
}

/**
 * Checks settings and fills in the defaults.
 *
 * It reads no environment and opens no connection; a layer of a database calls it. A setting that is
 * not valid, or has an unknown name, is a `ConfigInvalid` on the left.
 *
 * @see {@link DatabaseOptions} for the settings and their defaults
 * @see {@link fromEnv} for a server from the environment
 * @example
 * ```ts
 * import { Either, Redacted } from "effect"
 * import { DatabaseConfig } from "effect-db"
 *
 * const config = DatabaseConfig.make("app", { writer: Redacted.make("postgres://me:secret@localhost/app") })
 * console.log(Either.map(config, (_) => _.pool.maxConnections)) // right(10)
 * ```
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
 * Record with members that are plain values, or come from `Config`.
 *
 * @see {@link ConfigOptions}, which is made of such records
 * @since 0.2.0
 * @category models
 */
export type Configured<A> = { readonly [K in keyof A]: A[K] | Config.Config<A[K]> }

/**
 * TLS options that come from `Config` or are plain values.
 *
 * @see {@link ConfigServer} for a server
 * @since 0.2.0
 * @category models
 */
export type ConfigSsl = Ssl | Config.Config<Ssl | undefined> | Configured<ConnectionOptions>

type ConfigParts<A extends ServerSettings> = Configured<Omit<A, "ssl">> & { readonly ssl?: ConfigSsl | undefined }

/**
 * Server that comes from `Config` as a whole, or in some parts.
 *
 * @see {@link ConfigOptions} for a whole database
 * @see {@link fromEnv} for a server from the environment of libpq
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
 * Settings that come from `Config` or are plain values.
 *
 * @see `Database.Service` for the member `layerConfig`, which takes them
 * @see {@link DatabaseOptions} for the meaning of each setting
 * @since 0.2.0
 * @category models
 */
export type ConfigOptions = ConfigCommonOptions & ({ readonly writer: ConfigServer } | { readonly hosts: ConfigServer })

/**
 * Settings that come from `Config` or are plain values, without `writer` and `hosts`.
 *
 * @see {@link ConfigOptions}, which has the servers as well
 * @see {@link CommonOptions} for the meaning of each setting
 * @since 0.3.0
 * @category models
 */
export type ConfigCommonOptions = Configured<Omit<CommonOptions, "readers" | "ssl">> & {
  /**
   * The replicas: a list with parts from `Config`, or the whole list from `Config`.
   *
   * @default []
   */
  readonly readers?: ReadonlyArray<ConfigServer> | Config.Config<ReadonlyArray<ServerInput> | undefined> | undefined
  /**
   * TLS for every server without an `ssl` of its own; it takes precedence over the URL.
   *
   * @default as the URL says, else a verified certificate, but no TLS for a loopback address or a
   * socket
   */
  readonly ssl?: ConfigSsl | undefined
}

/**
 * Reads a server from libpq's environment, as a connection string.
 *
 * The variables (`PGHOST`, `PGPORT`, `PGUSER`, `PGPASSWORD`, `PGSSLMODE` and so on) are read by
 * Effect's `ConfigProvider`, each with `prefix` before its name. They may name a service file
 * (`PGSERVICE`, `PGSERVICEFILE`, `~/.pg_service.conf`) and a password file (`PGPASSFILE`,
 * `~/.pgpass`). The order of precedence is: a given connection string, the service file, the
 * variables. No other part of this library reads these variables.
 *
 * Fails with `ConfigError` if the connection string or the service cannot be read.
 *
 * @see {@link https://www.postgresql.org/docs/18/libpq-envars.html} for the variables
 * @see {@link ConfigOptions} for the other settings of a database
 * @example
 * ```ts
 * import { DatabaseConfig, Database } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const DbLive = Db.layerConfig({ writer: DatabaseConfig.fromEnv("APP_"), maxConnections: 20 })
 * ```
 *
 * @since 0.2.0
 * @category constructors
 */
export const fromEnv = (
  prefix = "",
  url?: Redacted.Redacted<string> | undefined
): Config.Config<Redacted.Redacted<string>> => fromEnvironment(prefix, url)
