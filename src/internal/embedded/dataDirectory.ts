/**
 * The data folders of a primary and its standbys.
 */
import * as path from "node:path"
import * as Effect from "effect/Effect"
import type { Binaries } from "./binaries.js"
import { type CommandFailed, type Identity, run } from "./childProcess.js"
import * as Files from "./noFollowFiles.js"
import { OperationFailed } from "./operationFailed.js"
import * as Folder from "./tempDirectory.js"

/** Files, user and password that all servers of a cluster share. */
export interface Cluster {
  readonly folder: string
  readonly binaries: Binaries
  readonly user: Identity | undefined
  readonly password: string
}

const initializeError = (failed: string) => (cause: CommandFailed) =>
  new OperationFailed({
    operation: "initialize",
    reason: `${failed}: ${cause.reason}`,
    logs: cause.output.slice(-20)
  })

/** Creates the data folder of the primary without starting a server. */
export const initialize = Effect.fnUntraced(function* (cluster: Cluster, data: string, configuration: string) {
  const pwfile = path.join(cluster.folder, "pwfile")
  yield* Folder.makeData(data, cluster.user)
  yield* Effect.acquireUseRelease(
    Files.create(pwfile, `${cluster.password}\n`, cluster.user),
    () =>
      run(
        cluster.binaries.initdb,
        [
          `--pgdata=${data}`,
          "--username=postgres",
          `--pwfile=${pwfile}`,
          "--auth=scram-sha-256",
          "--encoding=UTF8",
          "--locale=C",
          // the Unicode rules of the server, which are the same on every machine
          "--locale-provider=builtin",
          "--builtin-locale=C.UTF-8",
          // if the server that initdb runs is killed, other types of shared memory leave a segment
          // in /dev/shm
          "--set=dynamic_shared_memory_type=mmap",
          "--no-sync",
          "--no-instructions"
        ],
        { cwd: cluster.folder, user: cluster.user }
      ).pipe(Effect.mapError(initializeError("the data folder could not be created"))),
    // a failure is ignored: only the server's user can read the file, and it is removed with the
    // folder of the cluster
    () => Effect.ignore(Files.remove(pwfile))
  )
  yield* Files.append(path.join(data, "postgresql.conf"), configuration, cluster.user)
})

/** Copies the data folder of a stopped server. */
export const copy = (cluster: Cluster, from: string, to: string) =>
  Effect.zipRight(
    Folder.makeData(to, cluster.user),
    run("cp", ["-Rp", `${from}/.`, to], { cwd: cluster.folder, user: cluster.user }).pipe(
      Effect.mapError(initializeError("the data folder could not be copied"))
    )
  )

/** Makes a copied data folder that of a standby. `primary` is a connection string. */
export const makeStandby = (cluster: Cluster, data: string, primary: string) =>
  Effect.zipRight(
    Files.append(path.join(data, "postgresql.auto.conf"), `primary_conninfo = '${primary}'\n`, cluster.user),
    Files.create(path.join(data, "standby.signal"), "", cluster.user)
  )
