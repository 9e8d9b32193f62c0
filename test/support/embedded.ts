/** Embedded servers, their folders and their processes. */
import * as fs from "node:fs"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import type { EmbeddedPostgres } from "effect-db/EmbeddedPostgres"
import * as Embedded from "effect-db/EmbeddedPostgres"
import { directory as memory } from "./directory.js"
import { query } from "./server.js"

export const make = (options: EmbeddedPostgres.Options = {}) => Embedded.make({ directory: memory, ...options })

export const isRoot = process.getuid?.() === 0

export const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0)
    // state Z or X: dead, but not reaped, because many containers have no init for that
    return process.platform !== "linux" || !/\) [ZX]/.test(fs.readFileSync(`/proc/${pid}/stat`, "utf8"))
  } catch {
    return false
  }
}

/** Returns all processes of a server, as postmaster.pid and pg_stat_activity list them. */
export const pidsOf = (server: EmbeddedPostgres.Server, directory: string) =>
  Effect.map(
    query<{ pid: number }>(server.url(), "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()"),
    (rows) => [
      Number.parseInt(fs.readFileSync(path.join(directory, server.name, "postmaster.pid"), "utf8"), 10),
      ...rows.map((row) => row.pid)
    ]
  )

/** Returns the segments of shared memory that these processes have made. */
export const segmentsOf = (pids: ReadonlyArray<number>): ReadonlyArray<string> =>
  process.platform === "linux"
    ? fs
        .readFileSync("/proc/sysvipc/shm", "utf8")
        .split("\n")
        .slice(1)
        .filter((line) => pids.includes(Number(line.trim().split(/\s+/)[4])))
    : []

/** A cluster with two replicas; a test that asks for one replica uses `one` alone. */
export const cluster = (options: EmbeddedPostgres.Options = {}) =>
  Effect.flatMap(make({ replicas: 2, ...options }), (postgres) => {
    const [one, two = one] = postgres.replicas
    return one === undefined || two === undefined
      ? Effect.dieMessage("no replica")
      : Effect.succeed({ postgres, primary: postgres.primary, one, two })
  })

/** Runs statements on a server. */
export const execute = (server: EmbeddedPostgres.Server, sql: string) => Effect.asVoid(query(server.url(), sql))

/** Starts a cluster whose servers all have a table `t` with the number 1. */
export const filledCluster = (options: EmbeddedPostgres.Options = {}) =>
  Effect.tap(cluster(options), ({ postgres, primary }) =>
    Effect.zipRight(execute(primary, "CREATE TABLE t AS SELECT 1 AS n"), postgres.awaitReplicas)
  )

/** Stores a number in the table `t` of a primary, and waits until its replicas have it. */
export const addNumber = (postgres: EmbeddedPostgres.Service, primary: EmbeddedPostgres.Server, n: number) =>
  Effect.zipRight(execute(primary, `INSERT INTO t VALUES (${n})`), postgres.awaitReplicas)

/** Returns the numbers in the table `t` of a server. */
export const numbers = (server: EmbeddedPostgres.Server) =>
  Effect.map(query<{ n: number }>(server.url(), "SELECT n FROM t ORDER BY n"), (rows) => rows.map(({ n }) => n))

/** Checks if a server is a standby. */
export const isStandby = (server: EmbeddedPostgres.Server) =>
  Effect.map(query(server.url(), "SELECT pg_is_in_recovery() AS yes"), ([row]) => row?.yes)

/** Returns the names of the standbys that a server streams to. */
export const standbysOf = (server: EmbeddedPostgres.Server) =>
  Effect.map(query(server.url(), "SELECT application_name AS name FROM pg_stat_replication ORDER BY 1"), (rows) =>
    rows.map(({ name }) => name)
  )

/** Returns the process id of the postmaster. */
export const postmasterOf = (server: EmbeddedPostgres.Server, directory: string) =>
  Effect.map(pidsOf(server, directory), ([pid]) => pid)
