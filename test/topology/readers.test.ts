/** Readers that fall behind, freeze or fail, and the reads that must not go to them. */
import * as fs from "node:fs"
import * as path from "node:path"
import { assert, layer } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Redacted from "effect/Redacted"
import { Consistency, type Database, DatabaseError } from "effect-db"
import { describe } from "vitest"
import { Cluster, cluster, freshId, insertId, open, pause, read, replica, write } from "../support/cluster.js"
import { Db } from "../support/databases.js"
import { eventually, until } from "../support/eventually.js"
import { makeProxy, type Proxy, sends } from "../support/proxy.js"
import { query } from "../support/server.js"
import { only, told, watch } from "../support/suites/pooling/observations.js"

/** Checks that follow each other fast, with a limit that a paused replica exceeds at once. */
const strict: Partial<Database.Options> = { monitorInterval: "20 millis", maxLag: "100 millis" }

const statusOf = (name: string) =>
  Effect.map(Db.status, ({ servers }) => servers.find((server) => server.name === name) ?? assert.fail(`no ${name}`))

const port = read(0).pipe(Effect.map((seen) => seen.port))

/** Reads several times, and returns the ports of the servers. */
const ports = (count = 6) =>
  Effect.map(Effect.replicateEffect(port, count), (all) => [...new Set(all)].toSorted((a, b) => a - b))

const nameOf = (server: { readonly host: string; readonly port: number }): string => `${server.host}:${server.port}`

/** Writes until a server is reported as too far behind. */
const writeUntilBehind = (name: string) =>
  eventually(Effect.zipRight(write, statusOf(name)), ({ lagMillis = 0, up }) => !up && lagMillis > 0)

layer(cluster, { excludeTestServices: true, timeout: "30 seconds" })("readers", (it) => {
  describe("a reader that falls behind", () => {
    it.scoped("a paused replica is left out of routing, and returns after it has caught up", () =>
      Effect.gen(function* () {
        const [late, current] = [yield* replica(0), yield* replica(1)]
        yield* Effect.gen(function* () {
          const seen = yield* watch
          assert.deepStrictEqual(
            yield* ports(),
            [late.port, current.port].toSorted((a, b) => a - b)
          )
          yield* Effect.scoped(
            Effect.gen(function* () {
              yield* pause(late)
              yield* writeUntilBehind(nameOf(late))
              assert.deepStrictEqual(yield* ports(), [current.port])
              const { reason } = yield* statusOf(nameOf(late))
              assert.match(reason ?? "", /^it is \d+ ms and \d+ bytes behind the primary$/)
            })
          )
          yield* told(seen, "CaughtUp")
          assert.strictEqual(only(seen, "FellBehind")[0]?.server, nameOf(late))
          assert.deepStrictEqual(
            yield* ports(),
            [late.port, current.port].toSorted((a, b) => a - b)
          )
          assert.deepInclude(yield* statusOf(nameOf(late)), { up: true, state: "up", reason: undefined, lagBytes: 0 })
        }).pipe(Effect.provide(open([0, 1], strict)))
      })
    )

    it.scoped("a replica that is behind stays out of routing while it refuses its monitor", () =>
      Effect.gen(function* () {
        const { directory } = yield* Cluster
        const [late, current] = [yield* replica(0), yield* replica(1)]
        const rules = path.join(directory, late.name, "pg_hba.conf")
        const before = fs.readFileSync(rules, "utf8")
        const setRules = (text: string) =>
          Effect.zipRight(
            Effect.sync(() => fs.writeFileSync(rules, text)),
            query(late.url(), "SELECT pg_reload_conf()")
          )
        const endMonitor = query(
          late.url(),
          `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE datname = 'app' AND query LIKE 'SELECT s.system_identifier%'`
        )
        yield* Effect.gen(function* () {
          const seen = yield* watch
          yield* ports()
          yield* Effect.scoped(
            Effect.gen(function* () {
              yield* pause(late)
              yield* writeUntilBehind(nameOf(late))
              yield* Effect.acquireRelease(setRules(`host app all all reject\n${before}`), () => setRules(before))
              // a session that began before the reload may see another lag
              yield* eventually(
                Effect.zipRight(endMonitor, statusOf(nameOf(late))),
                ({ lagMillis }) => lagMillis === undefined
              )
              assert.deepStrictEqual(yield* ports(), [current.port])
              const reason = "it was too far behind the primary when its lag was last known"
              yield* eventually(statusOf(nameOf(late)), (status) => !status.up && status.reason === reason)
            })
          )
          yield* told(seen, "CaughtUp")
          assert.include(yield* ports(), late.port)
        }).pipe(Effect.provide(open([0, 1], strict)))
      })
    )

    it.scoped("the replica of an idle primary has no lag, however long nothing is written", () =>
      Effect.gen(function* () {
        const one = yield* replica(0)
        yield* Effect.gen(function* () {
          yield* write
          yield* port
          // longer than the limit
          const start = Date.now()
          yield* eventually(statusOf(nameOf(one)), ({ lagMillis }) => lagMillis === 0 && Date.now() - start > 500)
          assert.deepStrictEqual(yield* ports(), [one.port])
        }).pipe(Effect.provide(open([0], strict)))
      })
    )

    it.scoped("a replica that receives no log is stale, although it has all that is written", () =>
      Effect.gen(function* () {
        const [cut, other] = [yield* replica(0), yield* replica(1)]
        yield* Effect.gen(function* () {
          yield* port
          yield* Effect.acquireRelease(cut.cutReplication, () => Effect.orDie(cut.restoreReplication))
          yield* eventually(statusOf(nameOf(cut)), ({ lagBytes }) => lagBytes === Number.POSITIVE_INFINITY)
          yield* eventually(statusOf(nameOf(cut)), ({ up }) => !up)
          assert.deepStrictEqual(yield* ports(), [other.port])
          assert.strictEqual((yield* statusOf(nameOf(cut))).reason, "it does not replay the log of the primary")
        }).pipe(Effect.provide(open([0, 1], { monitorInterval: "20 millis" })))
      })
    )

    it.scoped("reads go to the primary when all replicas are behind", () =>
      Effect.gen(function* () {
        const late = yield* replica(0)
        yield* Effect.gen(function* () {
          yield* port
          yield* pause(late)
          yield* writeUntilBehind(nameOf(late))
          const id = yield* write
          assert.isTrue((yield* read(id)).there)
        }).pipe(Effect.provide(open([0], strict)))
      })
    )

    it.scoped("reads go to the replica that is least behind, or fail, if the settings say so", () =>
      Effect.gen(function* () {
        const [more, less] = [yield* replica(0), yield* replica(1)]
        const reads = (options: Partial<Database.Options>) =>
          Effect.gen(function* () {
            yield* ports()
            yield* writeUntilBehind(nameOf(more))
            yield* writeUntilBehind(nameOf(less))
            return yield* Effect.either(DatabaseError.refine(ports()))
          }).pipe(Effect.provide(open([0, 1], { ...strict, ...options })))
        yield* pause(more)
        yield* write.pipe(Effect.provide(open([])))
        yield* eventually(read(yield* write.pipe(Effect.provide(open([])))), ({ there }) => there).pipe(
          Effect.provide(open([1]))
        )
        yield* pause(less)
        const least = yield* reads({ whenAllBehind: "leastBehind" })
        assert.deepStrictEqual(least._tag === "Right" && least.right, [less.port])
        const refused = yield* reads({ whenAllBehind: "fail" })
        assert.strictEqual(refused._tag === "Left" && refused.left._tag, "NoReplicaCaughtUp")
        assert.match(refused._tag === "Left" ? refused.left.message : "", /further behind the primary than maxLag/)
      })
    )
  })

  describe("a reader that returns behind", () => {
    /** Ways to take a replica away and to bring it back. */
    const outages: Readonly<Record<string, (proxy: Proxy) => readonly [Effect.Effect<void>, Effect.Effect<void>]>> = {
      refuses: ({ accept, cut, refuse }) => [Effect.zipRight(refuse, cut), accept],
      freezes: ({ freeze, thaw }) => [freeze, thaw]
    }
    for (const [verb, outage] of Object.entries(outages)) {
      it.scoped(`a replica that ${verb} and returns serves no read before its lag is known`, () =>
        Effect.gen(function* () {
          const [late, current] = [yield* replica(0), yield* replica(1)]
          const proxy = yield* makeProxy(late.url("app"))
          const [leave, comeBack] = outage(proxy)
          // only the pool connects again before the next check
          const options: Partial<Database.Options> = {
            readers: [proxy.url, current.url("app")],
            minConnections: 1,
            maxLag: "20 millis",
            // a check needs the answer of the primary, also on a busy machine
            detectionTime: "2 seconds",
            monitorInterval: "1 minute",
            readerRetryDelay: "1 minute"
          }
          yield* Effect.gen(function* () {
            const seen = yield* watch
            const both = [late.port, current.port].toSorted((a, b) => a - b)
            yield* eventually(ports(), (served) => served.join() === both.join())
            yield* eventually(statusOf(`127.0.0.1:${proxy.port}`), ({ lagMillis }) => lagMillis !== undefined)
            yield* pause(late)
            yield* write
            yield* leave
            // reads that are given up run again
            yield* eventually(ports(), () => only(seen, "MarkedDown").length > 0)
            yield* comeBack
            yield* eventually(port, (at) => {
              assert.strictEqual(at, current.port)
              return only(seen, "FellBehind").length > 0
            })
            assert.deepStrictEqual(yield* ports(), [current.port])
          }).pipe(Effect.provide(open([], options)))
        })
      )
    }
  })

  describe("a read with a bounded lag", () => {
    const within = (lag: number, otherwise: "primary" | "fail" = "fail") =>
      Db.withConsistency(Consistency.Bounded({ lag, maxWait: 0, otherwise }))

    it.scoped("a replica that has replayed the writes up to the bound serves a read with a bounded lag", () =>
      Effect.gen(function* () {
        const one = yield* replica(0)
        yield* Effect.gen(function* () {
          const id = yield* write
          const seen = yield* read(id).pipe(Db.withConsistency(Consistency.Bounded({ lag: 0, maxWait: "20 seconds" })))
          assert.deepStrictEqual(seen, { port: one.port, there: true })
        }).pipe(Effect.provide(open([0])))
      })
    )

    it.scoped("a replica behind the bound does not serve the read, which goes to the primary or fails", () =>
      Effect.gen(function* () {
        yield* pause(yield* replica(0))
        yield* Effect.gen(function* () {
          const id = yield* write
          const failed = yield* read(id).pipe(within(0), DatabaseError.refine, Effect.flip)
          assert.strictEqual(failed._tag, "NoReplicaCaughtUp")
          assert.isTrue((yield* read(id).pipe(within(0, "primary"))).there)
        }).pipe(Effect.provide(open([0], { maxLag: "10 minutes" })))
      })
    )

    it.scoped("a replica serves the read as long as the writes that it lacks are more recent than the bound", () =>
      Effect.gen(function* () {
        const late = yield* replica(0)
        yield* Effect.gen(function* () {
          // the first read asks the primary for its position, which the replica reaches
          yield* read(0).pipe(Db.withConsistency(Consistency.Bounded({ lag: "1 minute", maxWait: "20 seconds" })))
          yield* pause(late)
          const id = yield* write
          const seen = yield* read(id).pipe(within(60_000))
          assert.deepStrictEqual(seen, { port: late.port, there: false })
        }).pipe(Effect.provide(open([0], { maxLag: "10 minutes" })))
      })
    )

    it.scoped("reads with a bounded lag at the same time ask the primary twice at most", () =>
      Effect.gen(function* () {
        const { primary } = yield* Cluster
        const proxy = yield* makeProxy(primary.url("app"))
        let questions = 0
        yield* proxy.when((message) => {
          if (sends("AS standby OFFSET 0) r OFFSET 0) p")(message)) questions++
          return false
        }, "pass")
        yield* Effect.gen(function* () {
          const id = yield* write
          const reads = Array.from({ length: 50 }, () =>
            read(id).pipe(Db.withConsistency(Consistency.Bounded({ lag: 0, maxWait: "20 seconds" })))
          )
          const all = yield* Effect.all(reads, { concurrency: "unbounded" })
          assert.isTrue(all.every(({ there }) => there))
        }).pipe(Effect.provide(open([0, 1], { writer: proxy.url, monitor: false })))
        assert.include([1, 2], questions)
      })
    )
  })

  describe("a reader that does not answer", () => {
    it.scoped("a frozen replica is given up with its reads in flight, which succeed elsewhere, and returns", () =>
      Effect.gen(function* () {
        const [frozen, other] = [yield* replica(0), yield* replica(1)]
        yield* Effect.gen(function* () {
          const seen = yield* watch
          yield* ports(12)
          // the monitor has its connection
          yield* eventually(statusOf(nameOf(frozen)), ({ latencyMillis }) => latencyMillis !== undefined)
          yield* Effect.acquireRelease(frozen.freeze, () => Effect.orDie(frozen.thaw))
          const inFlight = yield* Effect.fork(
            Effect.all(
              Array.from({ length: 20 }, () => port),
              { concurrency: 20 }
            )
          )
          assert.deepStrictEqual([...new Set(yield* Fiber.join(inFlight))], [other.port])
          const down = yield* told(seen, "MarkedDown")
          assert.strictEqual(down[0]?.server, nameOf(frozen))
          assert.deepInclude(yield* statusOf(nameOf(frozen)), { up: false, state: "down" })
          assert.deepStrictEqual(yield* ports(), [other.port])
          yield* frozen.thaw
          yield* told(seen, "MarkedUp")
          assert.deepStrictEqual(
            yield* ports(),
            [frozen.port, other.port].toSorted((a, b) => a - b)
          )
        }).pipe(Effect.provide(open([0, 1], { monitorInterval: "50 millis", readerRetryDelay: "100 millis" })))
      })
    )

    /** Begins reads that take three seconds, and waits until some run on a server. */
    const beginReads = (server: Effect.Effect.Success<ReturnType<typeof replica>>, total: number) =>
      Effect.gen(function* () {
        const read = Effect.flatMap(
          Db.reader,
          (sql) => sql<{ port: number }>`SELECT inet_server_port() AS port, pg_sleep(3)`
        )
        const reads = yield* Effect.fork(Effect.replicateEffect(read, total, { concurrency: total }))
        const count = "SELECT count(*)::int AS count FROM pg_stat_activity WHERE query LIKE '%AS port, pg_sleep(3)'"
        yield* eventually(query<{ count: number }>(server.url(), count), ([row]) => (row?.count ?? 0) > 0)
        const ports = Fiber.join(reads).pipe(Effect.map((rows) => [...new Set(rows.map(([row]) => row?.port))]))
        return Effect.timeout(ports, "20 seconds")
      })

    /** Freezes the first replica after `prepare`, and returns the servers of the reads that were in flight on it. */
    const freezeAfter = (prepare: (url: Redacted.Redacted<string>) => Effect.Effect<unknown>) =>
      Effect.gen(function* () {
        const [frozen, other] = [yield* replica(0), yield* replica(1)]
        yield* ports()
        // the monitor has its connection
        yield* eventually(statusOf(nameOf(frozen)), ({ lagMillis }) => lagMillis !== undefined)
        yield* prepare(frozen.url())
        const served = yield* beginReads(frozen, 4)
        yield* Effect.acquireRelease(frozen.freeze, () => Effect.orDie(frozen.thaw))
        assert.deepStrictEqual(yield* served, [other.port])
      }).pipe(Effect.provide(open([0, 1], { maxLifetime: "1 second", monitorInterval: "1 minute" })))

    it.scoped(
      "reads in flight on a frozen replica succeed elsewhere if the monitor's connection is to be replaced",
      () =>
        freezeAfter(() => {
          const since = performance.now()
          return until(() => performance.now() - since > 1100)
        })
    )

    it.scoped("reads in flight on a frozen replica succeed elsewhere if the monitor has lost its connection", () =>
      freezeAfter((url) =>
        eventually(
          query<{ count: number }>(
            url,
            `SELECT count(pg_terminate_backend(pid))::int AS count FROM pg_stat_activity
             WHERE query LIKE 'SELECT s.system_identifier%'`
          ),
          ([row]) => row?.count === 0
        )
      )
    )

    it.scoped("reads in flight succeed elsewhere if the monitor of a frozen replica has never connected", () =>
      Effect.gen(function* () {
        const { primary } = yield* Cluster
        const frozen = yield* replica(0)
        const proxy = yield* makeProxy(frozen.url("app"))
        // the first connection is that of the first read, because the monitor asks the primary first
        yield* proxy.when(
          ({ connection, type }) => type === "startup" && connection > 1,
          "freeze",
          Number.POSITIVE_INFINITY
        )
        yield* Effect.gen(function* () {
          assert.strictEqual(yield* port, frozen.port)
          const served = yield* beginReads(frozen, 1)
          yield* proxy.freeze
          assert.deepStrictEqual(yield* served, [primary.port])
        }).pipe(Effect.provide(open([], { readers: [proxy.url], connectTimeout: "500 millis", maxConnections: 1 })))
      })
    )

    it.scoped("the connection of a monitor is replaced at the end of its lifetime, and closed", () =>
      Effect.gen(function* () {
        const server = yield* replica(0)
        const pids = Effect.map(
          query<{ pid: number }>(
            server.url(),
            "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT s.system_identifier%'"
          ),
          (rows) => rows.map(({ pid }) => pid)
        )
        yield* Effect.gen(function* () {
          yield* port
          const [first] = yield* eventually(pids, ({ length }) => length === 1)
          yield* eventually(pids, (all) => all.length === 1 && all[0] !== first)
        }).pipe(Effect.provide(open([0], { maxLifetime: "500 millis", monitorInterval: "50 millis" })))
      })
    )

    it.scoped("one read at a time tries a replica that was down, if there is no monitor", () =>
      Effect.gen(function* () {
        const [stopped, other] = [yield* replica(0), yield* replica(1)]
        yield* Effect.gen(function* () {
          const seen = yield* watch
          yield* Effect.acquireRelease(stopped.stop, () => Effect.orDie(stopped.start))
          yield* Effect.all(
            Array.from({ length: 10 }, () => port),
            { concurrency: "unbounded" }
          )
          yield* told(seen, "MarkedDown")
          const failures = () => only(seen, "ConnectFailed").filter(({ server }) => server === nameOf(stopped)).length
          const before = failures()
          // the delay has passed as soon as the server is usable again
          yield* eventually(statusOf(nameOf(stopped)), ({ up }) => up)
          const all = yield* Effect.all(
            Array.from({ length: 10 }, () => port),
            { concurrency: "unbounded" }
          )
          assert.deepStrictEqual([...new Set(all)], [other.port])
          assert.strictEqual(failures(), before + 1)
          yield* stopped.start
          yield* eventually(port, (at) => at === stopped.port)
          yield* told(seen, "MarkedUp")
        }).pipe(Effect.provide(open([0, 1], { monitor: false, readerRetryDelay: "2 seconds" })))
      })
    )
  })

  describe("a server with more callers than connections", () => {
    it.scoped("with all replicas down, maxPrimaryReads reads at a time are on the primary, and the others wait", () =>
      Effect.gen(function* () {
        const { primary } = yield* Cluster
        const proxy = yield* makeProxy((yield* replica(0)).url("app"))
        yield* proxy.refuse
        const running = `SELECT count(*)::int AS count FROM pg_stat_activity
          WHERE datname = 'app' AND state = 'active' AND query LIKE '%AS port, pg_advisory_xact_lock_shared(7)'`
        const count = Effect.map(query<{ count: number }>(primary.url(), running), ([row]) => row?.count ?? 0)
        const read = Effect.flatMap(
          Db.reader,
          (sql) => sql<{ port: number }>`SELECT inet_server_port() AS port, pg_advisory_xact_lock_shared(7)`
        )
        const waiting = Effect.map(Db.status, ({ servers }) => servers[0]?.reads.waiting ?? 0)
        yield* Effect.gen(function* () {
          const sql = yield* Db.writer
          const [locked, end] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
          const lock = sql`SELECT pg_advisory_xact_lock(7)`
          const hold = Effect.all([lock, Deferred.succeed(locked, undefined), Deferred.await(end)], { discard: true })
          const holder = yield* Effect.fork(Db.withTransaction(hold))
          yield* Deferred.await(locked)
          const reads = yield* Effect.fork(Effect.replicateEffect(read, 8, { concurrency: 8 }))
          yield* eventually(waiting, (callers) => callers === 6)
          yield* eventually(count, (active) => active === 2)
          assert.strictEqual(yield* waiting, 6)
          yield* Deferred.succeed(end, undefined)
          yield* Fiber.join(holder)
          const rows = yield* Fiber.join(reads)
          assert.deepStrictEqual(
            rows.map(([row]) => row?.port),
            Array.from({ length: 8 }, () => primary.port)
          )
        }).pipe(Effect.provide(open([], { readers: [proxy.url], maxPrimaryReads: 2, queueTarget: "10 minutes" })))
      })
    )

    it.scoped("a replica without a free connection serves no read while another one has a free connection", () =>
      Effect.gen(function* () {
        const [one, other] = [yield* replica(0), yield* replica(1)]
        const both = [one.port, other.port].toSorted((a, b) => a - b)
        yield* Effect.gen(function* () {
          // the check at the start may have the only connection of a replica for a moment
          yield* eventually(ports(), (seen) => seen.length === both.length)
          const [held, end] = [yield* Deferred.make<number>(), yield* Deferred.make<void>()]
          const hold = Effect.gen(function* () {
            yield* Deferred.succeed(held, yield* port)
            yield* Deferred.await(end)
          })
          const holder = yield* Effect.fork(Effect.flatMap(Db.reader, (sql) => sql.withTransaction(hold)))
          const busy = yield* Deferred.await(held)
          const free = both.filter((port) => port !== busy)
          assert.deepStrictEqual(yield* ports(), free)
          yield* Deferred.succeed(end, undefined)
          yield* Fiber.join(holder)
          assert.deepStrictEqual(yield* ports(), both)
        }).pipe(Effect.provide(open([0, 1], { maxConnections: 1 })))
      })
    )
  })

  it.scoped("a transaction of a reader is not begun on a replica that is behind", () =>
    Effect.gen(function* () {
      const [late, current] = [yield* replica(0), yield* replica(1)]
      yield* Effect.gen(function* () {
        yield* ports()
        yield* pause(late)
        yield* writeUntilBehind(nameOf(late))
        const id = freshId()
        yield* insertId(id)
        const transaction = Effect.flatMap(Db.reader, (sql) => sql.withTransaction(port))
        const seen = yield* Effect.replicateEffect(transaction, 4)
        assert.notInclude(seen, late.port)
        assert.deepStrictEqual([...new Set(seen)], [current.port])
      }).pipe(Effect.provide(open([0, 1], strict)))
    })
  )
})
