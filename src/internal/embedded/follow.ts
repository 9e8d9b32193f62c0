/**
 * The change of the primary that a server replicates.
 */
import * as path from "node:path"
import * as Effect from "effect/Effect"
import { alterSystem } from "./alterSystem.js"
import { replaceData } from "./baseBackup.js"
import { primaryTimeline } from "./currentPrimary.js"
import { type Cluster, makeStandby } from "./dataDirectory.js"
import * as Files from "./noFollowFiles.js"
import { inOperation, type Operation, type OperationFailed } from "./operationFailed.js"
import { shutdownCheckpoint } from "./pgControl.js"
import * as Settings from "./postgresqlConf.js"
import type { Server } from "./server.js"
import * as Wal from "./walHistory.js"
import { endStream, requireStandby } from "./walReplay.js"

/** Returns the connection string of a standby to its primary. */
export const conninfoTo = (cluster: Cluster, primary: Server, standby: Server) =>
  Settings.conninfo({ port: primary.port, password: cluster.password, name: standby.name })

/** Returns a regular expression for the connection strings to a server. */
export const conninfoPattern = (primary: Server) => `\\mport=${primary.port}\\M`

/** Checks if a server is a standby, also if it is stopped: a promotion removes the file. */
export const isStandby = (server: Server) => Files.exists(path.join(server.data, "standby.signal"))

/**
 * Waits until a standby streams from a server, on this timeline if it is given, and has received
 * what the server had written.
 */
const awaitStreaming = (operation: Operation, standby: Server, primary: Server, timeline?: number) =>
  Effect.zipRight(
    standby.until(
      operation,
      `SELECT count(*) = 1 AS done FROM pg_stat_wal_receiver
       WHERE status = 'streaming' AND sender_port = $1 AND ($2::int IS NULL OR received_tli = $2)`,
      [primary.port, timeline ?? null],
      `stream from ${primary.name}`
    ),
    // `count`: the server may not have noticed the end of an earlier connection yet
    primary.until(
      operation,
      `SELECT count(*) = 1 AND bool_and(state = 'streaming') AS done FROM pg_stat_replication WHERE application_name = $1`,
      [standby.name],
      `stream to ${standby.name}`
    )
  )

/** Returns the end of the WAL of a running standby, which is final only if it receives nothing. */
export const endOfWal = (operation: Operation, standby: Server) =>
  standby
    .session(operation, (query) =>
      query("SELECT (greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0')::text AS bytes")
    )
    .pipe(Effect.map(([row]) => (typeof row?.bytes === "string" ? BigInt(row.bytes) : 0n)))

/**
 * Makes a server a standby of a primary. A running standby, or a primary that was stopped cleanly,
 * keeps its data, unless it has WAL that the primary does not have. Otherwise the data are copied.
 */
export const follow = (cluster: Cluster, server: Server, primary: Server): Effect.Effect<void, OperationFailed> =>
  Effect.gen(function* () {
    if (server === primary) {
      return yield* server.refuse("follow", "a server cannot follow itself: choose another server")
    }
    const timeline = yield* primaryTimeline("follow", primary)
    if (timeline === undefined) {
      return yield* primary.refuse("follow", "the server is a standby: promote it first, or follow its primary")
    }
    const conninfo = conninfoTo(cluster, primary, server)
    const isPartOf = (lsn: bigint) => Wal.isPartOf(server.data, lsn, { data: primary.data, timeline })

    yield* server.exclusively(({ kill, start, stop }) =>
      Effect.gen(function* () {
        const wasStandby = yield* isStandby(server)
        if (wasStandby && (yield* server.isRunning)) {
          yield* endStream("follow", server)
          if (yield* isPartOf(yield* endOfWal("follow", server))) {
            // a delayed or paused replay would keep the standby from a connection to another server
            yield* alterSystem("follow", server, { primary_conninfo: conninfo, recovery_min_apply_delay: undefined })
            yield* server.session("follow", (query) => query("SELECT pg_wal_replay_resume()"))
            return
          }
        }
        yield* stop
        const checkpoint = wasStandby ? undefined : yield* shutdownCheckpoint(server.data)
        if (checkpoint !== undefined && (yield* isPartOf(checkpoint + 1n))) {
          yield* makeStandby(cluster, server.data, conninfo)
        } else {
          // also the children of a postmaster that has crashed
          yield* kill
          yield* replaceData(cluster, server.data, primary, conninfo)
        }
        yield* start
        // the former primary may have been a delayed standby before
        yield* alterSystem("follow", server, { recovery_min_apply_delay: undefined })
      })
    )
    yield* awaitStreaming("follow", server, primary, timeline)
  }).pipe(inOperation("follow"))

/**
 * Makes a standby whose stream was ended stream from a server again. Waits for the stream if the
 * server is there, and the replay neither paused nor delayed, which would keep the standby from a
 * connection.
 */
export const restoreReplication = (cluster: Cluster, server: Server, source: Server) =>
  server.exclusively(() =>
    Effect.gen(function* () {
      yield* requireStandby("restoreReplication", server)
      const [found] = yield* server.session("restoreReplication", (query) =>
        query(`
          SELECT current_setting('primary_conninfo') = '' AS cut, pg_get_wal_replay_pause_state() = 'not paused'
            AND current_setting('recovery_min_apply_delay') = '0' AS replays`)
      )
      if (found?.cut !== true) return
      yield* alterSystem("restoreReplication", server, { primary_conninfo: conninfoTo(cluster, source, server) })
      const isThere = yield* Effect.isSuccess(source.session("restoreReplication", (query) => query("SELECT 1")))
      if (isThere && found.replays === true) yield* awaitStreaming("restoreReplication", server, source)
    })
  )
