/**
 * The hosts of a server, from libpq's lists of names, addresses and ports.
 */
import { isIP } from "node:net"
import type { DiscoveredHost, Host } from "../../ServerConfig.js"
import { isSocket } from "./localHost.js"
import { Invalid, integer, port, text } from "./optionParsers.js"
import type { ServerParts } from "./serverInput.js"

/** Returns the name of a host: `host:port`, `[address]:port`, or the folder of a Unix socket. */
const nameOf = (host: string, port: number): string => {
  if (host.startsWith("/")) return host
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`
}

/** Splits a list of libpq. An empty text has no entries. */
const split = (list: string | undefined): ReadonlyArray<string> => (list ? list.split(",") : [])

const listOf = <A>(given: A | ReadonlyArray<A>): ReadonlyArray<A> => (Array.isArray(given) ? given : [given as A])

/**
 * Reads a port of a connection string, by default 5432. The error does not show the text, which may
 * be a part of a password.
 */
const portOf = (setting: string, given: string): number => {
  const number = given === "" ? 5432 : integer(setting, given)
  if (number < 1 || number > 65535) throw new Invalid(setting, "no port", "a port from 1 to 65535")
  return number
}

/** Checks and returns one host. `setting` is the name of its setting in errors. */
const checkedHost = (setting: string, given: string, address: string | undefined, port: number): Host => {
  const host = text(setting, given)
  if (host.startsWith("@")) {
    throw new Invalid(setting, "an abstract Unix socket", "a host, or the folder of a Unix socket")
  }
  // if the password was not encoded in a URL, a part of it is read as the host
  if (host.includes("@") && !isSocket({ host })) {
    throw new Invalid(setting, "a host with an @", "the name of a host; in a URL, %40 for an @ in the user or password")
  }
  return { name: nameOf(host, port), host, address, port }
}

/** Checks and returns a host in the answer of `discover`. */
export const checkedDiscoveredHost = (given: DiscoveredHost): Host => {
  if (typeof given !== "object" || given === null) throw new Invalid("a host", "no object", "{ host, port }")
  const { address, name, port: givenPort = 5432 } = given
  if (address !== undefined && isIP(address) === 0)
    throw new Invalid("the address of a host", "no address", "IPv4 or IPv6")
  const host = checkedHost("the host", given.host, address, port("the port of a host", givenPort))
  return name === undefined ? host : { ...host, name: text("the name of a host", name) }
}

/**
 * Returns the hosts of a server, which may share one port. The default port is 5432. Without
 * `isOptional`, there must be one.
 */
export const hostsOf = (
  { parameter, parameters, part, parts }: ServerParts,
  isOptional: boolean
): ReadonlyArray<Host> => {
  const isPart = parameters === undefined || parts.host !== undefined
  const setting = isPart ? part("host") : parameter("host")
  const names = isPart ? listOf(parts.host).map((name) => text(setting, name)) : split(parameters.get("host"))
  // an address belongs to the name with the same index
  const addresses = isPart ? [] : split(parameters.get("hostaddr"))
  const ports =
    parts.port === undefined
      ? split(parameters?.get("port")).map((given) => portOf(parameter("port"), given))
      : listOf(parts.port).map((given) => port(part("port"), given))
  const count = Math.max(names.length, addresses.length)
  if (count === 0) {
    if (isOptional) return []
    const expected = "a host, or the folder of a Unix socket: libpq's own default differs from machine to machine"
    throw new Invalid(setting, "missing", expected)
  }
  if (names.length > 0 && addresses.length > 0 && names.length !== addresses.length) {
    throw new Invalid(parameter("hostaddr"), "a list of another length than host", "an address for each host")
  }
  if (ports.length > 1 && ports.length !== count) {
    const expected = "one port for all hosts, or one for each"
    throw new Invalid(parts.port === undefined ? parameter("port") : part("port"), "a list of another length", expected)
  }
  return Array.from({ length: count }, (_, i) => {
    const address = addresses[i] || undefined
    if (address !== undefined && isIP(address) === 0) {
      throw new Invalid(parameter("hostaddr"), "no address", "IPv4 or IPv6 addresses, separated by commas")
    }
    const ownPort = ports[ports.length > 1 ? i : 0] ?? 5432
    return checkedHost(setting, names[i] || address || "", address, ownPort)
  })
}
