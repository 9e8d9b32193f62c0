import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { Server } from "./server.js"

const currentPosition = (primary: Server) =>
  primary.session("awaitReplicas", (query) =>
    Effect.gen(function* () {
      // waits for the disk, so for all before it too, also commits that did not wait; but not for a standby itself
      yield* query("SET synchronous_commit = local")
      yield* query("SELECT pg_logical_emit_message(true, 'effect-db', '')")
      const [row] = yield* query("SELECT pg_current_wal_lsn()::text AS lsn")
      return row?.lsn
    })
  )

// a standby tells nobody what it has replayed, so it has to be asked; one that was promoted follows nobody any more
const awaitReplayed = (replica: Server, lsn: unknown) =>
  replica.session("awaitReplicas", (query) =>
    query("SELECT NOT pg_is_in_recovery() OR coalesce(pg_last_wal_replay_lsn() >= $1::pg_lsn, false) AS done", [
      lsn
    ]).pipe(Effect.repeat({ until: ([row]) => row?.done === true, schedule: Schedule.spaced("3 millis") }))
  )

/** Ends when every running replica has replayed what the primary has committed by now. */
export const awaitReplicas = (primary: Server, replicas: ReadonlyArray<Server>) =>
  Effect.gen(function* () {
    const lsn = yield* currentPosition(primary)
    const running = yield* Effect.filter(replicas, (replica) => replica.isRunning)
    yield* Effect.forEach(running, (replica) => awaitReplayed(replica, lsn), {
      concurrency: "unbounded",
      discard: true
    })
  })
