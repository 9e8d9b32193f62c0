/**
 * Types of a server in the settings of a database: the forms in which a program gives it, and its
 * settings when they are checked and complete.
 *
 * The module `DatabaseConfig` has the settings of a database, and exports these types as well.
 *
 * @since 0.2.0
 */
import type { Duplex } from "node:stream"
import type { ConnectionOptions } from "node:tls"
import type * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"

/**
 * Use of TLS: `false` for none, `true` with a verified certificate, or the options of Node.
 *
 * Without it, and without `sslmode` in the URL, the certificate of a remote host is verified.
 *
 * @since 0.1.0
 * @category models
 */
export type Ssl = boolean | ConnectionOptions

/**
 * Required property of sessions, as in libpq's `target_session_attrs`.
 *
 * @since 0.2.0
 * @category models
 */
export type TargetSessionAttrs = "any" | "read-write" | "read-only" | "primary" | "standby" | "prefer-standby"

/**
 * Effect that opens a stream to a server, for each new physical connection: through a connector
 * (Cloud SQL), a tunnel (SSH), or a test. The stream is closed with its connection. A cancel
 * request gets a stream of its own.
 *
 * @since 0.2.0
 * @category models
 */
export type Connector = Effect.Effect<Duplex, unknown>

/**
 * Settings of a server that any form of its address may have.
 *
 * @since 0.2.0
 * @category models
 */
export interface ServerSettings {
  readonly password?: Redacted.Redacted<string> | undefined
  /** A file with the password; it is read again for each new physical connection. */
  readonly passwordFile?: string | undefined
  /** TLS; it takes precedence over the URL and over the `ssl` of the database. */
  readonly ssl?: Ssl | undefined
  /**
   * The required property of sessions, by which one of several hosts is chosen. Default
   * `"read-write"` for the writer, `"prefer-standby"` for a reader.
   */
  readonly targetSessionAttrs?: TargetSessionAttrs | undefined
  /** The order in which several hosts are tried. Default `"disable"`: the given order. */
  readonly loadBalanceHosts?: "disable" | "random" | undefined
  /**
   * `"require"`: the connect fails unless the server proves by SCRAM-SHA-256-PLUS that TLS ends at
   * it. Default `"prefer"`, which needs no proof.
   */
  readonly channelBinding?: "disable" | "prefer" | "require" | undefined
}

/**
 * Server in parts, without a URL.
 *
 * @since 0.1.0
 * @category models
 */
export interface ServerOptions extends ServerSettings {
  /**
   * A host name, an address, or the folder of a Unix socket, which starts with `/`; or several, of
   * which one is used.
   */
  readonly host: string | ReadonlyArray<string>
  /** One port for all hosts, or one for each. Default 5432. */
  readonly port?: number | ReadonlyArray<number> | undefined
  readonly database: string
  readonly username: string
}

/**
 * Server by a connection string, with settings that override it.
 *
 * @since 0.2.0
 * @category models
 */
export interface ServerUrl extends ServerSettings {
  readonly url: Redacted.Redacted<string>
  readonly host?: string | ReadonlyArray<string> | undefined
  readonly port?: number | ReadonlyArray<number> | undefined
  readonly database?: string | undefined
  readonly username?: string | undefined
}

/**
 * Server at the other end of streams that the program opens.
 *
 * @since 0.2.0
 * @category models
 */
export interface ServerSocket extends ServerSettings {
  readonly socket: Connector
  /** The name in errors and observations. Default `"socket"`. */
  readonly name?: string | undefined
  readonly database: string
  readonly username: string
}

/**
 * Server: a connection string, or its parts.
 *
 * A connection string is a URL (`postgres://user:password@host:5432/database?sslmode=require`) or a
 * keyword string (`host=a,b dbname=app user=me`). It has the meaning that libpq 18 gives it, with
 * four differences: `sslmode=require`, and a remote host without `sslmode`, verify the certificate
 * like `verify-full`; `sslmode=prefer` and `allow` are refused for remote hosts; host and user are
 * required; and the environment is not read. `sslmode=no-verify` encrypts without verification.
 * `pgbouncer=true` in any URL of a database is `mode: "transactionPooler"`, unless `mode` is given.
 *
 * @since 0.1.0
 * @category models
 */
export type ServerInput = Redacted.Redacted<string> | ServerOptions | ServerUrl | ServerSocket

/**
 * One host of a server.
 *
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
  readonly port: number
}

/**
 * Host of a server, with its TLS.
 *
 * @since 0.2.0
 * @category models
 */
export interface Endpoint extends Host {
  readonly ssl: Ssl
}

/**
 * Files of certificates and keys; they are read again for each new physical connection.
 *
 * @since 0.2.0
 * @category models
 */
export interface TlsFiles {
  readonly sslrootcert: string | undefined
  readonly sslcert: string | undefined
  readonly sslkey: string | undefined
  readonly sslcrl: string | undefined
  readonly sslpassword: Redacted.Redacted<string> | undefined
}

/**
 * Authentication method, by its name in libpq's `require_auth`.
 *
 * @since 0.2.0
 * @category models
 */
export type AuthMethod = "password" | "md5" | "gss" | "sspi" | "scram-sha-256" | "oauth" | "none"

/**
 * Session settings of a connection string. The options of the database take precedence.
 *
 * @since 0.2.0
 * @category models
 */
export interface SessionParameters {
  readonly applicationName?: string
  /** In milliseconds; `undefined` if TCP sends no probes. */
  readonly keepAlive?: number | undefined
  /** Settings of the session, as in libpq's `options`: `-c name=value`. */
  readonly startupOptions?: string
  /** Present, and undefined, if `startupOptions` set the limit. */
  readonly idleInTransactionTimeout?: undefined
}

/**
 * Hosts and credentials of a server, checked and complete. The address is that of the first host;
 * `name` has the names of all hosts.
 *
 * @since 0.1.0
 * @category models
 */
export interface ServerConfig extends Endpoint {
  /** All hosts, in their order. */
  readonly hosts: ReadonlyArray<Endpoint>
  readonly socket: Connector | undefined
  readonly database: string
  readonly username: string
  readonly password: Redacted.Redacted<string> | undefined
  readonly passwordFile: string | undefined
  /** A password file of libpq, with a line for each host, database and user. */
  readonly passfile: string | undefined
  readonly tlsFiles: TlsFiles | undefined
  /** True if TLS begins without a request: `sslnegotiation=direct`. */
  readonly isDirectTls: boolean
  /** True if TLS sends the name of the host to the server: `sslsni`. */
  readonly sendsServerName: boolean
  /** True if the server must prove that TLS ends at it: `channel_binding=require`. */
  readonly bindsChannel: boolean
  /** The allowed authentication methods; `undefined` allows all. */
  readonly requireAuth: ReadonlySet<AuthMethod> | undefined
  readonly target: TargetSessionAttrs
  /** True if the hosts are tried in random order. */
  readonly isShuffled: boolean
  /** The timeout for all hosts together, in milliseconds. */
  readonly connectTimeout: number
  /**
   * The timeout of one host, in milliseconds, if the connection string has one and no option does.
   */
  readonly hostTimeout: number | undefined
  readonly own: SessionParameters
}

/**
 * Bounds for the messages of a server. If a server exceeds a bound, the connection is closed, with
 * `Disconnected`, or with `ConnectFailed` at login.
 *
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
  /** The iterations of SCRAM that a server may request; each costs time at login. */
  readonly maxScramIterations: number
}
