/**
 * The number of standbys that a commit waits for.
 */
import * as path from "node:path"
import * as Effect from "effect/Effect"
import { quoteIdentifier } from "./adminSession.js"
import { alterSystem } from "./alterSystem.js"
import type { Cluster } from "./dataDirectory.js"
import * as Files from "./noFollowFiles.js"
import { OperationFailed } from "./operationFailed.js"
import type { Server } from "./server.js"

/** Checks the number of standbys that a commit waits for in a cluster with this number of replicas. */
export const isValid = (count: unknown, replicas: number): boolean =>
  typeof count === "number" && Number.isInteger(count) && count >= 0 && count <= replicas

const setting = "synchronous_standby_names"

/**
 * Makes the commits of the primary wait for standbys. All servers get the setting, because each may
 * be promoted.
 */
export const setSynchronous = (cluster: Cluster, servers: ReadonlyArray<Server>, count: number) =>
  Effect.gen(function* () {
    const replicas = servers.length - 1
    if (!isValid(count, replicas)) {
      return yield* new OperationFailed({
        operation: "setSynchronous",
        reason: `the number is ${String(count)}: expected a whole number from 0 to the number of replicas, ${replicas}`,
        logs: []
      })
    }
    const names = count === 0 ? "" : `ANY ${count} (${servers.map(({ name }) => quoteIdentifier(name)).join(", ")})`
    const configure = (server: Server) =>
      server.exclusively(() =>
        Effect.flatMap(server.isRunning, (isRunning) =>
          isRunning
            ? Effect.zipRight(
                alterSystem("setSynchronous", server, { [setting]: names }),
                // commits wait when the checkpointer has read the setting, which it does before its
                // next checkpoint
                server.session("setSynchronous", (query) => query("CHECKPOINT"))
              )
            : Files.append(path.join(server.data, "postgresql.auto.conf"), `${setting} = '${names}'\n`, cluster.user)
        )
      )
    yield* Effect.forEach(servers, configure, { concurrency: "unbounded", discard: true })
  })
