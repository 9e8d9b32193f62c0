/**
 * The check of the settings of a server, and the defaults of missing ones.
 */
import * as Redacted from "effect/Redacted"
import type { Endpoint, ServerConfig, ServerInput, Ssl, TargetSessionAttrs } from "../../ServerConfig.js"
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
}

/** The default timeout for all hosts of a server together, in milliseconds. */
const defaultConnectTimeout = 5000

/** Checks and returns the path of a password file. Refuses it beside a credential provider. */
export const fileOf = (setting: string, given: string | undefined, hasCredentials: boolean): string | undefined => {
  if (given === undefined) return undefined
  if (hasCredentials) throw new Invalid(setting, "given beside credentials", "one of the two")
  return text(setting, given)
}

const endpointsOf = (given: ServerParts, ssl: Ssl | undefined): ReadonlyArray<Endpoint> => {
  const { part, parts } = given
  if (parts.socket === undefined) {
    return hostsOf(given).map((host) => ({ ...host, ssl: ssl ?? tlsParameters(given, host) }))
  }
  effect(part("socket"), parts.socket)
  if (ssl === true || (typeof ssl === "object" && ssl.rejectUnauthorized !== false && !ssl.servername)) {
    throw new Invalid(part("ssl"), "without a name to verify, over a socket", "{ servername: ... }, or no ssl")
  }
  const name = text(part("name"), parts.name ?? "socket")
  return [{ name, host: "localhost", address: undefined, port: 5432, ssl: ssl ?? false }]
}

/**
 * Returns the value of a setting, and the name of the setting in errors. A part takes precedence
 * over a parameter of the connection string.
 */
const partOrParameter = (
  { parameter, parameters, part, parts }: ServerParts,
  name: "channelBinding" | "loadBalanceHosts" | "targetSessionAttrs",
  libpqName: string
): readonly [setting: string, value: string | undefined] => {
  const value = parts[name]
  return value === undefined ? [parameter(libpqName), parameters?.get(libpqName) || undefined] : [part(name), value]
}

const targets = ["any", "read-write", "read-only", "primary", "standby", "prefer-standby"] as const

const targetOf = (given: ServerParts, role: "writer" | "reader"): TargetSessionAttrs => {
  const [setting, value = role === "writer" ? "read-write" : "prefer-standby"] = partOrParameter(
    given,
    "targetSessionAttrs",
    "target_session_attrs"
  )
  const target = oneOf(setting, value, ...targets)
  if (role === "reader" || target === "any" || target === "read-write" || target === "primary") return target
  throw new Invalid(setting, `${target} for the writer, which is to accept writes`, "read-write, primary or any")
}

const userOf = ({ parameter, parameters, part, parts }: ServerParts, hasCredentials: boolean): string => {
  const setting = parameters === undefined || parts.username !== undefined ? part("username") : parameter("user")
  const given = parameters === undefined ? parts.username : (parts.username ?? parameters.get("user") ?? "")
  return hasCredentials && given === "" ? "" : text(setting, given)
}

const databaseOf = ({ parameter, parameters, part, parts }: ServerParts, username: string): string => {
  if (parameters === undefined || parts.database !== undefined) return text(part("database"), parts.database)
  // the default of libpq
  return text(parameter("dbname"), parameters.get("dbname") || username)
}

/** Refuses a setting that requires TLS if a host, except for a Unix socket, has no TLS. */
const requireTls = (setting: string, given: string, hosts: ReadonlyArray<Endpoint>): void => {
  if (hosts.some((host) => host.ssl === false && !isSocket(host))) {
    throw new Invalid(setting, `${given} without TLS`, "sslmode=verify-full beside it, or ssl")
  }
}

const weightOf = (setting: string, given: number | undefined): number => {
  if (given === undefined) return 1
  if (!Number.isFinite(given) || given <= 0) throw new Invalid(setting, String(given), "a number above 0")
  return given
}

/** Checks a server and fills in the defaults. */
export const serverConfig = (
  setting: string,
  input: ServerInput,
  role: "writer" | "reader",
  common: SharedOptions
): ServerConfig & { readonly isPooled: boolean } => {
  const given = readInput(setting, input)
  const { parameter, parameters, part, parts } = given
  const value = (name: string) => parameters?.get(name) || undefined
  checkSsl(part("ssl"), parts.ssl)
  const ssl = concealSecrets(parts.ssl ?? common.ssl)
  const hosts = endpointsOf(given, ssl)
  const [first] = hosts
  if (first === undefined) throw new Invalid(part("host"), "an empty list", "one host or more")
  const [bindingSetting, givenBinding] = partOrParameter(given, "channelBinding", "channel_binding")
  const binding = oneOf(bindingSetting, givenBinding, "prefer", "disable", "require")
  if (binding === "require") requireTls(bindingSetting, "require", hosts)
  const negotiation = oneOf(parameter("sslnegotiation"), value("sslnegotiation"), "postgres", "direct")
  if (negotiation === "direct") requireTls(parameter("sslnegotiation"), "direct", hosts)
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
    name: hosts.map(({ name }) => name).join(","),
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
    target: targetOf(given, role),
    isShuffled: balance === "random",
    connectTimeout: common.connectTimeout ?? (hostTimeout && hostTimeout * hosts.length) ?? defaultConnectTimeout,
    hostTimeout,
    weight: weightOf(part("weight"), parts.weight),
    own: sessionParameters(given),
    isPooled: oneOf(parameter("pgbouncer"), value("pgbouncer"), "false", "true") === "true"
  }
}
