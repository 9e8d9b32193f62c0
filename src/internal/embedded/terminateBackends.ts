import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Sql from "./adminSession.js"
import type { Server } from "./server.js"

// They are chosen first, since the planner may else ask pg_terminate_backend about every process of the server.
const end = `
  WITH chosen AS MATERIALIZED (
    SELECT pid, backend_start::text AS since FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND application_name <> $1 AND ($2::text IS NULL OR datname = $2)
  )
  SELECT pid, since FROM chosen WHERE pg_terminate_backend(pid)`

const left = `
  SELECT count(*)::int AS n FROM pg_stat_activity
  WHERE (pid, backend_start::text) IN (SELECT * FROM unnest($1::int[], $2::text[]))`

const terminateOn = (server: Server, database: string | undefined) =>
  server.session("terminateBackends", (query) =>
    Effect.gen(function* () {
      const ended = yield* query(end, [Sql.applicationName, database ?? null])
      // so far they have only been told to
      yield* query(left, [ended.map((row) => row.pid), ended.map((row) => row.since)]).pipe(
        Effect.repeat({ until: ([row]) => row?.n === 0, schedule: Schedule.spaced("3 millis") })
      )
      return ended.length
    })
  )

/** Ends the clients' connections on every running server, and gives how many there were. */
export const terminateBackends = (servers: ReadonlyArray<Server>, database: string | undefined) =>
  Effect.gen(function* () {
    const running = yield* Effect.filter(servers, (server) => server.isRunning)
    const counts = yield* Effect.forEach(running, (server) => terminateOn(server, database), {
      concurrency: "unbounded"
    })
    return counts.reduce((sum, n) => sum + n, 0)
  })
