/**
 * Where a server is, as a URL or in parts.
 */
import type { ConnectionOptions } from "node:tls"
import * as Redacted from "effect/Redacted"
import PgConnectionString from "pg-connection-string"
import { concealed } from "../protocol/tls.js"
import { Invalid, port, text } from "./values.js"

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
  /** A file that holds the password; it is read again for each new physical connection. */
  readonly passwordFile?: string | undefined
  readonly ssl?: Ssl | undefined
}

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
  readonly passwordFile: string | undefined
  readonly ssl: Ssl
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

const urlParameters = ["sslmode", "application_name", "host", "pgbouncer"]

const urlForm = "a URL like postgres://user:password@host:5432/database"

/** What all servers of a database have in common. */
interface Common {
  readonly passwordFile: string | undefined
  /** Whether user and password come from somewhere else. */
  readonly hasCredentials: boolean
}

export const fileOf = (setting: string, given: string | undefined, hasCredentials: boolean): string | undefined => {
  if (given === undefined) return undefined
  if (hasCredentials) throw new Invalid(setting, "given beside credentials", "one of the two")
  return text(setting, given)
}

const fromUrl = (
  setting: string,
  url: string,
  common: Common
): ServerConfig & { readonly applicationName: string | undefined } => {
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
    username: common.hasCredentials ? (parsed.user ?? "") : text(`${setting} (user)`, parsed.user ?? ""),
    password: parsed.password ? Redacted.make(parsed.password) : undefined,
    passwordFile: parsed.password ? undefined : common.passwordFile,
    ssl: mode === null ? !isLoopback(host) : (sslModes.get(mode) ?? true),
    applicationName: parameters.get("application_name") ?? undefined
  }
}

/** Whether the URL of a server says that a pooler is in between. */
export const saysPooled = (input: ServerInput): boolean =>
  Redacted.isRedacted(input) && new URLSearchParams(Redacted.value(input).split("?", 2)[1]).get("pgbouncer") === "true"

/** The server as it was given, with what is secret in its TLS options out of sight. */
export const concealedInput = (input: ServerInput): ServerInput =>
  Redacted.isRedacted(input) || typeof input?.ssl !== "object" ? input : { ...input, ssl: concealed(input.ssl) }

export const server = (
  setting: string,
  input: ServerInput,
  common: Common
): ServerConfig & { readonly applicationName: string | undefined } => {
  if (Redacted.isRedacted(input)) return fromUrl(setting, Redacted.value(input), common)
  if (typeof input !== "object" || input === null) {
    throw new Invalid(setting, "neither a redacted URL nor a server in parts", `Redacted.make of ${urlForm}`)
  }
  if (input.password !== undefined && input.passwordFile !== undefined) {
    throw new Invalid(`${setting}.passwordFile`, "given beside a password", "one of the two")
  }
  const passwordFile = fileOf(`${setting}.passwordFile`, input.passwordFile, common.hasCredentials)
  const host = text(`${setting}.host`, input.host)
  const at = port(`${setting}.port`, input.port ?? 5432)
  return {
    name: host.startsWith("/") ? host : `${host}:${at}`,
    host,
    port: at,
    database: text(`${setting}.database`, input.database),
    username: text(`${setting}.username`, input.username),
    password: input.password,
    passwordFile: passwordFile ?? (input.password === undefined ? common.passwordFile : undefined),
    ssl: concealed(input.ssl ?? !isLoopback(host)),
    applicationName: undefined
  }
}
