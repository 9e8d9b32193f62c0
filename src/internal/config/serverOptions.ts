/**
 * The check of the settings of a server, and the defaults of missing ones.
 */
import * as Redacted from "effect/Redacted"
import type { Endpoint, Host, ServerConfig, ServerInput, Ssl, TargetSessionAttrs } from "../../ServerConfig.js"
import { concealSecrets } from "../protocol/tlsOptions.js"
import { hostsOf } from "./hosts.js"
import { isSocket } from "./localHost.js"
import { effect, flag, Invalid, oneOf, text } from "./optionParsers.js"
import { parseRequireAuth } from "./requireAuth.js"
import { readInput, type ServerParts } from "./serverInput.js"
import { hostTimeoutOf, sessionParameters } from "./sessionParameters.js"
import { checkSsl } from "./sslCheck.js"
import { tlsFilesOf, tlsParameters } from "./tlsParameters.js"

/** Settings of a database that apply to all of its servers. */
export interface SharedOptions {
  readonly passwordFile: string | undefined
  /** True if a credential provider returns the user and the password. */
  readonly hasCredentials: boolean
  readonly ssl: Ssl | undefined
  /**
   * The timeout for all hosts of a server together, in milliseconds. It replaces the timeout of a
   * connection string, which applies to each host.
   */
  readonly connectTimeout: number | undefined
  /** True if the hosts of a cluster are discovered, so that none needs to be given. */
  readonly isDiscovered: boolean
}

/** Use of a server. A cluster is a writer whose other hosts are readers. */
type Use = "writer" | "reader" | "cluster"

/** Checked server. */
export interface CheckedServer extends ServerConfig {
  /** True if the connection string has `pgbouncer=true`. */
  readonly isPooled: boolean
  /** Returns a host with the TLS that the settings require for it. Throws `Invalid`. */
  readonly endpointOf: (host: Host) => Endpoint
}

/** The default timeout for all hosts of a server together, in milliseconds. */
const defaultConnectTimeout = 5000

/** Checks and returns the path of a password file. Refuses it beside a credential provider. */
export const fileOf = (setting: string, given: string | undefined, hasCredentials: boolean): string | undefined => {
  if (given === undefined) return undefined
  if (hasCredentials) throw new Invalid(setting, "given beside credentials", "one of the two")
  return text(setting, given)
}

const endpointsOf = (
  given: ServerParts,
  ssl: Ssl | undefined,
  checkTls: (endpoint: Endpoint) => Endpoint,
  isOptional: boolean
): ReadonlyArray<Endpoint> => {
  const { part, parts } = given
  if (parts.socket === undefined) {
    return hostsOf(given, isOptional).map((host) => checkTls({ ...host, ssl: ssl ?? tlsParameters(given, host) }))
  }
  effect(part("socket"), parts.socket)
  if (ssl === true || (typeof ssl === "object" && ssl.rejectUnauthorized !== false && !ssl.servername)) {
    throw new Invalid(part("ssl"), "without a name to verify, over a socket", "{ servername: ... }, or no ssl")
  }
  const name = text(part("name"), parts.name ?? "socket")
  return [checkTls({ name, host: "localhost", address: undefined, port: 5432, ssl: ssl ?? false })]
}

/**
 * Returns the value of a setting, and the name of the setting in errors. A part takes precedence
 * over a parameter of the connection string.
 */
const partOrParameter = (
  { parameter, part, parts, value }: ServerParts,
  name: "channelBinding" | "loadBalanceHosts" | "targetSessionAttrs",
  libpqName: string
): readonly [setting: string, value: string | undefined] => {
  const own = parts[name]
  return own === undefined ? [parameter(libpqName), value(libpqName)] : [part(name), own]
}

const targets = ["any", "read-write", "read-only", "primary", "standby", "prefer-standby"] as const

const targetOf = (given: ServerParts, use: Use): TargetSessionAttrs => {
  const [setting, value = use === "reader" ? "prefer-standby" : "read-write"] = partOrParameter(
    given,
    "targetSessionAttrs",
    "target_session_attrs"
  )
  const target = oneOf(setting, value, ...targets)
  if (use === "reader" || target === "read-write" || target === "primary") return target
  if (use === "cluster")
    throw new Invalid(setting, `${target} for a cluster, whose roles are discovered`, "read-write or primary")
  if (target === "any") return target
  throw new Invalid(setting, `${target} for the writer, which is to accept writes`, "read-write, primary or any")
}

const userOf = ({ parameter, parameters, part, parts }: ServerParts, hasCredentials: boolean): string => {
  const setting = parameters === undefined || parts.username !== undefined ? part("username") : parameter("user")
  const given = parameters === undefined ? parts.username : (parts.username ?? parameters.get("user") ?? "")
  return hasCredentials && given === "" ? "" : text(setting, given)
}

const databaseOf = ({ parameter, parameters, part, parts, value }: ServerParts, username: string): string => {
  if (parameters === undefined || parts.database !== undefined) return text(part("database"), parts.database)
  // the default of libpq
  return text(parameter("dbname"), value("dbname") ?? username)
}

/** Refuses a setting that requires TLS if a host, except for a Unix socket, has no TLS. */
const requireTls = (setting: string, given: string, host: Endpoint): void => {
  if (host.ssl === false && !isSocket(host)) {
    throw new Invalid(setting, `${given} without TLS`, "sslmode=verify-full beside it, or ssl")
  }
}

/** Stands for the first host while no host is known. */
const noHost = { name: "discovered", host: "localhost", address: undefined, port: 5432, ssl: false } as const

const weightOf = (setting: string, given: number | undefined): number => {
  if (given === undefined) return 1
  if (!Number.isFinite(given) || given <= 0) throw new Invalid(setting, String(given), "a number above 0")
  return given
}

/** Checks a server and fills in the defaults. */
export const serverConfig = (setting: string, input: ServerInput, use: Use, common: SharedOptions): CheckedServer => {
  const given = readInput(setting, input)
  const { parameter, part, parts, value } = given
  checkSsl(part("ssl"), parts.ssl)
  const ssl = concealSecrets(parts.ssl ?? common.ssl)
  const [bindingSetting, givenBinding] = partOrParameter(given, "channelBinding", "channel_binding")
  const binding = oneOf(bindingSetting, givenBinding, "prefer", "disable", "require")
  const negotiation = oneOf(parameter("sslnegotiation"), value("sslnegotiation"), "postgres", "direct")
  const checkTls = (endpoint: Endpoint): Endpoint => {
    if (binding === "require") requireTls(bindingSetting, "require", endpoint)
    if (negotiation === "direct") requireTls(parameter("sslnegotiation"), "direct", endpoint)
    return endpoint
  }
  const endpointOf = (host: Host) => checkTls({ ...host, ssl: ssl ?? tlsParameters(given, host) })
  const isOptional = use === "cluster" && common.isDiscovered
  const hosts = endpointsOf(given, ssl, checkTls, isOptional)
  const first = hosts[0] ?? (isOptional ? noHost : undefined)
  if (first === undefined) throw new Invalid(part("host"), "an empty list", "one host or more")
  const balance = oneOf(...partOrParameter(given, "loadBalanceHosts", "load_balance_hosts"), "disable", "random")
  if (parts.password !== undefined && parts.passwordFile !== undefined) {
    throw new Invalid(part("passwordFile"), "given beside a password", "one of the two")
  }
  const passwordFile = fileOf(part("passwordFile"), parts.passwordFile, common.hasCredentials)
  const secret = passwordFile === undefined ? value("password") : undefined
  const password = parts.password ?? (secret === undefined ? undefined : Redacted.make(secret))
  const username = userOf(given, common.hasCredentials)
  const givenTimeout = hostTimeoutOf(given)
  const hostTimeout = common.connectTimeout === undefined ? givenTimeout : undefined
  return {
    ...first,
    name: hosts.map(({ name }) => name).join(",") || first.name,
    hosts,
    socket: parts.socket,
    database: databaseOf(given, username),
    username,
    password,
    passwordFile: passwordFile ?? (password === undefined ? common.passwordFile : undefined),
    passfile: value("passfile"),
    tlsFiles: ssl === undefined ? tlsFilesOf(given) : undefined,
    isDirectTls: negotiation === "direct",
    sendsServerName: flag(parameter("sslsni"), value("sslsni")),
    bindsChannel: binding === "require",
    requireAuth: parseRequireAuth(parameter("require_auth"), value("require_auth")),
    target: targetOf(given, use),
    isShuffled: balance === "random",
    connectTimeout:
      common.connectTimeout ?? (hostTimeout && hostTimeout * Math.max(1, hosts.length)) ?? defaultConnectTimeout,
    hostTimeout,
    weight: weightOf(part("weight"), parts.weight),
    own: sessionParameters(given),
    isPooled: oneOf(parameter("pgbouncer"), value("pgbouncer"), "false", "true") === "true",
    endpointOf
  }
}
