/**
 * The check that a host is this machine.
 */
import { BlockList, isIP } from "node:net"
import type { Host } from "../../ServerConfig.js"

/** Checks if a host is the folder of a Unix socket. */
export const isSocket = ({ host }: Pick<Host, "host">): boolean => host.startsWith("/")

const loopback = new BlockList()
loopback.addSubnet("127.0.0.0", 8)
loopback.addAddress("::1", "ipv6")

/** Checks if a host is certainly this machine: a socket, a loopback address or `localhost`. */
export const isLocal = (host: Pick<Host, "host" | "address">): boolean => {
  const target = host.address ?? host.host
  if (isSocket(host) || target === "localhost") return true
  const family = isIP(target)
  return family !== 0 && loopback.check(target, family === 4 ? "ipv4" : "ipv6")
}
