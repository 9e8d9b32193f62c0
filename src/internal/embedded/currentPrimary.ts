/**
 * The search for the primary among the servers of a cluster.
 */
import * as Effect from "effect/Effect"
import { type Operation, OperationFailed } from "./operationFailed.js"
import type { Server } from "./server.js"

interface Candidate {
  readonly server: Server
  readonly timeline: number
}

/** Returns the timeline of a primary, or `undefined` for a standby. */
export const primaryTimeline = (operation: Operation, server: Server) =>
  server
    .session(operation, (query) =>
      query("SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_lsn()) END AS file")
    )
    .pipe(
      Effect.map(([row]) => (typeof row?.file === "string" ? Number.parseInt(row.file.slice(0, 8), 16) : undefined))
    )

/** Returns the server and its timeline if it answers and is a primary. */
const ask = (operation: Operation, server: Server) =>
  primaryTimeline(operation, server).pipe(
    Effect.map((timeline): ReadonlyArray<Candidate> => (timeline === undefined ? [] : [{ server, timeline }])),
    Effect.orElseSucceed((): ReadonlyArray<Candidate> => [])
  )

/**
 * Creates the search for the primary. Several primaries are told apart by their timelines: the
 * latest promotion has the highest one. Servers that do not answer are left out.
 */
export const make = (first: Server, servers: ReadonlyArray<Server>) => {
  // reported when no server is a primary
  let last = first

  return (operation: Operation): Effect.Effect<Server, OperationFailed> =>
    Effect.gen(function* () {
      // the only server of a cluster is not asked
      if (servers.length === 1) return first
      const answers = yield* Effect.forEach(servers, (server) => ask(operation, server), { concurrency: "unbounded" })
      const found = answers.flat()
      const timeline = Math.max(...found.map((candidate) => candidate.timeline))
      const latest = found.filter((candidate) => candidate.timeline === timeline)
      const [only] = latest
      if (only === undefined) {
        // fails with the reason, unless the server is a standby by now
        yield* primaryTimeline(operation, last)
        return yield* last.refuse(operation, "no server of the cluster is a primary: promote one")
      }
      if (latest.length > 1) {
        const names = latest.map(({ server }) => server.name).join(" and ")
        return yield* new OperationFailed({
          operation,
          reason: `${names} are both primaries: stop all but one, or make them follow it`,
          logs: []
        })
      }
      last = only.server
      return only.server
    })
}
