/**
 * The behaviour of a pool beyond the tests that all strategies share, which are in
 * `support/suites/pooling`.
 */
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { DatabaseError, RetryPolicy } from "effect-db"
import { describe } from "vitest"
import { active, Db, fresh, insert, Place, pid, stored } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { makeProxy } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"

const writes = Effect.map(
  Db.status,
  ({ servers }) => servers[0]?.writes ?? { total: -1, idle: -1, active: -1, waiting: -1 }
)

/** Begins a transaction that holds a connection, and returns the effect that ends it. */
const holder = Effect.gen(function* () {
  const held = yield* Deferred.make<void>()
  const release = yield* Deferred.make<void>()
  const fiber = yield* Effect.fork(
    Db.withTransaction(Effect.all([pid, Deferred.succeed(held, undefined), Deferred.await(release)]))
  )
  yield* Deferred.await(held)
  return Effect.zipRight(Deferred.succeed(release, undefined), Fiber.join(fiber))
})

describe("Pool", () => {
  it.scopedLive("a connect that hangs delays no caller, also when the other connections are in long use", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const proxy = yield* makeProxy(writer)
      const hanging = yield* proxy.when((message) => message.type === "startup", "freeze")
      // a login takes much of the first estimate of a connect, which then grows
      yield* proxy.delay(0, 20)
      const both = yield* Effect.makeLatch()
      let holding = 0
      const hold = Db.withTransaction(
        Effect.zipRight(
          pid,
          Effect.suspend(() => (++holding === 2 ? both.open : both.await))
        )
      )
      yield* Effect.all([hold, hold, hanging], { concurrency: "unbounded" }).pipe(
        Effect.provide(
          Db.layer({ writer: proxy.url, startup: "lazy", connectTimeout: "1 minute", acquireTimeout: "1 minute" })
        )
      )
      assert.strictEqual(holding, 2)
    })
  )

  it.scopedLive("a reserved connection is exclusive, and returns to the pool", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const { one, other, two } = yield* Effect.scoped(
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
          const other = yield* Effect.fork(pid)
          yield* eventually(writes, (_) => _.waiting === 1)
          return { one: a[0].pid, two: b[0]?.[0], other }
        })
      )
      assert.strictEqual(one, two)
      assert.strictEqual(yield* Fiber.join(other), one)
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
  )

  it.scopedLive("an interrupted waiter for a reserved connection leaks nothing", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const release = yield* holder
      const fiber = yield* Effect.fork(Effect.scoped(sql.reserve))
      yield* eventually(writes, (_) => _.waiting === 1)
      yield* Fiber.interrupt(fiber)
      yield* release
      yield* insert("next")
      assert.deepStrictEqual(yield* stored, ["next"])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
  )

  it.scopedLive("a reserved connection is requested again by the retry policy, and not without one", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const proxy = yield* makeProxy(writer)
      yield* Effect.gen(function* () {
        const { reserve } = yield* Db.writer
        const one = Effect.scoped(Effect.flatMap(reserve, (_) => _.execute("SELECT 1 AS n", [], undefined)))
        yield* proxy.when(({ type }) => type === "startup", "cut")
        const error = yield* one.pipe(RetryPolicy.with(RetryPolicy.never), DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag, "ConnectFailed")
        yield* proxy.when(({ type }) => type === "startup", "cut", 2)
        assert.deepStrictEqual(yield* one, [{ n: 1 }])
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(Db.layer({ writer: proxy.url, startup: "lazy" })))
    })
  )

  it.scopedLive("a reserved connection of a reader is on another server if the first cannot be reached", () =>
    Effect.gen(function* () {
      const { reader, writer } = yield* freshDatabase
      const proxy = yield* makeProxy(reader)
      yield* proxy.refuse
      yield* Effect.gen(function* () {
        const { reserve } = yield* Db.reader
        const rows = yield* Effect.scoped(
          Effect.flatMap(reserve, (_) => _.execute("SELECT pg_is_in_recovery() AS yes", [], undefined))
        )
        assert.deepStrictEqual(rows, [{ yes: true }])
        const { servers } = yield* Db.status
        assert.deepStrictEqual(
          servers.map(({ reads }) => reads.total),
          [0, 0, 1]
        )
      }).pipe(Effect.provide(Db.layer({ writer, readers: [proxy.url, reader], startup: "lazy" })))
    })
  )

  it.scopedLive("the timeouts and the application name of a database reach its server", () =>
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

  it.scopedLive("a transaction that idles for long fails with IdleTransactionTimeout; its connection is replaced", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* Place
      const error = yield* Db.withTransaction(
        Effect.gen(function* () {
          yield* insert("x")
          yield* eventually(
            query(writer, "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND state LIKE 'idle in%'", [name]),
            (rows) => rows.length === 0
          )
          yield* insert("y")
        })
      ).pipe(DatabaseError.refine, Effect.flip)
      assert.strictEqual(error._tag, "IdleTransactionTimeout")
      yield* insert("next")
      assert.deepStrictEqual(yield* stored, ["next"])
    }).pipe(Effect.provide(fresh({ idleInTransactionTimeout: "50 millis" })))
  )

  it.scopedLive("thousands of statements that cannot be sent all fail, and leave the pool usable", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const circle: Record<string, unknown> = {}
      circle.itself = circle
      const bad = Effect.exit(DatabaseError.refine(sql.unsafe("SELECT $1::text", [circle])))
      for (const one of [bad, Effect.exit(Db.withTransaction(bad))]) {
        const all = yield* Effect.all(
          Array.from({ length: 3000 }, () => one),
          { concurrency: "unbounded" }
        )
        assert.lengthOf(all, 3000)
      }
      const [failed] = [yield* Effect.flip(DatabaseError.refine(sql.unsafe("SELECT $1::text", [circle])))]
      assert.strictEqual(failed._tag, "QueryFailed")
      assert.strictEqual(yield* active, 0)
      yield* insert("after")
      assert.deepStrictEqual(yield* stored, ["after"])
    }).pipe(Effect.provide(fresh({ readers: [], queueTarget: Duration.infinity })))
  )

  it.scopedLive("callers wait for the open connection, and get it in order, while the server accepts no more", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const proxy = yield* makeProxy(writer)
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const order: Array<number> = []
        yield* proxy.refuse
        yield* Effect.forEach(
          Array.from({ length: 12 }, (_, i) => i),
          (i) =>
            Effect.zipRight(
              sql`SELECT pg_sleep(0.2)`,
              Effect.sync(() => order.push(i))
            ),
          { concurrency: "unbounded" }
        )
        assert.deepStrictEqual(
          order,
          Array.from({ length: 12 }, (_, i) => i)
        )
      }).pipe(Effect.provide(Db.layer({ writer: proxy.url, maxConnections: 5 })))
    })
  )

  it.scopedLive("assertSingle does not take an interrupted statement for a checkout", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      yield* Effect.timeoutOption(sql`SELECT pg_sleep(5)`, "50 millis")
      assert.deepStrictEqual(yield* sql`SELECT 1 AS n`, [{ n: 1 }])
    }).pipe(Effect.provide(fresh({ readers: [], strategy: "assertSingle" })))
  )
})
