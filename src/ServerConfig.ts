/**
 * Types of a server in the settings of a database: the forms in which a program describes a server,
 * and the checked and complete settings.
 *
 * The module `DatabaseConfig` has the settings of a database, and exports these types as well.
 *
 * @since 0.2.0
 */
import type { Socket } from "node:net"
import type { Duplex } from "node:stream"
import type { ConnectionOptions } from "node:tls"
import type * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"

/**
 * Use of TLS: `false` for none, `true` with a verified certificate, or the options of Node.
 *
 * Without it, and without `sslmode` in the URL, the certificate of a remote host is verified, and a
 * loopback address or a socket is used without TLS.
 *
 * @see {@link ServerSettings} for the option `ssl` of a server
 * @see `DatabaseConfig.DatabaseOptions` for the option `ssl` for all servers of a database
 * @since 0.1.0
 * @category models
 */
export type Ssl = boolean | ConnectionOptions

/**
 * Required property of sessions, as in libpq's `target_session_attrs`.
 *
 * A writer takes `"any"`, `"read-write"` or `"primary"`, and refuses the others with `ConfigInvalid`.
 *
 * @see {@link ServerSettings} for the option `targetSessionAttrs`
 * @since 0.2.0
 * @category models
 */
export type TargetSessionAttrs = "any" | "read-write" | "read-only" | "primary" | "standby" | "prefer-standby"

/**
 * Effect that opens a stream to a server, for each new physical connection: through a connector
 * (Cloud SQL), a tunnel (SSH), or a test.
 *
 * The stream is closed with its connection. A cancel request gets a stream of its own.
 *
 * @see {@link ServerSocket}, which uses it
 * @since 0.2.0
 * @category models
 */
export type Connector = Effect.Effect<Duplex, unknown>

/**
 * Settings of a server that every form of its address accepts.
 *
 * @see {@link ServerInput} for the forms
 * @since 0.2.0
 * @category models
 */
export interface ServerSettings {
  /**
   * The password of the user; it takes precedence over the URL.
   *
   * @default the password of the URL, of `passwordFile` or of `passfile`, else none
   */
  readonly password?: Redacted.Redacted<string> | undefined
  /**
   * A file with the password; it is read again for each new physical connection. It is refused
   * beside `password`, and beside `credentials` of the database.
   *
   * @default the `passwordFile` of the database
   */
  readonly passwordFile?: string | undefined
  /**
   * TLS; it takes precedence over the URL and over the `ssl` of the database.
   *
   * @default the `ssl` of the database, else as the URL says, else a verified certificate, but no TLS
   * for a loopback address or a socket
   */
  readonly ssl?: Ssl | undefined
  /**
   * The required property of sessions. Of several hosts, one that has it is used. The setting takes
   * precedence over the URL.
   *
   * @default `target_session_attrs` of the URL, else `"read-write"` for the writer and
   * `"prefer-standby"` for a reader
   */
  readonly targetSessionAttrs?: TargetSessionAttrs | undefined
  /**
   * The order in which several hosts are tried: the given order (`"disable"`), or a random one for
   * each connect. It takes precedence over the URL.
   *
   * @default `load_balance_hosts` of the URL, else `"disable"`
   */
  readonly loadBalanceHosts?: "disable" | "random" | undefined
  /**
   * The proof by SCRAM-SHA-256-PLUS that TLS ends at the server. With `"require"` the connect fails
   * without it; with `"prefer"` and `"disable"` it is not needed. It takes precedence over the URL.
   *
   * @default `channel_binding` of the URL, else `"prefer"`
   */
  readonly channelBinding?: "disable" | "prefer" | "require" | undefined
  /**
   * The share of the reads for this server, for a `Router` that uses it, such as `Router.weighted`:
   * with the weights 2 and 1 the first server gets twice as many. It must be finite and above 0.
   *
   * @default 1
   */
  readonly weight?: number | undefined
}

/**
 * Server in parts, without a URL.
 *
 * @see {@link ServerUrl} for a URL with parts that override it
 * @since 0.1.0
 * @category models
 */
export interface ServerOptions extends ServerSettings {
  /**
   * A host name, an address, or the folder of a Unix socket, which starts with `/`. Or several of
   * them, of which each connection uses one.
   */
  readonly host: string | ReadonlyArray<string>
  /**
   * One port for all hosts, or one for each.
   *
   * @default 5432
   */
  readonly port?: number | ReadonlyArray<number> | undefined
  /** The name of the database on the server. */
  readonly database: string
  /** The name of the user. It may be empty if the database has `credentials`. */
  readonly username: string
}

/**
 * Server by a connection string, with settings that override it.
 *
 * @see {@link ServerOptions} for a server without a URL
 * @since 0.2.0
 * @category models
 */
export interface ServerUrl extends ServerSettings {
  /** The connection string: a URL or a keyword string. */
  readonly url: Redacted.Redacted<string>
  /**
   * A host name, an address, or the folder of a Unix socket; or several.
   *
   * @default the host of the URL
   */
  readonly host?: string | ReadonlyArray<string> | undefined
  /**
   * One port for all hosts, or one for each.
   *
   * @default the port of the URL, else 5432
   */
  readonly port?: number | ReadonlyArray<number> | undefined
  /**
   * The name of the database on the server.
   *
   * @default the database of the URL, else the name of the user
   */
  readonly database?: string | undefined
  /**
   * The name of the user.
   *
   * @default the user of the URL
   */
  readonly username?: string | undefined
}

/**
 * Server at the other end of streams that the program opens.
 *
 * There is no host name to compare a certificate with, so TLS with verification needs
 * `ssl: { servername }`.
 *
 * @see {@link ServerOptions} for a server by its host
 * @since 0.2.0
 * @category models
 */
export interface ServerSocket extends ServerSettings {
  /** The effect that opens a stream. */
  readonly socket: Connector
  /**
   * The name in errors and observations.
   *
   * @default "socket"
   */
  readonly name?: string | undefined
  /** The name of the database on the server. */
  readonly database: string
  /** The name of the user. It may be empty if the database has `credentials`. */
  readonly username: string
}

/**
 * Server: a connection string, its parts, both of them, or streams that the program opens.
 *
 * A connection string is a URL (`postgres://user:password@host:5432/database?sslmode=require`) or a
 * keyword string (`host=a,b dbname=app user=me`). It has the meaning that libpq 18 gives it, with
 * four differences: `sslmode=require`, and a remote host without `sslmode`, verify the certificate
 * like `verify-full`; `sslmode=prefer` and `allow` are refused for remote hosts; host and user are
 * required; and the environment is not read. `sslmode=no-verify` encrypts without verification.
 * `pgbouncer=true` in any URL of a database is `mode: "transactionPooler"`, unless `mode` is given.
 *
 * @see `DatabaseConfig.fromEnv` for a server from the environment of libpq
 * @see `DatabaseConfig.make` for an example
 * @since 0.1.0
 * @category models
 */
export type ServerInput = Redacted.Redacted<string> | ServerOptions | ServerUrl | ServerSocket

/**
 * One host of a server.
 *
 * @see {@link Endpoint} for a host with its TLS
 * @since 0.2.0
 * @category models
 */
export interface Host {
  /**
   * `host:port`, `[address]:port` for IPv6, or the folder of a Unix socket. Errors and observations
   * use it.
   */
  readonly name: string
  /** A host name, an address, or the folder of a Unix socket. A certificate is compared with it. */
  readonly host: string
  /** The address to connect to without a lookup of the name: libpq's `hostaddr`. */
  readonly address: string | undefined
  /** The port; 5432 if none was given. */
  readonly port: number
}

/**
 * Host in the answer of the option `discover`; a {@link Host} is one.
 *
 * @see `DatabaseConfig.DatabaseOptions` for the option `discover`
 * @see `Discovery` for ready sources of hosts
 * @since 0.3.0
 * @category models
 */
export interface DiscoveredHost {
  /** A host name, an address, or the folder of a Unix socket. A certificate is compared with it. */
  readonly host: string
  /**
   * The port, from 1 to 65535.
   *
   * @default 5432
   */
  readonly port?: number | undefined
  /**
   * The address to connect to without a lookup of the name.
   *
   * @default undefined (the name is looked up at each connect)
   */
  readonly address?: string | undefined
  /**
   * The name in errors and observations, by which the host is recognised in the next answer.
   *
   * @default `host:port`, or the folder of a Unix socket
   */
  readonly name?: string | undefined
}

/**
 * Host of a server, with its TLS.
 *
 * @see {@link ServerConfig}, which has one or more
 * @since 0.2.0
 * @category models
 */
export interface Endpoint extends Host {
  /** The use of TLS; `false` for a socket, unless an option requires TLS there. */
  readonly ssl: Ssl
}

/**
 * Files of certificates and keys, by their names in libpq; they are read again for each new physical
 * connection.
 *
 * @see {@link Ssl} for certificates and keys as options of Node
 * @since 0.2.0
 * @category models
 */
export interface TlsFiles {
  /** The certificates of trusted authorities; `undefined` means the authorities that Node trusts. */
  readonly sslrootcert: string | undefined
  /** The certificate of the client. */
  readonly sslcert: string | undefined
  /** The key of the client's certificate. */
  readonly sslkey: string | undefined
  /** The list of revoked certificates. */
  readonly sslcrl: string | undefined
  /** The password of the key. */
  readonly sslpassword: Redacted.Redacted<string> | undefined
}

/**
 * Authentication method, by its name in libpq's `require_auth`.
 *
 * @see {@link ServerConfig} for the field `requireAuth`
 * @since 0.2.0
 * @category models
 */
export type AuthMethod = "password" | "md5" | "gss" | "sspi" | "scram-sha-256" | "oauth" | "none"

/**
 * Session settings of a connection string, over which the options of the database take precedence.
 *
 * @see `DatabaseConfig.SessionOptions` for these options
 * @since 0.2.0
 * @category models
 */
export interface SessionParameters {
  /** The name that `pg_stat_activity` shows. */
  readonly applicationName?: string
  /** The idle time before TCP sends probes, in milliseconds; `undefined` if it sends none. */
  readonly keepAlive?: number | undefined
  /** Settings of the session, as in libpq's `options`: `-c name=value`. */
  readonly startupOptions?: string
  /** Present, with the value `undefined`, if `startupOptions` sets the limit. */
  readonly idleInTransactionTimeout?: undefined
}

/**
 * Hosts and credentials of a server, checked and complete.
 *
 * The address is that of the first host; `name` has the names of all hosts.
 *
 * @see {@link ServerInput} for the forms in which a program describes a server
 * @see `DatabaseConfig.make`, which returns it
 * @since 0.1.0
 * @category models
 */
export interface ServerConfig extends Endpoint {
  /** All hosts, in their order. */
  readonly hosts: ReadonlyArray<Endpoint>
  /** The effect that opens a stream, for a server without hosts. */
  readonly socket: Connector | undefined
  /** The name of the database on the server. */
  readonly database: string
  /** The name of the user; it may be empty if the database has `credentials`. */
  readonly username: string
  /** The password, if it is known before a connect. */
  readonly password: Redacted.Redacted<string> | undefined
  /** A file that contains only the password. */
  readonly passwordFile: string | undefined
  /** A password file of libpq, with a line for each host, database and user. */
  readonly passfile: string | undefined
  /** The files of certificates and keys that the connection string names. */
  readonly tlsFiles: TlsFiles | undefined
  /** True if TLS begins without a request: `sslnegotiation=direct`. */
  readonly isDirectTls: boolean
  /** True if TLS sends the name of the host to the server: `sslsni`. */
  readonly sendsServerName: boolean
  /** True if the server must prove that it is the other end of TLS: `channel_binding=require`. */
  readonly bindsChannel: boolean
  /** The allowed authentication methods; `undefined` allows all. */
  readonly requireAuth: ReadonlySet<AuthMethod> | undefined
  /** The required property of sessions. */
  readonly target: TargetSessionAttrs
  /** True if the hosts are tried in random order. */
  readonly isShuffled: boolean
  /** The timeout for all hosts together, in milliseconds. */
  readonly connectTimeout: number
  /**
   * The timeout of one host, in milliseconds, if the connection string has `connect_timeout` and the
   * option `connectTimeout` is not given.
   */
  readonly hostTimeout: number | undefined
  /** The share of the reads, for a `Router` that uses it. */
  readonly weight: number
  /** The session settings of the connection string. */
  readonly own: SessionParameters
  /** @internal Wraps each socket to a host, by the name of the host, so that faults can happen on it. */
  readonly intercept?: ((socket: Socket, host: string) => Socket) | undefined
}

/**
 * Bounds for the messages of a server.
 *
 * If a server exceeds a bound, the connection is closed, and the statement fails with `Disconnected`,
 * or the connect with `ConnectFailed`.
 *
 * @see `DatabaseConfig.DatabaseOptions` for the options of these names, and their defaults
 * @since 0.2.0
 * @category models
 */
export interface ProtocolLimits {
  /** The largest row, or piece of a COPY, in bytes of the protocol. */
  readonly maxRowBytes: number
  /** All notices, errors and reported settings in the answer to one exchange, in bytes. */
  readonly maxNoticeBytes: number
  /**
   * All messages of a login together, in bytes; and all settings that a server reports in the life
   * of a connection.
   */
  readonly maxStartupBytes: number
  /** The number of SCRAM iterations that a server may request; each takes time at login. */
  readonly maxScramIterations: number
}

/**
 * Cluster whose roles are discovered; times in milliseconds.
 *
 * @see `DatabaseConfig.DatabaseOptions` for the meaning of `hosts` and `discover`
 * @since 0.3.0
 * @category models
 */
export interface ClusterConfig {
  /** The effect that returns the hosts; `undefined` if they do not change. */
  readonly discover: Effect.Effect<ReadonlyArray<DiscoveredHost>, unknown> | undefined
  /** The interval of `discover`. */
  readonly discoverInterval: number
  /** Returns a host with the TLS that the settings require for it; throws if they refuse it. */
  readonly endpointOf: (host: Host) => Endpoint
}
