/**
 * The termination of the client connections of embedded servers.
 */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Sql from "./adminSession.js"
import type { Server } from "./server.js"

// The list is MATERIALIZED, because the planner could otherwise call pg_terminate_backend for every
// process of the server.
const terminate = `
  WITH chosen AS MATERIALIZED (
    SELECT pid, backend_start::text AS since FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND application_name <> $1 AND ($2::text IS NULL OR datname = $2)
  )
  SELECT pid, since FROM chosen WHERE pg_terminate_backend(pid)`

const remaining = `
  SELECT count(*)::int AS n FROM pg_stat_activity
  WHERE (pid, backend_start::text) IN (SELECT * FROM unnest($1::int[], $2::text[]))`

const terminateOn = (server: Server, database: string | undefined) =>
  server.session("terminateBackends", (query) =>
    Effect.gen(function* () {
      const terminated = yield* query(terminate, [Sql.applicationName, database ?? null])
      // polled, because pg_terminate_backend sends a signal and does not wait for the end
      yield* query(remaining, [terminated.map((row) => row.pid), terminated.map((row) => row.since)]).pipe(
        Effect.repeat({ until: ([row]) => row?.n === 0, schedule: Schedule.spaced("3 millis") })
      )
      return terminated.length
    })
  )

/**
 * Ends the connections of clients on all running servers, and returns their number. If `database`
 * is set, only connections to this database are ended.
 */
export const terminateBackends = (servers: ReadonlyArray<Server>, database: string | undefined) =>
  Effect.gen(function* () {
    const running = yield* Effect.filter(servers, (server) => server.isRunning)
    const counts = yield* Effect.forEach(running, (server) => terminateOn(server, database), {
      concurrency: "unbounded"
    })
    return counts.reduce((sum, n) => sum + n, 0)
  })
