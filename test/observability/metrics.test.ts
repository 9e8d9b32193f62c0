import { randomUUID } from "node:crypto"
import { isDeepStrictEqual } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Metric from "effect/Metric"
import * as MetricState from "effect/MetricState"
import * as Stream from "effect/Stream"
import { DatabaseError, type Observation, RetryPolicy } from "effect-db"
import { describe } from "vitest"
import { makePoolMetrics } from "../../src/internal/observability/poolMetrics.js"
import { Db, fresh, insert, Place } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { makeProxy, sends } from "../support/proxy.js"
import { freshDatabase } from "../support/server.js"

interface Series {
  readonly name: string
  readonly tags: Readonly<Record<string, string>>
  readonly state: MetricState.MetricState.Untyped
}

/** Reads the time series of one Postgres database, as an exporter gets them. */
const series = (namespace: string): Effect.Effect<ReadonlyArray<Series>> =>
  Effect.map(Metric.snapshot, (pairs) =>
    pairs
      .map(({ metricKey, metricState }) => ({
        name: metricKey.name,
        tags: Object.fromEntries(metricKey.tags.map(({ key, value }) => [key, value])),
        state: metricState
      }))
      .filter(({ tags }) => tags["db.client.connection.pool.name"]?.endsWith(`/${namespace}`))
  )

const value = ({ state }: Series): number =>
  MetricState.isCounterState(state)
    ? Number(state.count)
    : MetricState.isHistogramState(state)
      ? state.count
      : Number.NaN

/** Returns the name of a series without the common part, and with its state. */
const gaugeName = ({ name, tags }: Series): string =>
  [name.replace("db.client.connection.", ""), tags["db.client.connection.state"]].filter(Boolean).join(" ")

/** Returns the number of operations by error type; those without an error are `succeeded`. */
const operations = (namespace: string, purpose = "writes"): Effect.Effect<Readonly<Record<string, number>>> =>
  Effect.map(series(namespace), (all) =>
    Object.fromEntries(
      all
        .filter(({ name, tags }) => {
          const pool = tags["db.client.connection.pool.name"] ?? ""
          return name === "db.client.operation.duration" && pool.includes(` ${purpose} `)
        })
        .map((one) => [one.tags["error.type"] ?? "succeeded", value(one)])
    )
  )

const metered = (namespace: string, host = "db.example.com", port = 5432) => ({
  database: "app",
  purpose: "writes" as const,
  server: { host, port, database: namespace },
  idleMin: 2,
  idleMax: 8,
  max: 10
})

const unused = () => `unused_${randomUUID()}`

describe("meter", () => {
  it.effect("metrics have the names, units, buckets and attributes of OpenTelemetry's conventions", () =>
    Effect.gen(function* () {
      const namespace = unused()
      const meter = makePoolMetrics(metered(namespace, "db.example.com", 6543))
      meter.waited(0)
      meter.used(7)
      meter.created(30)
      meter.operated(3, undefined)
      meter.operated(70_000, "23505")
      meter.operated(5, "Disconnected")
      const all = yield* series(namespace)
      const pool = `app writes db.example.com:6543/${namespace}`
      const byPool = (unit: string) => ({ unit, "db.client.connection.pool.name": pool })
      const operation = {
        ...byPool("s"),
        "db.system.name": "postgresql",
        "db.namespace": namespace,
        "server.address": "db.example.com",
        "server.port": "6543"
      }
      const sorted = (some: ReadonlyArray<{ readonly name: string; readonly tags: object }>) =>
        some.map(({ name, tags }) => [name, Object.fromEntries(Object.entries(tags).sort())] as const).sort()
      assert.sameDeepMembers(
        sorted(all),
        sorted([
          {
            name: "db.client.connection.count",
            tags: { ...byPool("{connection}"), "db.client.connection.state": "idle" }
          },
          {
            name: "db.client.connection.count",
            tags: { ...byPool("{connection}"), "db.client.connection.state": "used" }
          },
          { name: "db.client.connection.idle.max", tags: byPool("{connection}") },
          { name: "db.client.connection.idle.min", tags: byPool("{connection}") },
          { name: "db.client.connection.max", tags: byPool("{connection}") },
          { name: "db.client.connection.pending_requests", tags: byPool("{request}") },
          { name: "db.client.connection.timeouts", tags: byPool("{timeout}") },
          { name: "db.client.connection.create_time", tags: byPool("s") },
          { name: "db.client.connection.wait_time", tags: byPool("s") },
          { name: "db.client.connection.use_time", tags: byPool("s") },
          { name: "db.client.operation.duration", tags: operation },
          {
            name: "db.client.operation.duration",
            tags: { ...operation, "error.type": "23505", "db.response.status_code": "23505" }
          },
          { name: "db.client.operation.duration", tags: { ...operation, "error.type": "Disconnected" } }
        ])
      )
      const slow = all.find(({ tags }) => tags["error.type"] === "23505")?.state
      assert.isTrue(slow !== undefined && MetricState.isHistogramState(slow))
      if (slow !== undefined && MetricState.isHistogramState(slow)) {
        assert.deepStrictEqual(
          slow.buckets.map(([boundary, count]) => [boundary, count]),
          [...[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10].map((_) => [_, 0]), [Number.POSITIVE_INFINITY, 1]]
        )
        assert.deepStrictEqual([slow.count, slow.sum, slow.min, slow.max], [1, 70, 70, 70])
      }
    })
  )

  it.effect("metrics omit the standard port, and name a socket by its path", () =>
    Effect.gen(function* () {
      const namespace = unused()
      makePoolMetrics(metered(namespace)).operated(1, undefined)
      makePoolMetrics(metered(namespace, "/run/postgresql")).operated(1, undefined)
      const places = (yield* series(namespace))
        .filter(({ name }) => name === "db.client.operation.duration")
        .map(({ tags }) => [tags["server.address"], tags["server.port"]])
      assert.sameDeepMembers(places, [
        ["db.example.com", undefined],
        ["/run/postgresql/.s.PGSQL.5432", undefined]
      ])
    })
  )

  it.effect("gauges have the values that a pool has set; pools of one name are summed, a closed one counts as 0", () =>
    Effect.gen(function* () {
      const namespace = unused()
      const gauges = Effect.map(series(namespace), (all) =>
        Object.fromEntries(
          all.filter(({ name }) => name !== "db.client.connection.timeouts").map((one) => [gaugeName(one), value(one)])
        )
      )
      const first = makePoolMetrics(metered(namespace))
      assert.deepStrictEqual(yield* gauges, {
        "count idle": 0,
        "count used": 0,
        "idle.max": 8,
        "idle.min": 2,
        max: 10,
        pending_requests: 0
      })
      first.setConnections(9, 1)
      first.setConnections(3, 7)
      first.setWaiting(5)
      const second = makePoolMetrics(metered(namespace))
      second.setConnections(1, 0)
      assert.deepStrictEqual(yield* gauges, {
        "count idle": 4,
        "count used": 7,
        "idle.max": 16,
        "idle.min": 4,
        max: 20,
        pending_requests: 5
      })
      first.close()
      first.close()
      assert.deepStrictEqual((yield* gauges)["count idle"], 1)
      second.close()
      assert.deepStrictEqual([...new Set(Object.values(yield* gauges))], [0])
    })
  )

  it.effect("the metrics of two pools are kept apart", () =>
    Effect.gen(function* () {
      const [namespace, other] = [unused(), unused()]
      const one = makePoolMetrics(metered(namespace))
      const two = makePoolMetrics(metered(other))
      const reads = makePoolMetrics({ ...metered(namespace), purpose: "reads" })
      one.timedOut()
      one.timedOut()
      two.timedOut()
      reads.operated(1, undefined)
      const timeouts = (all: ReadonlyArray<Series>) =>
        all.filter(({ name }) => name === "db.client.connection.timeouts").map(value)
      assert.sameMembers([...timeouts(yield* series(namespace))], [2, 0])
      assert.deepStrictEqual(timeouts(yield* series(other)), [1])
      assert.deepStrictEqual(yield* operations(namespace, "reads"), { succeeded: 1 })
      assert.deepStrictEqual(yield* operations(namespace, "writes"), {})
    })
  )

  it.effect("a thousand different errors create 101 series: one each for the first 100, and one for the others", () =>
    Effect.gen(function* () {
      const namespace = unused()
      const meter = makePoolMetrics(metered(namespace))
      for (let n = 0; n < 1000; n++) meter.operated(1, `E${n.toString().padStart(4, "0")}`)
      meter.operated(1, "E0001")
      const counts = yield* operations(namespace)
      assert.strictEqual(Object.keys(counts).length, 101)
      assert.strictEqual(counts.E0001, 2)
      assert.strictEqual(counts._OTHER, 900)
    })
  )
})

describe("db.client.operation.duration", () => {
  it.scopedLive("one statement is one operation, a transaction of n statements is n + 1, an unused one is none", () =>
    Effect.gen(function* () {
      const { name } = yield* Place
      const sql = yield* Db.writer
      yield* sql`SELECT 1`
      assert.deepStrictEqual(yield* operations(name), { succeeded: 1 })
      yield* Db.withTransaction(Effect.void)
      assert.deepStrictEqual(yield* operations(name), { succeeded: 1 })
      yield* Db.withTransaction(Effect.zipRight(insert("a"), insert("b")))
      assert.deepStrictEqual(yield* operations(name), { succeeded: 4 })
      // a read on the primary is one operation, with the BEGIN READ ONLY and the COMMIT around it
      yield* Effect.flatMap(Db.reader, (reader) => reader`SELECT 1`)
      assert.deepStrictEqual(yield* operations(name, "reads"), { succeeded: 1 })
      assert.deepStrictEqual(yield* operations(name), { succeeded: 4 })
    }).pipe(Effect.provide(fresh({ startup: "lazy", readers: [] })))
  )

  it.scopedLive("the fetches of a stream in a transaction are operations", () =>
    Effect.gen(function* () {
      const { name } = yield* Place
      const sql = yield* Db.writer
      const rows = yield* Db.withTransaction(Stream.runCount(sql`SELECT generate_series(1, 300)`.stream))
      assert.strictEqual(rows, 300)
      const { succeeded = 0 } = yield* operations(name)
      // at least two fetches, and the COMMIT
      assert.isAbove(succeeded, 2)
    }).pipe(Effect.provide(fresh({ startup: "lazy" })))
  )

  it.scopedLive("an error is counted by its SQLSTATE, also that of a killed backend, or a loss by its tag", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* freshDatabase
      const proxy = yield* makeProxy(writer)
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        yield* Effect.flip(sql`SELECT 1 / 0`)
        assert.deepStrictEqual(yield* operations(name), { "22012": 1 })
        yield* Effect.flip(sql`SELECT pg_terminate_backend(pg_backend_pid())`)
        assert.deepStrictEqual(yield* operations(name), { "22012": 1, "57P01": 1 })
        yield* proxy.when(sends("'never answered'"), "cut")
        const error = yield* sql`SELECT 'never answered'`.pipe(DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag, "Disconnected")
        assert.deepStrictEqual(yield* operations(name), { "22012": 1, "57P01": 1, Disconnected: 1 })
      }).pipe(Effect.provide(Db.layer({ writer: proxy.url, startup: "lazy" })))
    })
  )

  it.scopedLive("a validation query of the pool is no operation", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* freshDatabase
      const proxy = yield* makeProxy(writer)
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        yield* sql`SELECT 1`
        const before = proxy.roundTrips
        yield* sql`SELECT 1`
        assert.strictEqual(proxy.roundTrips, before + 2)
        assert.deepStrictEqual(yield* operations(name), { succeeded: 2 })
      }).pipe(Effect.provide(Db.layer({ writer: proxy.url, startup: "lazy", validateAfterIdle: 0 })))
    })
  )

  it.scopedLive("the duration of an operation includes the time on the server", () =>
    Effect.gen(function* () {
      const { name } = yield* Place
      const sql = yield* Db.writer
      yield* sql`SELECT pg_sleep(0.06)`
      const [state] = (yield* series(name))
        .filter((one) => one.name === "db.client.operation.duration")
        .map((one) => one.state)
      assert.isTrue(state !== undefined && MetricState.isHistogramState(state) && state.sum >= 0.05)
    }).pipe(Effect.provide(fresh({ startup: "lazy" })))
  )

  it.scopedLive("the gauges are those of Db.status, and 0 when the database is closed", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* freshDatabase
      const gauges = Effect.map(series(name), (all) =>
        all
          .filter(({ tags }) => tags["db.client.connection.pool.name"]?.includes(" writes "))
          .filter((one) => MetricState.isCounterState(one.state))
          .map((one) => [gaugeName(one), value(one)] as const)
      )
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        yield* Effect.scoped(
          Effect.gen(function* () {
            yield* sql.reserve
            yield* sql`SELECT 1`
            const status = (yield* Db.status).servers[0]?.writes
            assert.deepStrictEqual([status?.idle, status?.active, status?.waiting], [1, 1, 0])
            assert.deepStrictEqual(Object.fromEntries(yield* gauges), {
              "count idle": status?.idle ?? -1,
              "count used": status?.active ?? -1,
              "idle.max": 3,
              "idle.min": 1,
              max: 3,
              pending_requests: status?.waiting ?? -1,
              timeouts: 0
            })
          })
        )
      }).pipe(Effect.provide(Db.layer({ writer, startup: "lazy", maxConnections: 3, minConnections: 1 })))
      assert.deepStrictEqual([...new Set((yield* gauges).map(([, count]) => count))], [0])
    })
  )

  it.scopedLive("the gauges are those of Db.status at any time, also after interruptions and lost connections", () =>
    Effect.gen(function* () {
      const { name } = yield* Place
      const sql = yield* Db.writer
      const status = Effect.map(Db.status, ({ servers }) => {
        const { active, idle, waiting } = servers[0]?.writes ?? assert.fail("no pool for writes")
        return { active, idle, waiting }
      })
      const gauges = Effect.map(series(name), (all) => {
        const found = all.filter(({ tags }) => tags["db.client.connection.pool.name"]?.includes(" writes "))
        const {
          "count idle": idle,
          "count used": active,
          pending_requests: waiting
        } = Object.fromEntries(found.map((one) => [gaugeName(one), value(one)]))
        return { active, idle, waiting }
      })
      const seen = new Set<string>()
      const compare = Effect.gen(function* () {
        const [before, found, after] = yield* Effect.all([status, gauges, status])
        seen.add(JSON.stringify(before))
        if (isDeepStrictEqual(before, after)) assert.deepStrictEqual(found, before)
      })
      const storm = Effect.all(
        [
          sql`SELECT pg_sleep(0.01)`,
          Effect.timeoutOption(sql`SELECT pg_sleep(60)`, "10 millis"),
          Effect.exit(Db.withTransaction(Effect.zipRight(insert("never"), Effect.timeout(Effect.never, "5 millis")))),
          Effect.exit(sql`SELECT pg_terminate_backend(pg_backend_pid())`),
          Db.withTransaction(sql`SELECT 1`)
        ]
          .flatMap((work) => [work, work, work])
          // while other work runs
          .map((work) => Effect.all([compare, work, compare], { discard: true })),
        { concurrency: 5 }
      )
      yield* Effect.repeat(storm, { times: 2 })
      yield* eventually(status, (_) => _.active === 0)
      const { active, idle } = yield* gauges
      const total = (yield* Db.status).servers[0]?.writes?.total
      assert.deepStrictEqual([active, idle], [0, total])
      assert.isAbove(seen.size, 4)
    }).pipe(
      Effect.provide(fresh({ startup: "lazy", readers: [], maxConnections: 3 })),
      Effect.provide(RetryPolicy.layer(RetryPolicy.never))
    )
  )

  it.scopedLive(
    "a connection whose caller was interrupted is neither active nor idle until the server has answered",
    () =>
      Effect.gen(function* () {
        const { name, writer } = yield* freshDatabase
        const proxy = yield* makeProxy(writer)
        const counts = Effect.gen(function* () {
          const { active, idle } = (yield* Db.status).servers[0]?.writes ?? assert.fail("no pool for writes")
          const gauges = (yield* series(name)).filter(({ name }) => name.endsWith("connection.count"))
          return { active, idle, gauges: gauges.reduce((sum, one) => sum + value(one), 0) }
        })
        yield* Effect.gen(function* () {
          const sql = yield* Db.writer
          const asked = yield* proxy.when(sends("pg_sleep(60)"), "pass")
          const sleeping = yield* Effect.fork(sql`SELECT pg_sleep(60)`)
          yield* asked
          assert.deepStrictEqual(yield* counts, { active: 1, idle: 0, gauges: 1 })
          // the cancel request gets no answer, so the connection stays open for a second
          yield* proxy.freeze
          yield* Fiber.interrupt(sleeping)
          assert.deepStrictEqual(yield* counts, { active: 0, idle: 0, gauges: 0 })
        }).pipe(Effect.provide(Db.layer({ writer: proxy.url, startup: "lazy", readers: [], maxConnections: 1 })))
      })
  )
})

describe("the meter of a pool", () => {
  /** Returns the number of measurements of each duration, on the pool of the writer. */
  const times = (namespace: string) =>
    Effect.map(series(namespace), (all) => {
      const count = (name: string) => {
        const one = all.find(
          (one) =>
            one.name === `db.client.connection.${name}` &&
            one.tags["db.client.connection.pool.name"]?.includes(" writes ")
        )
        return one === undefined ? 0 : value(one)
      }
      return {
        created: count("create_time"),
        waited: count("wait_time"),
        used: count("use_time"),
        timeouts: count("timeouts"),
        waiting: count("pending_requests")
      }
    })

  it.scopedLive("each checkout has one wait and one use, each connection one creation, however the work ends", () =>
    Effect.gen(function* () {
      const { name } = yield* Place
      const sql = yield* Db.writer
      const facts: Array<Observation.Observation> = []
      yield* Effect.forkScoped(Stream.runForEach(Db.observations, (fact) => Effect.sync(() => void facts.push(fact))))
      yield* Effect.yieldNow()
      yield* Effect.forEach([1, 2, 3, 4, 5, 6, 7], (n) => sql`SELECT ${n}::int`, { concurrency: 5 })
      yield* Db.withTransaction(Effect.all([insert("a"), insert("b"), insert("c")]))
      yield* Effect.scoped(Effect.flatMap(sql.reserve, (_) => _.execute("SELECT 1", [], undefined)))
      yield* Effect.flip(sql`SELECT 1 / 0`)
      yield* Effect.flip(sql`SELECT pg_terminate_backend(pg_backend_pid())`)
      assert.deepInclude(yield* times(name), { waited: 11, used: 11 })
      // interrupted while the server runs it
      const asleep = yield* Effect.fork(sql`SELECT pg_sleep(60)`)
      yield* eventually(times(name), (_) => _.waited === 12)
      yield* Fiber.interrupt(asleep)
      yield* eventually(times(name), (_) => _.used === 12)
      yield* sql`SELECT 1`
      yield* Db.withTransaction(Effect.void)
      const { created, ...rest } = yield* times(name)
      assert.deepStrictEqual(rest, { waited: 13, used: 13, timeouts: 0, waiting: 0 })
      yield* Effect.yieldNow()
      assert.strictEqual(created, facts.filter(({ _tag }) => _tag === "Connected").length)
      assert.isAtLeast(created, 2)
    }).pipe(Effect.provide(fresh({ startup: "lazy", readers: [], maxConnections: 2 })))
  )

  it.scopedLive("a caller that times out counts as a timeout and not as a wait, an interrupted one as neither", () =>
    Effect.gen(function* () {
      const { name } = yield* Place
      const sql = yield* Db.writer
      const hold = yield* Deferred.make<void>()
      const holder = yield* Effect.fork(Db.withTransaction(Effect.zipRight(sql`SELECT 1`, Deferred.await(hold))))
      yield* eventually(times(name), (_) => _.waited === 1)
      const late = yield* Effect.fork(
        Effect.all(
          [1, 2].map(() => Effect.flip(sql`SELECT 1`)),
          { concurrency: 2 }
        )
      )
      const interrupted = yield* Effect.fork(sql`SELECT 1`)
      yield* eventually(times(name), (_) => _.waiting === 3)
      yield* Fiber.interrupt(interrupted)
      assert.strictEqual((yield* times(name)).waiting, 2)
      for (const error of yield* Fiber.join(late)) {
        assert.strictEqual(DatabaseError.fromSqlError(error)._tag, "PoolExhausted")
      }
      yield* Deferred.succeed(hold, undefined)
      yield* Fiber.join(holder)
      assert.deepStrictEqual(yield* times(name), { created: 1, waited: 1, used: 1, timeouts: 2, waiting: 0 })
    }).pipe(
      Effect.provide(fresh({ startup: "lazy", readers: [], maxConnections: 1, acquireTimeout: "1 second" })),
      Effect.provide(RetryPolicy.layer(RetryPolicy.never))
    )
  )

  it.scopedLive("the measured times include those of the server, the network and the queue", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* freshDatabase
      const proxy = yield* makeProxy(writer)
      yield* proxy.delay(10)
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        // the second waits for the first, whose statement takes 0.1 s on the server
        yield* Effect.all([sql`SELECT pg_sleep(0.1)`, sql`SELECT 1`], { concurrency: 2 })
        const sums = Object.fromEntries(
          (yield* series(name)).flatMap((one) =>
            MetricState.isHistogramState(one.state) && one.state.count > 0 ? [[one.name, one.state.sum]] : []
          )
        )
        // several exchanges to log in, each with the delay, both ways
        assert.isAtLeast(sums["db.client.connection.create_time"] ?? 0, 0.04)
        assert.isAtLeast(sums["db.client.connection.wait_time"] ?? 0, 0.14)
        assert.isAtLeast(sums["db.client.connection.use_time"] ?? 0, 0.12)
        // in seconds, not in milliseconds
        for (const sum of Object.values(sums)) assert.isBelow(sum, 20)
      }).pipe(Effect.provide(Db.layer({ writer: proxy.url, startup: "lazy", maxConnections: 1 })))
    })
  )
})
