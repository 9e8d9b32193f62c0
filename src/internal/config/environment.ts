/**
 * libpq's environment: the variables, which Effect's `ConfigProvider` reads, the service file, and
 * the location of the password file.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import * as Config from "effect/Config"
import * as ConfigError from "effect/ConfigError"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { isMissingFile } from "../../SqlState.js"
import { thrownMessage } from "../protocol/thrownValue.js"
import { parseConnectionString } from "./connectionString.js"
import type { Pair } from "./connectionUri.js"
import { formatKeywords } from "./keywordString.js"
import { Invalid } from "./optionParsers.js"
import { collect } from "./parameterNames.js"
import { parseService } from "./serviceFile.js"

/** The parameters that an environment variable can set. */
const variables: ReadonlyArray<readonly [parameter: string, variable: string]> = [
  ["service", "PGSERVICE"],
  ["user", "PGUSER"],
  ["password", "PGPASSWORD"],
  ["passfile", "PGPASSFILE"],
  ["channel_binding", "PGCHANNELBINDING"],
  ["connect_timeout", "PGCONNECT_TIMEOUT"],
  ["dbname", "PGDATABASE"],
  ["host", "PGHOST"],
  ["hostaddr", "PGHOSTADDR"],
  ["port", "PGPORT"],
  ["client_encoding", "PGCLIENTENCODING"],
  ["options", "PGOPTIONS"],
  ["application_name", "PGAPPNAME"],
  ["sslmode", "PGSSLMODE"],
  ["sslnegotiation", "PGSSLNEGOTIATION"],
  ["sslcompression", "PGSSLCOMPRESSION"],
  ["sslcert", "PGSSLCERT"],
  ["sslkey", "PGSSLKEY"],
  ["sslcertmode", "PGSSLCERTMODE"],
  ["sslrootcert", "PGSSLROOTCERT"],
  ["sslcrl", "PGSSLCRL"],
  ["sslcrldir", "PGSSLCRLDIR"],
  ["sslsni", "PGSSLSNI"],
  ["requirepeer", "PGREQUIREPEER"],
  ["require_auth", "PGREQUIREAUTH"],
  ["min_protocol_version", "PGMINPROTOCOLVERSION"],
  ["max_protocol_version", "PGMAXPROTOCOLVERSION"],
  ["ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"],
  ["ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"],
  ["gssencmode", "PGGSSENCMODE"],
  ["krbsrvname", "PGKRBSRVNAME"],
  ["gsslib", "PGGSSLIB"],
  ["gssdelegation", "PGGSSDELEGATION"],
  ["target_session_attrs", "PGTARGETSESSIONATTRS"],
  ["load_balance_hosts", "PGLOADBALANCEHOSTS"]
]

const optional = (name: string): Config.Config<string | undefined> =>
  Config.map(Config.option(Config.string(name)), Option.getOrUndefined)

/** Locations of libpq's files. */
interface FileLocations {
  readonly serviceFile: string | undefined
  readonly systemFolder: string | undefined
  readonly home: string | undefined
}

/** Reads a file if it exists. */
const readIfExists = (file: string | undefined): string | undefined => {
  if (file === undefined) return undefined
  try {
    return fs.readFileSync(file, "utf8")
  } catch (cause) {
    if (cause instanceof Error && "code" in cause && isMissingFile(String(cause.code))) return undefined
    throw cause
  }
}

const inFolder = (folder: string | undefined, file: string): string | undefined =>
  folder ? path.join(folder, file) : undefined

/** Returns the parameters of a service from the user's file, or else from the system's file. */
const findService = (service: string, { home, serviceFile, systemFolder }: FileLocations): ReadonlyArray<Pair> => {
  for (const file of [serviceFile ?? inFolder(home, ".pg_service.conf"), inFolder(systemFolder, "pg_service.conf")]) {
    const pairs = parseService(readIfExists(file) ?? "", service)
    // reversed, because the first value of a parameter counts in a file, but the last in a list
    if (pairs !== undefined) return [...pairs].reverse()
  }
  throw new Invalid("service", "not defined", "a service of the file that PGSERVICEFILE names, or ~/.pg_service.conf")
}

/**
 * Merges the parameters of a connection string, a service and the environment into one keyword
 * string. The connection string takes precedence over the service, and the service over the
 * environment.
 */
const merge = (url: string | undefined, environment: ReadonlyMap<string, string>, locations: FileLocations): string => {
  const given = url === undefined ? new Map<string, string>() : parseConnectionString("url", url)
  const service = given.get("service") || environment.get("service")
  const ofService = service ? collect(`service ${service}`, findService(service, locations)) : []
  // with the empty host, a missing host is reported, and not an empty connection string
  const merged = new Map([["host", ""], ...environment, ...ofService, ...given])
  merged.delete("service")
  const passfile = inFolder(locations.home, ".pgpass")
  if (!merged.get("passfile") && passfile !== undefined) merged.set("passfile", passfile)
  return formatKeywords(merged)
}

/**
 * Makes the `Config` that reads the environment as libpq does, and returns a keyword string with
 * all parameters. A given connection string takes precedence over the environment.
 */
export const fromEnvironment = (
  prefix: string,
  url: Redacted.Redacted<string> | undefined
): Config.Config<Redacted.Redacted<string>> =>
  Config.all({
    parameters: Config.all(variables.map(([, variable]) => optional(prefix + variable))),
    serviceFile: optional(`${prefix}PGSERVICEFILE`),
    systemFolder: optional(`${prefix}PGSYSCONFDIR`),
    home: optional("HOME")
  }).pipe(
    Config.mapOrFail(({ parameters, ...locations }) => {
      const environment = new Map(
        variables.flatMap(([name], index): ReadonlyArray<Pair> => {
          const value = parameters[index]
          return value === undefined ? [] : [[name, value]]
        })
      )
      return Either.try({
        try: () => Redacted.make(merge(url && Redacted.value(url), environment, locations)),
        catch: (cause) => ConfigError.InvalidData([], messageOf(cause))
      })
    })
  )

const messageOf = (cause: unknown): string =>
  cause instanceof Invalid
    ? `${cause.setting} is ${cause.given}; expected ${cause.expected}`
    : `a service file cannot be read: ${thrownMessage(cause)}`
