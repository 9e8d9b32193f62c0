/**
 * The replication of a cluster: its current primary, and the server that each standby follows.
 */
import * as Effect from "effect/Effect"
import * as Replicas from "./awaitReplicas.js"
import * as Primary from "./currentPrimary.js"
import type { Cluster } from "./dataDirectory.js"
import { follow, restoreReplication } from "./follow.js"
import type { Server } from "./server.js"
import { switchOver } from "./switchOver.js"
import { setSynchronous } from "./synchronous.js"
import { endStream, requireStandby } from "./walReplay.js"

/** Creates the operations on the replication of a cluster that has just been started. */
export const make = (cluster: Cluster, primary: Server, replicas: ReadonlyArray<Server>) => {
  const servers = [primary, ...replicas]
  // a standby whose stream was ended has no connection string, so the server to go on with is kept
  const sources = new Map(replicas.map((replica) => [replica, primary]))
  const currentPrimary = Primary.make(primary, servers)
  const lock = Effect.unsafeMakeSemaphore(1)

  return {
    currentPrimary,
    awaitReplicas: Effect.flatMap(currentPrimary("awaitReplicas"), (current) =>
      Replicas.awaitReplicas(
        current,
        servers.filter((server) => server !== current)
      )
    ),
    follow: (server: Server, source: Server) =>
      Effect.tap(follow(cluster, server, source), () => Effect.sync(() => sources.set(server, source))),
    cutReplication: (server: Server) =>
      server.exclusively(() =>
        Effect.zipRight(requireStandby("cutReplication", server), endStream("cutReplication", server))
      ),
    restoreReplication: (server: Server) =>
      Effect.suspend(() => restoreReplication(cluster, server, sources.get(server) ?? primary)),
    setSynchronous: (count: number) => lock.withPermits(1)(setSynchronous(cluster, servers, count)),
    switchOver: (to: Server) =>
      lock.withPermits(1)(
        Effect.flatMap(currentPrimary("switchOver"), (from) => switchOver(cluster, sources, { from, to }))
      )
  }
}
