/**
 * The search for the writer of a database, with a probe for each host.
 */

import type { DatabaseConfig } from "../../DatabaseConfig.js"
import type { CredentialSource } from "../connection/credentials.js"
import { Probe } from "./probe.js"
import { answerPart } from "./silenceWatch.js"
import { type SearchReports, WriterSearch } from "./writerSearch.js"

/**
 * Makes the search, if the writer has several hosts, and must accept writes. A pooler chooses the
 * server itself, so the role is checked at login only.
 */
export const makeWriterSearch = (
  config: DatabaseConfig,
  credentials: CredentialSource,
  reports: SearchReports
): WriterSearch | undefined => {
  const { pool, writer } = config
  const isSearched = writer.hosts.length > 1 && (writer.target === "read-write" || writer.target === "primary")
  if (!isSearched || config.session.mode !== "session" || writer.socket !== undefined) return undefined
  const session = { ...config.session, ...writer.own }
  // hosts that differ only by `hostaddr`, or sockets that differ by the port, have the same name,
  // which cannot tell them apart
  const endpoints = new Map(writer.hosts.map((endpoint) => [endpoint.name, endpoint]))
  const addresses = new Set(writer.hosts.map(({ address, host, port }) => `${host} ${address} ${port}`))
  if (endpoints.size !== addresses.size || endpoints.size < 2) return undefined
  const { connectTimeout } = pool
  const staysOpen = config.monitor.isOn
  const hosts = [...endpoints.values()].map((endpoint) => {
    const server = { ...writer, ...endpoint, hosts: [endpoint] }
    const onLost = () => search.doubt(endpoint.name)
    return { endpoint, probe: new Probe({ server, session, credentials, connectTimeout, staysOpen, onLost }) }
  })
  const search: WriterSearch = new WriterSearch(
    hosts,
    staysOpen ? config.monitor.detectionTime * answerPart : connectTimeout,
    reports
  )
  return search
}
