import * as fs from "node:fs"
import * as path from "node:path"
import { describe, expect, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { EmbeddedPostgres } from "effect-db/EmbeddedPostgres"
import Pg from "pg"
import * as MarkedProcesses from "../../src/internal/embedded/markedProcesses.js"
import { isAlive, make, pidsOf } from "../support/embedded.js"
import { until } from "../support/eventually.js"
import { query } from "../support/server.js"

/** A cluster of a primary and one replica. */
const withReplica = Effect.flatMap(make({ replicas: 1 }), ({ primary, replicas: [replica] }) =>
  replica === undefined ? Effect.dieMessage("no replica") : Effect.succeed({ primary, replica })
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

describe("an embedded cluster", () => {
  it.scopedLive("a cluster replicates the writes of the primary to every replica", () =>
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

  it.scopedLive("a cluster waits for its replicas also after commits that did not wait for the disk", () =>
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
      // the sessions of replication are not ended
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

  it.scopedLive("a server that was killed recovers its commits, and its replica follows it again", () =>
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

  it.scopedLive("a server does not answer while it is frozen, and answers when it is thawed", () =>
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
      // its children remain as orphans that are stopped
      process.kill(postmaster, "SIGKILL")
      yield* until(() => !Effect.runSync(primary.isRunning))
      yield* primary.start
      expect(yield* query(primary.url(), "SELECT 1 AS n")).toEqual([{ n: 1 }])
    })
  )

  it.scopedLive("a server accepts writes after it is promoted, also after a restart", () =>
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

  it.scopedLive("a server works after operations that were requested at the same time", () =>
    Effect.gen(function* () {
      const { primary } = yield* make()
      yield* Effect.all([primary.stop, primary.start, primary.kill, primary.start, primary.freeze, primary.thaw], {
        concurrency: "unbounded"
      })
      expect(yield* query(primary.url(), "SELECT 1 AS n")).toEqual([{ n: 1 }])
    })
  )

  it.scopedLive("a server has ended when its interrupted stop returns", () =>
    Effect.gen(function* () {
      const { directory, primary } = yield* make()
      const stopping = yield* Effect.fork(primary.stop)
      yield* until(() => !fs.existsSync(path.join(directory, "primary", "postmaster.pid")))
      yield* Fiber.interrupt(stopping)
      expect(yield* primary.isRunning).toBe(false)
    })
  )

  it.scopedLive("a server is stopped again if its start is interrupted", () =>
    Effect.gen(function* () {
      const { directory, primary } = yield* make()
      yield* primary.stop
      const starting = yield* Effect.fork(primary.start)
      yield* until(() => Effect.runSync(primary.isRunning))
      yield* Fiber.interrupt(starting)
      expect(yield* primary.isRunning).toBe(false)
      expect(MarkedProcesses.members(path.join(directory, "primary"))).toEqual([])
      yield* primary.start
    })
  )
})
