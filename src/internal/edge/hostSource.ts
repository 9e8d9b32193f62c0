/**
 * The source of the hosts of a cluster. It runs the effect `discover` of the program, and checks the
 * hosts that it returns.
 */
import * as Cause from "effect/Cause"
import type * as Runtime from "effect/Runtime"
import type { ClusterConfig, DatabaseConfig, DiscoveredHost, Endpoint } from "../../DatabaseConfig.js"
import { sharedName } from "../config/discoveredReader.js"
import { checkedDiscoveredHost } from "../config/hosts.js"
import { Invalid } from "../config/optionParsers.js"
import { toError } from "../protocol/thrownValue.js"
import type { HostSource } from "../topology/hostDiscovery.js"
import { makeRun } from "./runCallback.js"

/** The largest number of hosts of an answer: each gets a probe and a pool. */
const maxHosts = 100

/**
 * Checks the answer of the program, which may be of a wrong type, for example if it was read from
 * JSON. Throws an error that says what is wrong.
 */
const endpointsOf = (answer: ReadonlyArray<DiscoveredHost>, { endpointOf }: ClusterConfig): ReadonlyArray<Endpoint> => {
  if (!Array.isArray(answer)) throw new Error("the answer is no list of hosts")
  if (answer.length === 0) throw new Error("the answer has no host")
  if (answer.length > maxHosts) throw new Error(`the answer has ${answer.length} hosts, more than ${maxHosts}`)
  const endpoints = answer.map((host: DiscoveredHost) => endpointOf(checkedDiscoveredHost(host)))
  const duplicate = sharedName(endpoints)
  if (duplicate !== undefined) throw new Error(`the answer has ${duplicate} twice`)
  return endpoints
}

const errorOf = (error: unknown): Error =>
  error instanceof Invalid ? new Error(`${error.setting}: ${error.given}, and not ${error.expected}`) : toError(error)

/** Creates the source of the hosts of a database, if its hosts are discovered. */
export const makeHostSource = (
  { cluster }: DatabaseConfig,
  runtime: Runtime.Runtime<never>
): HostSource | undefined => {
  if (cluster?.discover === undefined) return undefined
  const { discover } = cluster
  const run = makeRun(runtime)
  return {
    request: (callback) =>
      run(discover, (answer, cause) => {
        if (cause !== undefined) return callback(undefined, errorOf(Cause.squash(cause)))
        let endpoints: ReadonlyArray<Endpoint>
        try {
          endpoints = endpointsOf(answer ?? [], cluster)
        } catch (error) {
          return callback(undefined, errorOf(error))
        }
        callback(endpoints, undefined)
      })
  }
}
