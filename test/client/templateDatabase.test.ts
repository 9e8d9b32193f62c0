/** Databases of their own for tests, as copies of a template. */
import { randomBytes } from "node:crypto"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { Consistency, DatabaseError, TestDatabase, UnitOfWork } from "effect-db"
import { describe, inject } from "vitest"
import { templateName } from "../../src/internal/testing/databaseNames.js"
import { administer } from "../support/adminSession.js"
import { Audit, Db, fresh, insert, Place, stored } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { at, freshDatabase, query } from "../support/server.js"

const names = Effect.flatMap(Db.reader, (sql) =>
  Effect.map(sql<{ name: string }>`SELECT name FROM item ORDER BY name`, (rows) => rows.map((row) => row.name))
)

const current = Effect.flatMap(Db.writer, (sql) =>
  Effect.map(sql<{ name: string }>`SELECT current_database() AS name`, ([row]) => row?.name ?? "")
)

/** Returns a hash that no other test has. */
const freshHash = () => randomBytes(8).toString("hex")

/** Returns work that creates a table, and counts how often it runs. */
const counted = () => {
  const count = { migrations: 0, seeds: 0 }
  const migrate = Effect.gen(function* () {
    count.migrations++
    const sql = yield* Db.writer
    yield* sql`CREATE TABLE item (name text UNIQUE)`
  })
  const seed = Effect.suspend(() => {
    count.seeds++
    return insert("seed")
  })
  return { count, migrate, seed }
}

/** Checks if a database exists on the server that all tests share. */
const exists = (name: string) =>
  Effect.map(
    administer(inject("postgres").writer, "SELECT 1 FROM pg_database WHERE datname = $1", [name]),
    (rows) => rows.length === 1
  )

/** Returns the databases of the run of a database. */
const ofRun = (name: string) =>
  Effect.map(
    administer<{ name: string }>(
      inject("postgres").writer,
      "SELECT datname AS name FROM pg_database WHERE datname LIKE $1 ORDER BY 1",
      [`${name.slice(0, 27).replaceAll("_", "\\_")}%`]
    ),
    (rows) => rows.map((row) => row.name)
  )

/** Opens `Db` once more on the database of a test, as another process would. */
const again = Effect.map(Place, ({ reader, writer }) => Layer.orDie(Db.layer({ writer, readers: [reader] })))

describe("TestDatabase.layerTemplate", () => {
  it.scopedLive("each build has a database of its own, whose commits are real, and which is dropped afterwards", () =>
    Effect.gen(function* () {
      const { count, migrate, seed } = counted()
      const DbTest = TestDatabase.layerTemplate(Db, { migrate, seed })
      const test = (name: string) =>
        Effect.gen(function* () {
          yield* Db.withTransaction(insert(name))
          assert.deepStrictEqual(yield* Db.withConsistency(names, Consistency.Strong()), [name, "seed"].sort())
          const own = yield* current
          const place = yield* Place
          assert.deepStrictEqual(
            yield* query(at(Redacted.value(place.writer), own), "SELECT count(*)::int AS n FROM item"),
            [{ n: 2 }]
          )
          return own
        }).pipe(Effect.provide(DbTest))
      const first = yield* test("a")
      const second = yield* test("b")
      assert.notStrictEqual(first, second)
      assert.deepStrictEqual([yield* exists(first), yield* exists(second)], [false, false])
      assert.deepStrictEqual(count, { migrations: 1, seeds: 1 })
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("the end of the open database drops all databases of its run", () =>
    Effect.gen(function* () {
      const { migrate } = counted()
      const own = yield* current.pipe(
        Effect.provide(TestDatabase.layerTemplate(Db, { migrate, warm: 2 })),
        Effect.provide(fresh())
      )
      assert.match(own, /^effect_db_[0-9a-f]{16}_\d+$/)
      assert.deepStrictEqual(yield* ofRun(own), [])
    })
  )

  it.scopedLive("the template of a hash is migrated once, also by 8 builds at a time of two open databases", () =>
    Effect.gen(function* () {
      const { count, migrate } = counted()
      const DbTest = TestDatabase.layerTemplate(Db, { migrate, hash: freshHash() })
      const other = yield* again
      const test = Effect.provide(
        Effect.gen(function* () {
          yield* insert("a")
          return yield* current
        }),
        DbTest
      )
      const four = Effect.all([test, test, test, test], { concurrency: "unbounded" })
      const built = yield* Effect.all([four, Effect.provide(four, other)], { concurrency: "unbounded" })
      assert.strictEqual(new Set(built.flat()).size, 8)
      assert.strictEqual(count.migrations, 1)
      yield* Effect.provide(test, Layer.provide(DbTest, yield* again))
      assert.strictEqual(count.migrations, 1)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("an effect as the hash is run once for an open database", () =>
    Effect.gen(function* () {
      const { count, migrate } = counted()
      let runs = 0
      const hash = Effect.sync(() => {
        runs++
        return freshHash()
      })
      const test = Effect.provide(names, TestDatabase.layerTemplate(Db, { migrate, hash }))
      yield* test
      yield* test
      assert.deepStrictEqual([runs, count.migrations], [1, 1])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("8 builds at a time with different hashes do not wait for each other's sessions", () =>
    Effect.gen(function* () {
      const { count, migrate } = counted()
      const test = Effect.suspend(() =>
        Effect.provide(current, TestDatabase.layerTemplate(Db, { migrate, hash: freshHash() }))
      )
      const built = yield* Effect.replicateEffect(test, 8, { concurrency: "unbounded" })
      assert.strictEqual(new Set(built).size, 8)
      assert.strictEqual(count.migrations, 8)
    }).pipe(Effect.provide(fresh({ readers: [] })))
  )

  it.scopedLive("8 builds at a time, each with an effect of its own for the same hash, migrate once", () =>
    Effect.gen(function* () {
      const { count, migrate } = counted()
      const text = freshHash()
      const test = Effect.suspend(() =>
        Effect.provide(current, TestDatabase.layerTemplate(Db, { migrate, hash: Effect.sync(() => text) }))
      )
      const built = yield* Effect.replicateEffect(test, 8, { concurrency: "unbounded" })
      assert.strictEqual(new Set(built).size, 8)
      assert.strictEqual(count.migrations, 1)
    }).pipe(Effect.provide(fresh({ readers: [] })))
  )

  it.scopedLive("readers find the copy on the replica", () =>
    Effect.gen(function* () {
      const { migrate, seed } = counted()
      const sql = yield* Effect.provide(Db.reader, TestDatabase.layerTemplate(Db, { migrate, seed }))
      assert.isDefined(sql)
      const [row] = yield* Effect.gen(function* () {
        const reader = yield* Db.reader
        return yield* reader`SELECT pg_is_in_recovery() AS standby, count(*)::int AS n FROM item`
      }).pipe(Effect.provide(TestDatabase.layerTemplate(Db, { migrate, seed })))
      assert.deepStrictEqual(row, { standby: inject("postgres").reader !== inject("postgres").writer, n: 1 })
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("two databases have templates of their own, and a unit of work over both", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const create = (sql: typeof Db.writer extends Effect.Effect<infer A, infer _E, infer _R> ? A : never) =>
        sql`CREATE TABLE item (name text)`
      const live = Layer.merge(Db.layer({ writer }), Audit.layer({ writer }))
      const both = Layer.merge(
        TestDatabase.layerTemplate(Db, { migrate: Effect.flatMap(Db.writer, create) }),
        TestDatabase.layerTemplate(Audit, { migrate: Effect.flatMap(Audit.writer, create) })
      )
      const [one, two] = yield* UnitOfWork.run(
        Effect.gen(function* () {
          const db = yield* Db.writer
          const audit = yield* Audit.writer
          yield* db`INSERT INTO item VALUES ('a')`
          yield* audit`INSERT INTO item VALUES ('b')`
          return [yield* db`SELECT name FROM item`, yield* audit`SELECT name FROM item`] as const
        })
      ).pipe(Effect.provide(both), Effect.provide(live))
      assert.deepStrictEqual([one, two], [[{ name: "a" }], [{ name: "b" }]])
    })
  )

  it.scopedLive("a sandbox and another template can be built on top of it", () =>
    Effect.gen(function* () {
      const { migrate, seed } = counted()
      const DbTest = TestDatabase.layerTemplate(Db, { migrate, seed })
      const empty = TestDatabase.layerTemplate(Db, { migrate })
      yield* Effect.gen(function* () {
        yield* Effect.provide(insert("a"), TestDatabase.layer(Db))
        assert.deepStrictEqual(yield* names, ["seed"])
        assert.deepStrictEqual(yield* Effect.provide(names, empty), [])
        assert.deepStrictEqual(yield* Effect.provide(Effect.provide(names, empty), TestDatabase.layer(Db)), [])
      }).pipe(Effect.provide(DbTest))
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a build inside of a unit of work is outside of its transactions", () =>
    Effect.gen(function* () {
      const { migrate, seed } = counted()
      const DbTest = TestDatabase.layerTemplate(Db, { migrate, seed, hash: freshHash() })
      const test = UnitOfWork.outside(names).pipe(Effect.provide(DbTest))
      const rolledBack = UnitOfWork.run(Effect.all([insert("undone"), Effect.flip(test)]))
      assert.deepStrictEqual(yield* Effect.flip(rolledBack), ["seed"])
      assert.deepStrictEqual(yield* test, ["seed"])
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh()))
  )

  it.effect("a build does not wait for a TestClock", () =>
    Effect.gen(function* () {
      const { migrate } = counted()
      // under the TestClock of the test this would never end
      const slow = Effect.zipRight(Effect.sleep("1 millis"), migrate)
      assert.deepStrictEqual(yield* Effect.provide(names, TestDatabase.layerTemplate(Db, { migrate: slow })), [])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a failed migration fails the build, leaves nothing, and is run again by the next build", () =>
    Effect.gen(function* () {
      const { count, migrate } = counted()
      const seen: Array<string> = []
      const failing = Effect.suspend(() =>
        count.migrations === 0
          ? Effect.zipRight(
              Effect.tap(Effect.zipRight(migrate, current), (name) => Effect.sync(() => seen.push(name))),
              Effect.fail("no" as const)
            )
          : Effect.flatMap(Db.writer, (sql) => sql`SELECT nonsense`)
      )
      const test = Effect.provide(names, TestDatabase.layerTemplate(Db, { migrate: failing, hash: freshHash() }))
      assert.strictEqual(yield* Effect.flip(test), "no")
      const [own = ""] = seen
      assert.deepStrictEqual([yield* exists(own), count.migrations], [false, 1])
      const error = yield* Effect.flip(test)
      assert.isTrue(DatabaseError.isDatabaseError(error) && error._tag === "QueryFailed")
      assert.deepStrictEqual(yield* ofRun(own), [])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("an interrupted migration leaves nothing, and the next build migrates again", () =>
    Effect.gen(function* () {
      const { count, migrate } = counted()
      const reached = yield* Deferred.make<string>()
      const hanging = Effect.gen(function* () {
        yield* migrate
        if (count.migrations > 1) return
        yield* Deferred.succeed(reached, yield* current)
        yield* Effect.never
      })
      const test = Effect.provide(names, TestDatabase.layerTemplate(Db, { migrate: hanging, hash: freshHash() }))
      const fiber = yield* Effect.fork(test)
      const own = yield* Deferred.await(reached)
      yield* Fiber.interrupt(fiber)
      assert.isFalse(yield* exists(own))
      assert.deepStrictEqual(yield* test, [])
      assert.strictEqual(count.migrations, 2)
      assert.deepStrictEqual(yield* ofRun(own), [])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("an interrupted build that waits for the migration of another one leaves the other alone", () =>
    Effect.gen(function* () {
      const { count, migrate } = counted()
      const reached = yield* Deferred.make<void>()
      const proceed = yield* Deferred.make<void>()
      const slow = Effect.all([migrate, Deferred.succeed(reached, undefined), Deferred.await(proceed)])
      const test = Effect.provide(names, TestDatabase.layerTemplate(Db, { migrate: slow, hash: freshHash() }))
      const first = yield* Effect.fork(test)
      yield* Deferred.await(reached)
      const second = yield* Effect.fork(Effect.provide(test, yield* again))
      const key = "SELECT count(*)::int AS is FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
      const { writer } = yield* Place
      yield* eventually(
        query<{ is: number }>(
          writer,
          `${key} AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`
        ),
        ([row]) => row?.is === 1
      )
      yield* Fiber.interrupt(second)
      yield* Deferred.succeed(proceed, undefined)
      assert.deepStrictEqual(yield* Fiber.join(first), [])
      assert.strictEqual(count.migrations, 1)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a template that was dropped by hand is created again", () =>
    Effect.gen(function* () {
      const { count, migrate } = counted()
      const hash = freshHash()
      const test = Effect.provide(names, TestDatabase.layerTemplate(Db, { migrate, hash }))
      yield* test
      const { name, writer } = yield* Place
      const user = decodeURIComponent(new URL(Redacted.value(writer)).username)
      const template = templateName("1", user, name, "app", hash)
      assert.isTrue(yield* exists(template))
      yield* administer(inject("postgres").writer, `DROP DATABASE ${template}`)
      assert.deepStrictEqual(yield* test, [])
      assert.strictEqual(count.migrations, 2)
    }).pipe(Effect.provide(fresh()))
  )
})
