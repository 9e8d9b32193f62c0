/**
 * The wait for replicas to catch up with their primary.
 */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { Server } from "./server.js"

const currentPosition = (primary: Server) =>
  primary.session("awaitReplicas", (query) =>
    Effect.gen(function* () {
      // `local`: the commit waits until all WAL up to it is on disk, and does not wait for a standby
      yield* query("SET synchronous_commit = local")
      yield* query("SELECT pg_logical_emit_message(true, 'effect-db', '')")
      const [row] = yield* query("SELECT pg_current_wal_lsn()::text AS lsn")
      return row?.lsn
    })
  )

// The position is polled, because a standby does not report its replay. A replica that was promoted
// has no primary any more, so the wait for it ends.
const awaitReplayed = (replica: Server, lsn: unknown) =>
  replica.session("awaitReplicas", (query) =>
    query("SELECT NOT pg_is_in_recovery() OR coalesce(pg_last_wal_replay_lsn() >= $1::pg_lsn, false) AS done", [
      lsn
    ]).pipe(Effect.repeat({ until: ([row]) => row?.done === true, schedule: Schedule.spaced("3 millis") }))
  )

/** Waits until all running replicas have replayed all earlier commits of the primary. */
export const awaitReplicas = (primary: Server, replicas: ReadonlyArray<Server>) =>
  Effect.gen(function* () {
    const lsn = yield* currentPosition(primary)
    const running = yield* Effect.filter(replicas, (replica) => replica.isRunning)
    yield* Effect.forEach(running, (replica) => awaitReplayed(replica, lsn), {
      concurrency: "unbounded",
      discard: true
    })
  })
