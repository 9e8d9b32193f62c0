/**
 * The search for the writer of a database, with a probe for each host.
 */

import type { DatabaseConfig, Endpoint } from "../../DatabaseConfig.js"
import type { CredentialSource } from "../connection/credentials.js"
import { Probe } from "./probe.js"
import { answerPart } from "./silenceWatch.js"
import { type SearchedHost, type SearchReports, WriterSearch } from "./writerSearch.js"

/**
 * Makes the search, if the writer has several hosts, or is that of a cluster, and must accept writes.
 * A pooler chooses the server itself, so the role is checked at login only.
 */
export const makeWriterSearch = (
  config: DatabaseConfig,
  credentials: CredentialSource,
  reports: SearchReports
): WriterSearch | undefined => {
  const { cluster, pool, writer } = config
  const mustWrite = writer.target === "read-write" || writer.target === "primary"
  if (!mustWrite || config.session.mode !== "session" || writer.socket !== undefined) return undefined
  // hosts that differ only by `hostaddr`, or sockets that differ by the port, have the same name,
  // which cannot tell them apart
  const endpoints = new Map(writer.hosts.map((endpoint) => [endpoint.name, endpoint]))
  const addresses = new Set(writer.hosts.map(({ address, host, port }) => `${host} ${address} ${port}`))
  if (cluster === undefined && (endpoints.size !== addresses.size || endpoints.size < 2)) return undefined
  const session = { ...config.session, ...writer.own }
  const { connectTimeout } = pool
  const staysOpen = config.monitor.isOn
  const makeHost = (endpoint: Endpoint): SearchedHost => {
    const server = { ...writer, ...endpoint, hosts: [endpoint] }
    const onLost = () => search.doubt(endpoint.name)
    // a host of a cluster may serve reads, too
    const hasHeard = (since: number) => reports.hasHeard(endpoint.name, since) || reports.hasRead(endpoint.name, since)
    const times = { connectTimeout, reconnectTimeout: staysOpen ? config.monitor.detectionTime : connectTimeout }
    return {
      endpoint,
      probe: new Probe({
        server,
        session,
        credentials,
        ...times,
        maxAge: pool.maxLifetime,
        staysOpen,
        onLost,
        hasHeard
      })
    }
  }
  const search: WriterSearch = new WriterSearch(
    [...endpoints.values()],
    makeHost,
    staysOpen ? config.monitor.detectionTime * answerPart : connectTimeout,
    reports
  )
  return search
}
