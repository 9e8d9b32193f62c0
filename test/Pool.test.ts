import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { DatabaseError, type Observation } from "effect-db"
import { describe } from "vitest"
import { active, Db, fresh, insert, Place, soon, stored } from "./fixtures/databases.js"
import { query, terminateBackends } from "./fixtures/server.js"

const pid = Effect.flatMap(Db.writer, (sql) =>
  Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, (rows) => rows[0]?.pid ?? 0)
)

const writes = Effect.map(
  Db.status,
  ({ servers }) => servers[0]?.writes ?? { total: -1, idle: -1, active: -1, waiting: -1 }
)

/** A transaction that holds a connection until it is told to let go. */
const holder = Effect.gen(function* () {
  const held = yield* Deferred.make<void>()
  const release = yield* Deferred.make<void>()
  const fiber = yield* Effect.fork(
    Db.withTransaction(Effect.all([pid, Deferred.succeed(held, undefined), Deferred.await(release)]))
  )
  yield* Deferred.await(held)
  return Effect.zipRight(Deferred.succeed(release, undefined), Fiber.join(fiber))
})

/** The facts that happen while an effect runs. */
const observed = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const facts: Array<Observation.Observation> = []
    const fiber = yield* Effect.fork(
      Stream.runForEach(Db.observations, (fact) => Effect.sync(() => void facts.push(fact)))
    )
    yield* Effect.yieldNow()
    const result = yield* self
    yield* Effect.yieldNow()
    yield* Fiber.interrupt(fiber)
    return [result, facts] as const
  })

describe("Pool", () => {
  it.scopedLive("reuses the connection that was used last, or with fifo the one unused for longest", () =>
    Effect.gen(function* () {
      const run = Effect.gen(function* () {
        const [first, second] = [yield* holder, yield* holder]
        const [a] = yield* first
        const [b] = yield* second
        return [a, b, yield* pid] as const
      })
      const [, last, lifo] = yield* Effect.provide(run, fresh({ maxConnections: 2 }))
      assert.strictEqual(lifo, last)
      const [oldest, , fifo] = yield* Effect.provide(run, fresh({ maxConnections: 2, order: "fifo" }))
      assert.strictEqual(fifo, oldest)
    })
  )

  it.scopedLive("never has more connections than it may, and serves waiters in order", () =>
    Effect.gen(function* () {
      const order: Array<number> = []
      const release = yield* holder
      const waiting = yield* Effect.forEach([1, 2, 3, 4], (n) =>
        Effect.tap(Effect.fork(Effect.tap(pid, () => Effect.sync(() => order.push(n)))), () =>
          Effect.repeat(writes, { schedule: soon, until: (_) => _.waiting === n })
        )
      )
      assert.strictEqual((yield* writes).total, 1)
      yield* release
      yield* Fiber.joinAll(waiting)
      assert.deepStrictEqual(order, [1, 2, 3, 4])
      assert.strictEqual((yield* writes).total, 1)
    }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
  )

  it.scopedLive("a caller who waited too long is told how things stand", () =>
    Effect.gen(function* () {
      const release = yield* holder
      const error = yield* pid.pipe(DatabaseError.refine, Effect.flip)
      assert.strictEqual(error._tag, "PoolExhausted")
      if (error._tag === "PoolExhausted") {
        const { active, idle, total, waiting } = error
        assert.deepStrictEqual({ active, idle, total, waiting }, { active: 1, idle: 0, total: 1, waiting: 1 })
      }
      yield* release
      assert.isAbove(yield* pid, 0)
    }).pipe(Effect.provide(fresh({ maxConnections: 1, acquireTimeout: "50 millis" })))
  )

  it.scopedLive("killed idle connections are replaced, without a failure for the caller", () =>
    Effect.gen(function* () {
      const { name } = yield* Place
      const releases = yield* Effect.all([holder, holder, holder])
      const before = yield* Effect.forEach(releases, (release) => Effect.map(release, ([first]) => first))
      yield* terminateBackends(name)
      const after = yield* Effect.forEach([1, 2, 3], () => pid, { concurrency: 3 })
      assert.strictEqual(before.length, 3)
      for (const one of after) assert.notInclude(before, one)
    }).pipe(Effect.provide(fresh({ maxConnections: 3 })))
  )

  it.scopedLive("a connection whose transaction was left open by hand does not go back", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const [first, facts] = yield* observed(
        Effect.zipLeft(
          Effect.scoped(
            Effect.gen(function* () {
              const connection = yield* sql.reserve
              yield* connection.executeUnprepared("BEGIN", [], undefined)
              yield* connection.executeUnprepared("INSERT INTO item (name) VALUES ('open')", [], undefined)
              return yield* pid
            })
          ),
          Effect.repeat(writes, { schedule: soon, until: (_) => _.total === 1 })
        )
      )
      assert.isTrue(facts.some((fact) => fact._tag === "Closed" && fact.reason === "dirty"))
      assert.isAbove(first, 0)
      assert.deepStrictEqual(yield* stored, [])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh({ maxConnections: 2 })))
  )

  it.scopedLive("a reserved connection is one's own, and comes back", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const rows = yield* Effect.scoped(
        Effect.gen(function* () {
          const connection = yield* sql.reserve
          assert.strictEqual(yield* active, 1)
          const [a, b] = yield* Effect.all(
            [
              connection.execute("SELECT pg_backend_pid() AS pid, $1::int AS n", [1], undefined),
              connection.executeValues("SELECT pg_backend_pid(), 2", [])
            ],
            { concurrency: 2 }
          )
          return [a[0].pid, b[0]?.[0]]
        })
      )
      assert.strictEqual(rows[0], rows[1])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a waiter for a reserved connection that gives up leaks nothing", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const release = yield* holder
      const fiber = yield* Effect.fork(Effect.scoped(sql.reserve))
      yield* Effect.repeat(writes, { schedule: soon, until: (_) => _.waiting === 1 })
      yield* Fiber.interrupt(fiber)
      yield* release
      yield* insert("next")
      assert.deepStrictEqual(yield* stored, ["next"])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
  )

  it.scopedLive("minConnections are opened at the start and kept; those beyond go when they are idle", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      yield* Effect.repeat(writes, { schedule: soon, until: (_) => _.total === 2 })
      const releases = yield* Effect.all([holder, holder, holder, holder])
      yield* Effect.all(releases)
      yield* Effect.repeat(writes, { schedule: soon, until: (_) => _.total === 2 && _.idle === 2 })
      // a few more rounds of looking for what is idle too long
      yield* Effect.forEach([1, 2, 3], () => query(writer, "SELECT pg_sleep(0.05)"))
      assert.strictEqual((yield* writes).idle, 2)
    }).pipe(Effect.provide(fresh({ minConnections: 2, idleTimeout: "40 millis" })))
  )

  it.scopedLive("an aged connection is replaced; idleTimeout infinity closes none", () =>
    Effect.gen(function* () {
      const first = yield* pid
      yield* Effect.repeat(pid, { schedule: soon, until: (_) => _ !== first })
      assert.notStrictEqual(yield* pid, first)
    }).pipe(Effect.provide(fresh({ maxConnections: 1, maxLifetime: "60 millis", idleTimeout: Duration.infinity })))
  )

  it.scopedLive("facts are told: connected, lost, closed", () =>
    Effect.gen(function* () {
      const { name } = yield* Place
      const [, facts] = yield* observed(
        Effect.gen(function* () {
          yield* pid
          yield* terminateBackends(name)
          yield* Effect.repeat(writes, { schedule: soon, until: (_) => _.total === 0 })
        })
      )
      assert.deepStrictEqual(
        facts.map((fact) => fact._tag).filter((tag) => ["Connected", "Lost", "Closed"].includes(tag)),
        ["Connected", "Lost", "Closed"]
      )
    }).pipe(Effect.provide(fresh({ startup: "lazy" })))
  )

  it.scopedLive("session settings reach the server", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* Place
      const sql = yield* Db.writer
      const [row] = yield* sql`
        SELECT current_setting('statement_timeout') AS statement, current_setting('lock_timeout') AS lock,
               current_setting('idle_in_transaction_session_timeout') AS idle, current_setting('application_name') AS name`
      assert.deepStrictEqual(row, { statement: "7s", lock: "6s", idle: "5s", name: "my app" })
      const seen = yield* query(
        writer,
        "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND application_name = 'my app'",
        [name]
      )
      assert.isNotEmpty(seen)
    }).pipe(
      Effect.provide(
        fresh({
          statementTimeout: "7 seconds",
          lockTimeout: "6 seconds",
          idleInTransactionTimeout: "5 seconds",
          applicationName: "my app"
        })
      )
    )
  )

  it.scopedLive("a transaction that idles too long is ended by the server, typed, and its connection replaced", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* Place
      const error = yield* Db.withTransaction(
        Effect.gen(function* () {
          yield* insert("x")
          yield* Effect.repeat(
            query(writer, "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND state LIKE 'idle in%'", [name]),
            { schedule: soon, until: (rows) => rows.length === 0 }
          )
          yield* insert("y")
        })
      ).pipe(DatabaseError.refine, Effect.flip)
      assert.strictEqual(error._tag, "IdleTransactionTimeout")
      yield* insert("next")
      assert.deepStrictEqual(yield* stored, ["next"])
    }).pipe(Effect.provide(fresh({ idleInTransactionTimeout: "50 millis" })))
  )
})
