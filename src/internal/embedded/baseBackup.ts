/**
 * A base backup of a running primary by a copy of its files, because `pg_basebackup` is not among
 * the programs.
 */
import * as path from "node:path"
import * as Effect from "effect/Effect"
import { type CommandFailed, run } from "./childProcess.js"
import { type Cluster, makeStandby } from "./dataDirectory.js"
import * as Files from "./noFollowFiles.js"
import { OperationFailed } from "./operationFailed.js"
import type { Server } from "./server.js"
import * as Folder from "./tempDirectory.js"

// The folders whose content a backup leaves out, as in PostgreSQL's documentation of low-level
// base backups. The standby requests the WAL from the primary, which keeps it by `wal_keep_size`.
const emptied = [
  "pg_dynshmem",
  "pg_notify",
  "pg_replslot",
  "pg_serial",
  "pg_snapshots",
  "pg_stat_tmp",
  "pg_subtrans",
  "pg_wal"
]
const left = ["postmaster.pid", "postmaster.opts", "backup_label", "backup_label.old", ...emptied]

const backupFailed = (cause: CommandFailed) =>
  new OperationFailed({
    operation: "follow",
    reason: `the data folder could not be copied: ${cause.reason}`,
    logs: cause.output.slice(-20)
  })

// Files that the primary removes during the copy are no failure: the WAL has their removal.
const isOnlyVanished = ({ output }: CommandFailed) =>
  output.length > 0 && output.every((line) => /: No such file or directory$/.test(line))

const copyFiles = Effect.fnUntraced(function* (cluster: Cluster, from: string, to: string) {
  const names = (yield* Folder.list(from)).filter((name) => !left.includes(name))
  const location = { cwd: cluster.folder, user: cluster.user }
  yield* Effect.zipRight(
    run("mkdir", ["-m", "700", ...emptied.map((name) => path.join(to, name))], location),
    run("cp", ["-Rp", ...names.map((name) => path.join(from, name)), to], location).pipe(
      Effect.catchIf(isOnlyVanished, () => Effect.succeed(""))
    )
  ).pipe(Effect.mapError(backupFailed))
})

/**
 * Replaces the data folder of a stopped server by a copy of that of a running primary, as a standby.
 * The old data remain until the copy is complete. `conninfo` is the connection string to the primary.
 */
export const replaceData = (cluster: Cluster, data: string, primary: Server, conninfo: string) =>
  Effect.acquireUseRelease(
    Effect.as(Folder.makeData(`${data}.clone`, cluster.user), `${data}.clone`),
    (clone) =>
      Effect.gen(function* () {
        const label = yield* primary.session(
          "follow",
          (query) =>
            Effect.gen(function* () {
              yield* query("SELECT pg_backup_start('effect-db', true)")
              yield* copyFiles(cluster, primary.data, clone)
              const [row] = yield* query("SELECT labelfile FROM pg_backup_stop(false)")
              return String(row?.labelfile)
            }),
          "finish a base backup"
        )
        yield* Files.create(path.join(clone, "backup_label"), label, cluster.user)
        yield* makeStandby(cluster, clone, conninfo)
        yield* Folder.replace(clone, data, `${data}.old`)
      }),
    () => Effect.forEach([".clone", ".old"], (end) => Folder.clear(data + end, cluster.user), { discard: true })
  )
