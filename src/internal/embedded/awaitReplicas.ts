/**
 * The wait for replicas to catch up with their primary.
 */
import * as Effect from "effect/Effect"
import { conninfoPattern } from "./follow.js"
import type { Server } from "./server.js"

/** Returns a position of the WAL after all commits until now. */
export const currentPosition = (primary: Server) =>
  primary.session("awaitReplicas", (query) =>
    Effect.gen(function* () {
      // the commit waits until all WAL up to it is on disk, because sessions of operations commit
      // with `synchronous_commit = local`
      yield* query("SELECT pg_logical_emit_message(true, 'effect-db', '')")
      const [row] = yield* query("SELECT pg_current_wal_lsn()::text AS lsn")
      return row?.lsn
    })
  )

// The position is polled, because a standby does not report its replay. The wait ends for a server
// that does not follow the primary, such as a replica that was promoted.
const awaitReplayed = (replica: Server, primary: Server, lsn: unknown) =>
  replica.until(
    "awaitReplicas",
    `SELECT NOT pg_is_in_recovery() OR current_setting('primary_conninfo') !~ $2
       OR coalesce(pg_last_wal_replay_lsn() >= $1::pg_lsn, false) AS done`,
    [lsn, conninfoPattern(primary)],
    `replay the commits of ${primary.name}`
  )

/** Waits until replicas of the primary have replayed its WAL up to a position. */
export const awaitPosition = (primary: Server, replicas: ReadonlyArray<Server>, lsn: unknown) =>
  Effect.forEach(replicas, (replica) => awaitReplayed(replica, primary, lsn), {
    concurrency: "unbounded",
    discard: true
  })

/** Waits until all running replicas of the primary have replayed all of its earlier commits. */
export const awaitReplicas = (primary: Server, replicas: ReadonlyArray<Server>) =>
  Effect.gen(function* () {
    const lsn = yield* currentPosition(primary)
    const running = yield* Effect.filter(replicas, (replica) => replica.isRunning)
    yield* awaitPosition(primary, running, lsn)
  })
