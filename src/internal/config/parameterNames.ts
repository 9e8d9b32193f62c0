/**
 * The names of the parameters of a connection string. The parameters of libpq 18 and one of Prisma
 * are known. A parameter of another tool is refused, with a hint to the setting that replaces it.
 */
import type { Pair } from "./connectionUri.js"
import { nearestName } from "./nearestName.js"
import { Invalid } from "./optionParsers.js"

/** Values of parameters by their names. */
export type Parameters = ReadonlyMap<string, string>

/** Function that describes the supported values of a parameter if it refuses the given one. */
type Refusal = (value: string) => string | undefined

const unless =
  (accepted: ReadonlyArray<string>, expected: string): Refusal =>
  (value) =>
    accepted.includes(value) ? undefined : expected

const never: Refusal = () => undefined

const noGssapi = unless([], "no such parameter, because the driver has no GSSAPI")
const noOauth = unless([], "no such parameter, because the driver has no OAuth; `credentials` can return a token")
const probes =
  "no such parameter, because Node always sends ten probes, one each second; keepalives_idle sets when they begin"

/** The parameters of libpq 18. Each has a function that refuses unsupported values. */
const libpq: ReadonlyMap<string, Refusal> = new Map<string, Refusal>([
  ["application_name", never],
  ["channel_binding", never],
  ["client_encoding", never],
  ["connect_timeout", never],
  ["dbname", never],
  ["fallback_application_name", never],
  ["gssdelegation", unless(["0"], "no such parameter, because the driver has no GSSAPI")],
  ["gssencmode", unless(["disable", "prefer"], "disable or prefer, because the driver has no GSSAPI encryption")],
  ["gsslib", noGssapi],
  ["host", never],
  ["hostaddr", never],
  ["keepalives", never],
  ["keepalives_count", unless(["0"], probes)],
  ["keepalives_idle", never],
  ["keepalives_interval", unless(["0"], probes)],
  ["krbsrvname", noGssapi],
  ["load_balance_hosts", never],
  ["max_protocol_version", unless(["3.0", "3.2", "latest"], "3.0, 3.2 or latest")],
  ["min_protocol_version", unless(["3.0"], "3.0, because the driver uses this version of the protocol")],
  ["oauth_client_id", noOauth],
  ["oauth_client_secret", noOauth],
  ["oauth_issuer", noOauth],
  ["oauth_scope", noOauth],
  ["options", never],
  ["passfile", never],
  ["password", never],
  ["port", never],
  [
    "replication",
    unless(["false", "off", "no", "0"], "no such parameter, because a pool has no replication connections")
  ],
  ["require_auth", never],
  ["requirepeer", unless([""], "no such parameter, because Node cannot ask for the user at the other end of a socket")],
  ["scram_client_key", unless([], "the parameter `password`, because the driver has no SCRAM without it")],
  ["scram_server_key", unless([], "the parameter `password`, because the driver has no SCRAM without it")],
  [
    "service",
    unless(
      [],
      "no such parameter here, because only `Db.layerEnv` and `DatabaseConfig.fromEnv` read a service file and the environment"
    )
  ],
  ["ssl_max_protocol_version", never],
  ["ssl_min_protocol_version", never],
  ["sslcert", never],
  [
    "sslcertmode",
    unless(
      ["allow", "disable"],
      "allow or disable, because the driver does not know if the server has requested a certificate"
    )
  ],
  ["sslcompression", unless(["0"], "0, because compression of TLS is insecure")],
  ["sslcrl", never],
  ["sslcrldir", unless([""], "sslcrl, because the driver reads one file")],
  ["sslkey", never],
  ["sslkeylogfile", unless([""], "no such parameter, because the keys of connections are not written to a file")],
  ["sslmode", never],
  ["sslnegotiation", never],
  ["sslpassword", never],
  ["sslrootcert", never],
  ["sslsni", never],
  ["target_session_attrs", never],
  [
    "tcp_user_timeout",
    unless(["0"], "no such parameter, because Node has no such option; keepAlive and statementTimeout replace it")
  ],
  ["user", never]
])

/** The settings of this library that replace the parameters of other tools. */
const replacements: ReadonlyMap<string, string> = new Map([
  // Prisma
  ["connection_limit", "the option `maxConnections`"],
  ["pool_timeout", "the option `acquireTimeout`"],
  ["schema", "`Db.withSchema`, or options=-c%20search_path%3D... in the URL"],
  ["socket_timeout", "the option `statementTimeout`"],
  ["statement_cache_size", "the option `preparedStatements`, 0 for none"],
  ["sslaccept", "sslmode: verify-full for strict, no-verify for accept_invalid_certs"],
  ["sslidentity", "sslcert and sslkey"],
  ["max_idle_connection_lifetime", "the option `idleTimeout`"],
  ["max_connection_lifetime", "the option `maxLifetime`"],
  // node-postgres
  ["uselibpqcompat", "sslmode alone: require verifies here, no-verify encrypts only"],
  ["encoding", "client_encoding, which is UTF8"],
  ["ssl", "sslmode: disable, require, verify-full or no-verify"],
  ["sslca", "sslrootcert"],
  ["statement_timeout", "the option `statementTimeout`"],
  ["lock_timeout", "the option `lockTimeout`"],
  ["idle_in_transaction_session_timeout", "the option `idleInTransactionTimeout`"],
  ["query_timeout", "the option `statementTimeout`"],
  ["max", "the option `maxConnections`"],
  // JDBC, Npgsql, SQLAlchemy, pgx, hosts of databases
  ["currentSchema", "options=-c%20search_path%3D... in the URL, or `Db.withSchema`"],
  ["search_path", "options=-c%20search_path%3D... in the URL, or `Db.withSchema`"],
  ["database", "dbname"],
  ["username", "user"],
  ["loginTimeout", "connect_timeout, or the option `connectTimeout`"],
  ["connectTimeout", "connect_timeout, or the option `connectTimeout`"],
  ["socketTimeout", "the option `statementTimeout`"],
  ["ApplicationName", "application_name, or the option `applicationName`"],
  ["targetServerType", "target_session_attrs"],
  ["prepareThreshold", "the option `preparedStatements`, 0 for none"],
  ["pool_size", "the option `maxConnections`"],
  ["max_overflow", "the option `maxOverflow`"],
  ["pool_max_conns", "the option `maxConnections`"],
  ["default_query_exec_mode", "the option `preparedStatements`, 0 for none"],
  ["endpoint", "options=endpoint%3D... in the URL"],
  ["supa", "nothing: leave it out"]
])

/** The parameter of Prisma for the option `mode`. */
const ofPrisma = ["pgbouncer"]

export const libpqNames: ReadonlySet<string> = new Set(libpq.keys())

const names = [...libpq.keys(), ...ofPrisma]

/** Refusal of a parameter. */
interface Refused {
  /**
   * The name of the parameter. It is `undefined` if the name is similar to no known one, because it
   * may be a part of a password, which no error may show.
   */
  readonly name: string | undefined
  readonly given: string
  readonly expected: string
}

/** Returns the last value of each parameter. Refuses all unknown parameters in one error. */
export const collect = (setting: string, pairs: Iterable<Pair>): Parameters => {
  const parameters = new Map<string, string>()
  const unknown = new Map<string, Refused>()
  for (const [name, value] of pairs) {
    // libpq still accepts `requiressl`, which `sslmode` has replaced in version 8.0
    if (name === "requiressl") parameters.set("sslmode", value.startsWith("1") ? "require" : "prefer")
    else if (names.includes(name)) parameters.set(name, value)
    else unknown.set(name, asUnknown(name))
  }
  refuse(setting, [...unknown.values()], "a list of parameters that are not known")
  return parameters
}

/** Refuses all parameters with unsupported values in one error. */
export const refuseUnsupported = (setting: string, parameters: Parameters): void => {
  const given = "not supported"
  const refused = [...parameters].flatMap(([name, value]): ReadonlyArray<Refused> => {
    const expected = libpq.get(name)?.(value)
    return expected === undefined ? [] : [{ name, given, expected }]
  })
  refuse(setting, refused, given)
}

const onlyLibpq = "libpq's parameters only"

const asUnknown = (name: string): Refused => {
  const instead = replacements.get(name)
  if (instead !== undefined) return { name, given: "a parameter of another tool", expected: instead }
  const near = nearestName(name, names)
  return near === undefined
    ? { name: undefined, given: "a connection string with an unknown parameter", expected: onlyLibpq }
    : { name, given: "an unknown parameter", expected: near }
}

/** Throws one error for all refused parameters, if there are any. `given` describes several. */
const refuse = (setting: string, refused: ReadonlyArray<Refused>, given: string): void => {
  const named = refused.filter(({ name }) => name !== undefined)
  const nameless = refused.length - named.length
  const [first] = refused
  if (first === undefined) return
  const whole = named.length === 0 ? setting : `${setting} (${named.map(({ name }) => name).join(", ")})`
  if (refused.length === 1) throw new Invalid(whole, first.given, first.expected)
  if (named.length === 0) {
    throw new Invalid(setting, `a connection string with ${nameless} unknown parameters`, onlyLibpq)
  }
  const expected = named.map(({ expected, name }) => `${name}: ${expected}`)
  if (nameless > 0) {
    const which = nameless === 1 ? "one more is not shown, because it" : `${nameless} more are not shown, because they`
    expected.push(`${which} may be a part of a password: ${onlyLibpq}`)
  }
  throw new Invalid(whole, given, expected.join("; "))
}
