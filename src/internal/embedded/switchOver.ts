/**
 * The planned change of the primary.
 */
import * as path from "node:path"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import type { Cluster } from "./dataDirectory.js"
import { conninfoPattern, conninfoTo, endOfWal, follow, isStandby } from "./follow.js"
import * as Files from "./noFollowFiles.js"
import { inOperation, type OperationFailed } from "./operationFailed.js"
import { shutdownCheckpoint } from "./pgControl.js"
import { toItsEnd } from "./realClock.js"
import type { Server } from "./server.js"

/** Waits until a standby has received what its primary has written. Fails if it does not follow it. */
const awaitReceived = (from: Server, to: Server) =>
  Effect.gen(function* () {
    const [found] = yield* to.session("switchOver", (query) =>
      query("SELECT pg_is_in_recovery() AS standby, current_setting('primary_conninfo') ~ $1 AS follows", [
        conninfoPattern(from)
      ])
    )
    if (found?.standby !== true || found.follows !== true) {
      return yield* to.refuse("switchOver", `the server does not follow ${from.name}: make it follow first`)
    }
    const [written] = yield* from.session("switchOver", (query) => query("SELECT pg_current_wal_lsn()::text AS lsn"))
    yield* to.until(
      "switchOver",
      `SELECT count(*) = 1 AND bool_and(status = 'streaming' AND flushed_lsn >= $1::pg_lsn) AS done
       FROM pg_stat_wal_receiver WHERE sender_port = $2`,
      [written?.lsn, from.port],
      `receive the WAL of ${from.name}`
    )
  })

/** Stops the primary, and checks that the standby has all of its WAL. */
const stopPrimary = (from: Server, to: Server) =>
  Effect.gen(function* () {
    yield* from.stop
    const checkpoint = yield* shutdownCheckpoint(from.data)
    const end = yield* endOfWal("switchOver", to)
    // a primary sends its shutdown checkpoint before it ends, unless it was stopped by force
    if (checkpoint === undefined || end <= checkpoint) {
      return yield* to.fail(
        "switchOver",
        `the server has not received all WAL of ${from.name}, which was started again: try again`
      )
    }
  })

/** The other standbys of a primary, by what has to be done with them. */
const otherStandbys = (servers: ReadonlyArray<Server>) =>
  Effect.gen(function* () {
    const running: Array<Server> = []
    const stopped: Array<Server> = []
    for (const server of servers) {
      if (!(yield* isStandby(server))) continue
      if (!(yield* server.isRunning)) {
        stopped.push(server)
        continue
      }
      const [found] = yield* server.session("switchOver", (query) =>
        query("SELECT current_setting('primary_conninfo') <> '' AS streams")
      )
      if (found?.streams === true) running.push(server)
    }
    return { running, stopped }
  })

/**
 * Makes a standby the primary, without a loss of commits, and the others its standbys. `sources` has
 * the servers that standbys follow; it is brought up to date.
 */
export const switchOver = (
  cluster: Cluster,
  sources: Map<Server, Server>,
  { from, to }: { readonly from: Server; readonly to: Server }
): Effect.Effect<void, OperationFailed> =>
  Effect.gen(function* () {
    if (from === to) return yield* to.refuse("switchOver", "the server is the primary already: choose a standby")
    const others = [...sources].filter(([server, source]) => source === from && server !== to && server !== from)
    // asked before the change: a frozen standby would keep the primary from its end
    const { running, stopped } = yield* otherStandbys(others.map(([server]) => server))
    yield* awaitReceived(from, to)
    // an interruption does not leave the cluster without a primary
    yield* Effect.uninterruptibleMask((restore) =>
      restore(stopPrimary(from, to)).pipe(
        // a cluster without a primary is what the caller must know first
        Effect.catchAllCause((cause) =>
          Effect.matchCauseEffect(toItsEnd(from.start), {
            onFailure: (notStarted) => Effect.failCause(Cause.sequential(notStarted, cause)),
            onSuccess: () => Effect.failCause(cause)
          })
        ),
        Effect.zipRight(toItsEnd(to.promote))
      )
    )
    for (const [server] of others) sources.set(server, to)
    sources.delete(to)
    sources.set(from, to)
    yield* Effect.forEach(
      stopped,
      (server) =>
        server.exclusively(() =>
          Files.append(
            path.join(server.data, "postgresql.auto.conf"),
            `primary_conninfo = '${conninfoTo(cluster, to, server)}'\n`,
            cluster.user
          )
        ),
      { discard: true }
    )
    yield* Effect.forEach([from, ...running], (server) => follow(cluster, server, to), {
      concurrency: "unbounded",
      discard: true
    })
  }).pipe(inOperation("switchOver"))
