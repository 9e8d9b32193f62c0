/**
 * The check of the servers of a database, whose roles are given or discovered.
 */
import type { CommonOptions, HostsOption, WriterOption } from "../../DatabaseOptions.js"
import type { ClusterConfig, ServerConfig, ServerInput } from "../../ServerConfig.js"
import { readerAt, sharedName } from "./discoveredReader.js"
import type { GivenOptions } from "./optionNames.js"
import { duration, effect, Invalid, positive } from "./optionParsers.js"
import { isEmptyUrl, redactInput } from "./serverInput.js"
import { type CheckedServer, type SharedOptions, serverConfig } from "./serverOptions.js"

/** Returns a server with the session settings of its connection string that no option overrides. */
const withoutOverridden = (
  { endpointOf: _, isPooled: __, ...given }: CheckedServer,
  options: GivenOptions
): ServerConfig => {
  const { applicationName, keepAlive, ...own } = given.own
  const limitsIdleTime = /\bidle_in_transaction_session_timeout\b/.test(own.startupOptions ?? "")
  return {
    ...given,
    own: {
      ...own,
      // the connection string takes precedence over the default
      ...(limitsIdleTime && options.idleInTransactionTimeout === undefined
        ? { idleInTransactionTimeout: undefined }
        : {}),
      ...(applicationName === undefined || options.applicationName !== undefined ? {} : { applicationName }),
      ...("keepAlive" in given.own && options.keepAlive === undefined ? { keepAlive } : {})
    }
  }
}

/** Returns the given readers; a single empty URL, from an empty variable, counts as none. */
const readersOf = (readers: CommonOptions["readers"]): ReadonlyArray<ServerInput> => {
  if (readers === undefined) return []
  if (!Array.isArray(readers)) throw new Invalid("readers", "no list", "a list of URLs or servers in parts")
  return readers.length === 1 && isEmptyUrl(readers[0]) ? [] : readers
}

/** Checked servers of a database. */
interface DatabaseServers {
  readonly writer: ServerConfig
  readonly readers: ReadonlyArray<ServerConfig>
  readonly cluster: ClusterConfig | undefined
  /** True if a connection string has `pgbouncer=true`. */
  readonly isPooled: boolean
  /** The servers as they were given, with their secrets redacted. */
  readonly given: WriterOption | HostsOption
}

/** Checks `hosts` and `discover`; each host of the cluster is a reader as well. */
const clusterOf = (options: GivenOptions, input: ServerInput, common: SharedOptions): DatabaseServers => {
  if (options.writer !== undefined || options.readers !== undefined) {
    const other = options.writer === undefined ? "readers" : "writer"
    throw new Invalid(
      "hosts",
      `given beside ${other}`,
      "hosts alone, whose roles are discovered, or writer and readers"
    )
  }
  const given = serverConfig("hosts", input, "cluster", common)
  if (given.socket !== undefined) {
    throw new Invalid("hosts.socket", "a stream, which has no hosts", "hosts, or writer with the socket")
  }
  const duplicate = sharedName(given.hosts)
  if (duplicate !== undefined) throw new Invalid("hosts", `${duplicate} twice`, "a name of its own for each host")
  const writer = withoutOverridden(given, options)
  return {
    writer,
    readers: writer.hosts.map((host) => readerAt(writer, host)),
    cluster: {
      discover: options.discover,
      discoverInterval: positive(
        "discoverInterval",
        duration("discoverInterval", options.discoverInterval, "30 seconds")
      ),
      endpointOf: given.endpointOf
    },
    isPooled: given.isPooled,
    given: { hosts: redactInput(input) }
  }
}

/** Checks the servers, whose roles are given or discovered. */
export const serversOf = (options: GivenOptions, common: SharedOptions): DatabaseServers => {
  effect("discover", options.discover)
  if (options.hosts !== undefined) return clusterOf(options, options.hosts, common)
  for (const name of ["discover", "discoverInterval"] as const) {
    if (options[name] === undefined) continue
    throw new Invalid(name, "given without hosts", "hosts, which has the user and the database of all hosts")
  }
  if (options.writer === undefined) throw new Invalid("writer", "missing", "writer, or hosts for a whole cluster")
  const writer = serverConfig("writer", options.writer, "writer", common)
  const readers = readersOf(options.readers).map((input, i) => serverConfig(`readers[${i}]`, input, "reader", common))
  return {
    writer: withoutOverridden(writer, options),
    readers: readers.map((reader) => withoutOverridden(reader, options)),
    cluster: undefined,
    isPooled: [writer, ...readers].some((server) => server.isPooled),
    given: { writer: redactInput(options.writer) }
  }
}
