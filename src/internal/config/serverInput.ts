/**
 * A server as a program gives it: a connection string, parts, or both.
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
 * The sessions that a server's connections must have, in the words of libpq's `target_session_attrs`.
 *
 * @since 0.2.0
 * @category models
 */
export type TargetSessionAttrs = "any" | "read-write" | "read-only" | "primary" | "standby" | "prefer-standby"

/**
 * An open stream to a server, for each new physical connection: of a connector (Cloud SQL), a tunnel (SSH), or a test. The stream is closed
 * with its connection. A cancel request gets a stream of its own.
 *
 * @since 0.2.0
 * @category models
 */
export type Connector = Effect.Effect<Duplex, unknown>

/**
 * Settings of a server that stand beside its address, in whatever form that is given.
 *
 * @since 0.2.0
 * @category models
 */
export interface ServerSettings {
  readonly password?: Redacted.Redacted<string> | undefined
  /** A file that holds the password; it is read again for each new physical connection. */
  readonly passwordFile?: string | undefined
  /** TLS, instead of what the URL and the database's `ssl` say. */
  readonly ssl?: Ssl | undefined
  /** The sessions that fit, if there are several hosts. Default `"read-write"` for the writer, `"prefer-standby"` for a reader. */
  readonly targetSessionAttrs?: TargetSessionAttrs | undefined
  /** The order in which several hosts are tried. Default `"disable"`: as they are given. */
  readonly loadBalanceHosts?: "disable" | "random" | undefined
  /** `"require"`: the connect fails unless the server proves by SCRAM-SHA-256-PLUS that TLS ends at it. Default `"prefer"`, which does without. */
  readonly channelBinding?: "disable" | "prefer" | "require" | undefined
}

/**
 * One server in parts, for when a URL is not at hand.
 *
 * @since 0.1.0
 * @category models
 */
export interface ServerOptions extends ServerSettings {
  /** A host name, an address, or the folder of a Unix socket (it starts with `/`); or several, of which one is connected to. */
  readonly host: string | ReadonlyArray<string>
  /** One for all hosts, or one for each. Default 5432. */
  readonly port?: number | ReadonlyArray<number> | undefined
  readonly database: string
  readonly username: string
}

/**
 * One server by a connection string, with settings that override it.
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
 * One server at the other end of streams that the program opens.
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
 * A server: a connection string, or its parts.
 *
 * A connection string is a URL (`postgres://user:password@host:5432/database?sslmode=require`) or a keyword string
 * (`host=a,b dbname=app user=me`). It means what it means to libpq 18, with four differences: `sslmode=require` verifies the certificate as
 * `verify-full` does, and so does a remote host without `sslmode`; `sslmode=prefer` and `allow` are refused for remote hosts; host and user
 * must be given; and nothing is read from the environment. `sslmode=no-verify` encrypts without verifying; `pgbouncer=true` in any of a
 * database's URLs is `mode: "transactionPooler"`, unless `mode` says otherwise.
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

/** The words of other libraries for the parts of a server. */
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

/** The parts of all forms. */
type Parts = ServerSettings & Omit<ServerUrl, "url"> & Omit<Partial<ServerSocket>, "database" | "username">

/** A server as it was given. */
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
  // a program without types may redact another thing; an empty text is refused with the forms that are expected
  const parameters = parseConnectionString(setting, given === "" ? given : text(setting, given))
  refuseUnsupported(setting, parameters)
  return { parameters, parts, part, parameter: (name) => `${setting} (${name})` }
}

/** Returns the server as it was given, with what is secret in its TLS options out of sight. */
export const redactInput = (input: ServerInput): ServerInput =>
  Redacted.isRedacted(input) || typeof input?.ssl !== "object" ? input : { ...input, ssl: concealSecrets(input.ssl) }

/** Tells if a server is an empty text, as a variable of the environment without a value gives it. */
export const isEmptyUrl = (input: ServerInput | undefined): boolean =>
  Redacted.isRedacted(input) && Redacted.value(input) === ""

/** Reads a server's connection string, if there is one, and refuses parts with unknown names. */
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
