/**
 * The hosts of a cluster whose roles are discovered: each of them may be the writer, and is a
 * candidate for reads.
 */
import type { Endpoint, ServerConfig } from "../../ServerConfig.js"

/**
 * Returns the reader of a cluster on one of its hosts. It takes standbys only, so that the primary
 * leaves reading by itself.
 */
export const readerAt = (cluster: ServerConfig, endpoint: Endpoint): ServerConfig => ({
  ...cluster,
  ...endpoint,
  hosts: [endpoint],
  target: "standby",
  isShuffled: false,
  connectTimeout: cluster.hostTimeout ?? cluster.connectTimeout
})

/**
 * Returns the name that several hosts share, if there is one: hosts that differ only by `hostaddr`,
 * or sockets that differ only by the port.
 */
export const sharedName = (hosts: ReadonlyArray<Endpoint>): string | undefined =>
  hosts.find(({ name }, i) => hosts.findIndex((other) => other.name === name) < i)?.name
