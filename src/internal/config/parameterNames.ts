/**
 * The names of the parameters of a connection string. The parameters of libpq 18 and one of Prisma
 * are accepted. Those of other tools are known only for better errors.
 */
import type { Pair } from "./connectionUri.js"
import { nearestName } from "./nearestName.js"
import { Invalid } from "./optionParsers.js"

/** Values of parameters by their names. */
export type Parameters = ReadonlyMap<string, string>

/** Function that returns the reason to refuse a value of a parameter, if there is one. */
type Refusal = (value: string) => string | undefined

const unless =
  (accepted: ReadonlyArray<string>, reason: string): Refusal =>
  (value) =>
    accepted.includes(value) ? undefined : reason

const never: Refusal = () => undefined

const noGssapi = unless([], "it is for GSSAPI, which the driver does not have: leave it out")
const noOauth = unless(
  [],
  "it is for OAuth, which the driver does not have: leave it out, or give a token by `credentials`"
)
const probes = "Node sends ten probes, one each second, and has no option for it: leave it out, and set keepalives_idle"

/** The parameters of libpq 18, with the refusals of unsupported values. */
const libpq: ReadonlyMap<string, Refusal> = new Map<string, Refusal>([
  ["application_name", never],
  ["channel_binding", never],
  ["client_encoding", never],
  ["connect_timeout", never],
  ["dbname", never],
  ["fallback_application_name", never],
  ["gssdelegation", unless(["0"], "it is for GSSAPI, which the driver does not have: leave it out")],
  ["gssencmode", unless(["disable", "prefer"], "the driver has no GSSAPI encryption: disable or prefer")],
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
  ["min_protocol_version", unless(["3.0"], "the driver speaks version 3.0 of the protocol: 3.0, or leave it out")],
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
    unless(["false", "off", "no", "0"], "the connections of a pool are no replication connections: leave it out")
  ],
  ["require_auth", never],
  ["requirepeer", unless([""], "Node cannot ask for the user at the other end of a socket: leave it out")],
  ["scram_client_key", unless([], "the driver needs the password itself: `password`")],
  ["scram_server_key", unless([], "the driver needs the password itself: `password`")],
  [
    "service",
    unless(
      [],
      "a service file is read by `Db.layerEnv` and `DatabaseConfig.fromEnv` only, so that the environment decides nothing elsewhere"
    )
  ],
  ["ssl_max_protocol_version", never],
  ["ssl_min_protocol_version", never],
  ["sslcert", never],
  [
    "sslcertmode",
    unless(["allow", "disable"], "the driver does not know if the server has requested a certificate: allow or disable")
  ],
  ["sslcompression", unless(["0"], "TLS is not compressed, which is insecure: 0, or leave it out")],
  ["sslcrl", never],
  ["sslcrldir", unless([""], "the driver reads one file: sslcrl")],
  ["sslkey", never],
  ["sslkeylogfile", unless([""], "the keys of connections are written nowhere: leave it out")],
  ["sslmode", never],
  ["sslnegotiation", never],
  ["sslpassword", never],
  ["sslrootcert", never],
  ["sslsni", never],
  ["target_session_attrs", never],
  ["tcp_user_timeout", unless(["0"], "Node has no option for it: leave it out, and set keepAlive or statementTimeout")],
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
   * The name; `undefined` if it is similar to no known name. Then it may be a part of a password,
   * and no error shows it.
   */
  readonly name: string | undefined
  readonly given: string
  readonly expected: string
}

/** Collects the last value of each parameter, and refuses all unknown parameters together. */
export const collect = (setting: string, pairs: Iterable<Pair>): Parameters => {
  const parameters = new Map<string, string>()
  const unknown = new Map<string, Refused>()
  for (const [name, value] of pairs) {
    // libpq still accepts the parameter of its versions before 8.0
    if (name === "requiressl") parameters.set("sslmode", value.startsWith("1") ? "require" : "prefer")
    else if (names.includes(name)) parameters.set(name, value)
    else unknown.set(name, asUnknown(name))
  }
  refuse(setting, [...unknown.values()], "a list of parameters that are not known")
  return parameters
}

/** Refuses all parameters with unsupported values together. */
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

/** Throws the refusal of parameters, if there are any; `given` describes several of them. */
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
    const which = nameless === 1 ? "of one more, which" : `of ${nameless} more, which`
    expected.push(`${which} may be a part of a password: ${onlyLibpq}`)
  }
  throw new Invalid(whole, given, expected.join("; "))
}
