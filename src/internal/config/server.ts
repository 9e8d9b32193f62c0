/**
 * The settings of a server, checked and complete.
 */
import * as Redacted from "effect/Redacted"
import { concealed } from "../protocol/tls.js"
import { type AuthMethod, parseRequireAuth } from "./authentication.js"
import { type Host, hostsOf, isSocket } from "./hosts.js"
import { connectTimeoutOf, type OwnSettings, ownSettings } from "./ownSettings.js"
import { type Connector, type Given, read, type ServerInput, type TargetSessionAttrs } from "./serverInput.js"
import { checkSsl, type Ssl } from "./ssl.js"
import { type TlsFiles, tlsFilesOf, tlsOf } from "./tls.js"
import { effect, flag, Invalid, oneOf, text } from "./values.js"

/**
 * One host of a server, with its TLS.
 *
 * @since 0.1.0
 * @category models
 */
export interface Endpoint extends Host {
  readonly ssl: Ssl
}

/**
 * A server's hosts and credentials, checked and complete. The address is that of the first host; `name` names all of them.
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
  /** A password file in libpq's form, with a line for each host, database and user. */
  readonly passfile: string | undefined
  readonly tlsFiles: TlsFiles | undefined
  /** Whether TLS begins without a question: `sslnegotiation=direct`. */
  readonly isDirectTls: boolean
  /** Whether TLS names the host to the server: `sslsni`. */
  readonly sendsServerName: boolean
  /** Whether the server must prove that TLS ends at it: `channel_binding=require`. */
  readonly bindsChannel: boolean
  /** The ways to authenticate that are allowed; `undefined` allows all. */
  readonly requireAuth: ReadonlySet<AuthMethod> | undefined
  readonly target: TargetSessionAttrs
  /** Whether the hosts are tried in random order. */
  readonly isShuffled: boolean
  /** Of all hosts together, in milliseconds, if the connection string says so. */
  readonly connectTimeout: number | undefined
  readonly own: OwnSettings
}

/** Settings that all servers of a database share. */
export interface Common {
  readonly passwordFile: string | undefined
  /** Whether user and password come from somewhere else. */
  readonly hasCredentials: boolean
  readonly ssl: Ssl | undefined
}

export const fileOf = (setting: string, given: string | undefined, hasCredentials: boolean): string | undefined => {
  if (given === undefined) return undefined
  if (hasCredentials) throw new Invalid(setting, "given beside credentials", "one of the two")
  return text(setting, given)
}

const endpointsOf = (given: Given, ssl: Ssl | undefined): ReadonlyArray<Endpoint> => {
  const { part, parts } = given
  if (parts.socket === undefined) {
    return hostsOf(given).map((host) => ({ ...host, ssl: ssl ?? tlsOf(given, host) }))
  }
  effect(part("socket"), parts.socket)
  if (ssl === true || (typeof ssl === "object" && ssl.rejectUnauthorized !== false && !ssl.servername)) {
    throw new Invalid(part("ssl"), "without a name to verify, over a socket", "{ servername: ... }, or no ssl")
  }
  const name = text(part("name"), parts.name ?? "socket")
  return [{ name, host: "localhost", address: undefined, port: 5432, ssl: ssl ?? false }]
}

const targetOf = ({ parameter, parameters, part, parts }: Given, role: "writer" | "reader"): TargetSessionAttrs => {
  const isPart = parts.targetSessionAttrs !== undefined
  const setting = isPart ? part("targetSessionAttrs") : parameter("target_session_attrs")
  const given = parts.targetSessionAttrs ?? (parameters?.get("target_session_attrs") || undefined)
  const normal = role === "writer" ? "read-write" : "prefer-standby"
  const target = oneOf(
    setting,
    given ?? normal,
    "any",
    "read-write",
    "read-only",
    "primary",
    "standby",
    "prefer-standby"
  )
  if (role === "reader" || target === "any" || target === "read-write" || target === "primary") return target
  throw new Invalid(setting, `${target} for the writer, which is to accept writes`, "read-write, primary or any")
}

const userOf = ({ parameter, parameters, part, parts }: Given, hasCredentials: boolean): string => {
  const setting = parameters === undefined || parts.username !== undefined ? part("username") : parameter("user")
  const given = parameters === undefined ? parts.username : (parts.username ?? parameters.get("user") ?? "")
  return hasCredentials && given === "" ? "" : text(setting, given)
}

const databaseOf = ({ parameter, parameters, part, parts }: Given, username: string): string => {
  if (parameters === undefined || parts.database !== undefined) return text(part("database"), parts.database)
  // as libpq does
  return text(parameter("dbname"), parameters.get("dbname") || username)
}

/** Refuses what needs TLS where there is none. */
const needTls = (setting: string, given: string, hosts: ReadonlyArray<Endpoint>): void => {
  if (hosts.some((host) => host.ssl === false && !isSocket(host))) {
    throw new Invalid(setting, `${given} without TLS`, "sslmode=verify-full beside it, or ssl")
  }
}

/** Checks a server and fills in the defaults. */
export const server = (
  setting: string,
  input: ServerInput,
  role: "writer" | "reader",
  common: Common
): ServerConfig & { readonly isPooled: boolean } => {
  const given = read(setting, input)
  const { parameter, parameters, part, parts } = given
  const value = (name: string) => parameters?.get(name) || undefined
  checkSsl(part("ssl"), parts.ssl)
  const ssl = concealed(parts.ssl ?? common.ssl)
  const hosts = endpointsOf(given, ssl)
  const [first] = hosts
  if (first === undefined) throw new Invalid(part("host"), "an empty list", "one host or more")
  const setsBinding = parts.channelBinding !== undefined
  const bindingSetting = setsBinding ? part("channelBinding") : parameter("channel_binding")
  const binding = oneOf(
    bindingSetting,
    parts.channelBinding ?? value("channel_binding"),
    "prefer",
    "disable",
    "require"
  )
  if (binding === "require") needTls(bindingSetting, "require", hosts)
  const negotiation = oneOf(parameter("sslnegotiation"), value("sslnegotiation"), "postgres", "direct")
  if (negotiation === "direct") needTls(parameter("sslnegotiation"), "direct", hosts)
  const setsBalance = parts.loadBalanceHosts !== undefined
  const balanceSetting = setsBalance ? part("loadBalanceHosts") : parameter("load_balance_hosts")
  const balance = oneOf(balanceSetting, parts.loadBalanceHosts ?? value("load_balance_hosts"), "disable", "random")
  if (parts.password !== undefined && parts.passwordFile !== undefined) {
    throw new Invalid(part("passwordFile"), "given beside a password", "one of the two")
  }
  const passwordFile = fileOf(part("passwordFile"), parts.passwordFile, common.hasCredentials)
  const secret = passwordFile === undefined ? value("password") : undefined
  const password = parts.password ?? (secret === undefined ? undefined : Redacted.make(secret))
  const username = userOf(given, common.hasCredentials)
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
    connectTimeout: connectTimeoutOf(given, hosts.length),
    own: ownSettings(given),
    isPooled: oneOf(parameter("pgbouncer"), value("pgbouncer"), "false", "true") === "true"
  }
}
