/**
 * The forms in which a program gives a server: a connection string, parts, or both.
 */
import type { Duplex } from "node:stream"
import type * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { concealSecrets } from "../protocol/tlsOptions.js"
import { parseConnectionString } from "./connectionString.js"
import { type KnownNames, refuseUnknown } from "./knownNames.js"
import { Invalid, text } from "./optionParsers.js"
import { type Parameters, refuseUnsupported } from "./parameterNames.js"
import type { Ssl } from "./sslOption.js"

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

const common: KnownNames<ServerSettings> = {
  password: true,
  passwordFile: true,
  ssl: true,
  targetSessionAttrs: true,
  loadBalanceHosts: true,
  channelBinding: true
}
const ofParts: KnownNames<ServerOptions> = { ...common, host: true, port: true, database: true, username: true }
const ofUrl: KnownNames<ServerUrl> = { ...ofParts, url: true }
const ofSocket: KnownNames<ServerSocket> = { ...common, socket: true, name: true, database: true, username: true }

/** The parts of a server by the names that other libraries have for them. */
const synonyms: Readonly<Record<string, string>> = {
  user: "username",
  db: "database",
  dbname: "database",
  connectionString: "url",
  uri: "url",
  hostname: "host",
  hosts: "host",
  tls: "ssl",
  stream: "socket"
}

/** Parts of all forms. */
type Parts = ServerSettings & Omit<ServerUrl, "url"> & Omit<Partial<ServerSocket>, "database" | "username">

/** Server in its given form. */
export interface ServerParts {
  /** The parameters of a connection string; `undefined` if there is none. */
  readonly parameters: Parameters | undefined
  readonly parts: Parts
  /** The name of a part in errors. */
  readonly part: (name: keyof Parts) => string
  /** The name of a parameter in errors. */
  readonly parameter: (name: string) => string
}

const ofString = (
  setting: string,
  url: Redacted.Redacted<string>,
  parts: Parts,
  part: ServerParts["part"]
): ServerParts => {
  const given = Redacted.value(url)
  // a program without types may redact a value of another type; the error for an empty text shows
  // the expected forms
  const parameters = parseConnectionString(setting, given === "" ? given : text(setting, given))
  refuseUnsupported(setting, parameters)
  return { parameters, parts, part, parameter: (name) => `${setting} (${name})` }
}

/** Returns the given server, with the secrets in its TLS options concealed. */
export const redactInput = (input: ServerInput): ServerInput =>
  Redacted.isRedacted(input) || typeof input?.ssl !== "object" ? input : { ...input, ssl: concealSecrets(input.ssl) }

/** Checks if a server is an empty text, such as an environment variable without a value. */
export const isEmptyUrl = (input: ServerInput | undefined): boolean =>
  Redacted.isRedacted(input) && Redacted.value(input) === ""

/** Reads the connection string of a server, if it has one, and refuses parts with unknown names. */
export const read = (setting: string, input: ServerInput): ServerParts => {
  const part = (name: keyof Parts) => `${setting}.${name}`
  if (Redacted.isRedacted(input)) return ofString(setting, input, {}, part)
  if (typeof input !== "object" || input === null) {
    throw new Invalid(
      setting,
      "neither a redacted URL nor a server in parts",
      "Redacted.make of a URL like postgres://user:password@host:5432/database"
    )
  }
  if ("url" in input) {
    refuseUnknown(setting, input, ofUrl, synonyms)
    const { url, ...parts } = input
    if (!Redacted.isRedacted(url)) throw new Invalid(`${setting}.url`, "not redacted", "Redacted.make of a URL")
    return ofString(`${setting}.url`, url, parts, part)
  }
  refuseUnknown(setting, input, "socket" in input ? ofSocket : ofParts, synonyms)
  return { parameters: undefined, parts: input, part, parameter: (name) => `${setting} (${name})` }
}
