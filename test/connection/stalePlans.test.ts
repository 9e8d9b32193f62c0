/** Prepared statements whose plans are stale, because the tables or types that they use have changed. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { RetryPolicy, TestDatabase, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { behind } from "../support/behind.js"
import { Db, fresh, insert, Place, stored } from "../support/databases.js"
import { failure } from "../support/failures.js"
import { type Proxy, sends } from "../support/proxy.js"
import { query } from "../support/server.js"

const columns = (table = "item") =>
  Effect.flatMap(Db.writer, (sql) =>
    Effect.map(sql.unsafe(`SELECT * FROM ${table}`), (rows) => Object.keys(rows[0] ?? {}).join())
  )

const elsewhere = (text: string) => Effect.flatMap(Place, ({ writer }) => query(writer, text))

let added = 0

/** Adds a column in another session, and returns the columns. */
const addColumn = Effect.gen(function* () {
  yield* elsewhere(`ALTER TABLE item ADD COLUMN extra_${++added} text`)
  const [row] = yield* elsewhere(
    `SELECT string_agg(attname, ',' ORDER BY attnum) AS names FROM pg_attribute
     WHERE attrelid = 'item'::regclass AND attnum > 0`
  )
  return String(row?.names)
})

/** Counts the errors that the server returns from now on. */
const countRefusals = (proxy: Proxy) => {
  let refused = 0
  const counted = proxy.when(({ from, type }) => {
    if (from === "server" && type === "E") refused++
    return false
  }, "pass")
  return Effect.as(counted, () => refused)
}

describe("stale plans", () => {
  const firsts = {
    "a transaction": Db.withTransaction(columns()),
    "a transaction with options": Db.withTransaction(columns(), { isolation: "serializable", statementTimeout: 5000 }),
    "a unit of work": UnitOfWork.run(columns()),
    "a nested transaction": Db.withTransaction(Effect.zipRight(insert("outer"), Db.withTransaction(columns()))),
    "a transaction in a transaction without statements": Db.withTransaction(Db.withTransaction(columns())),
    "a scope of a schema": Db.withSchema(Db.withTransaction(columns()), "public")
  }
  for (const [name, first] of Object.entries(firsts)) {
    it.scopedLive(`a stale plan of the first statement of ${name} is prepared again, as nothing has run in it`, () =>
      Effect.gen(function* () {
        yield* insert("a")
        yield* Db.withSchema(columns(), "public")
        yield* columns()
        const expected = yield* addColumn
        assert.strictEqual(yield* first, expected)
        yield* elsewhere("DELETE FROM item WHERE name = 'outer'")
        assert.strictEqual(yield* first, expected)
      }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
    )
  }

  it.scopedLive("a stale plan of a reader in a writer's transaction, or of a sandbox, is prepared again", () =>
    behind({ maxConnections: 1 }, (proxy) =>
      Effect.gen(function* () {
        const refusals = yield* countRefusals(proxy)
        const reader = yield* Db.reader
        const read = Effect.map(reader`SELECT * FROM item`, (rows) => Object.keys(rows[0] ?? {}).join())
        yield* insert("a")
        yield* Db.withTransaction(
          Effect.gen(function* () {
            yield* insert("b")
            yield* read
          })
        )
        const expected = yield* addColumn
        yield* Db.withTransaction(
          Effect.gen(function* () {
            yield* insert("c")
            assert.strictEqual(yield* read, expected)
          })
        )
        assert.strictEqual(refusals(), 1)
        const after = yield* addColumn
        const sandbox = Effect.gen(function* () {
          yield* (yield* Db.writer)`SET lock_timeout = 0`
          assert.strictEqual(yield* columns(), after)
        })
        yield* Effect.provide(sandbox, TestDatabase.layer(Db))
        assert.strictEqual(refusals(), 2)
        assert.deepStrictEqual(yield* stored, ["a", "b", "c"])
      })
    )
  )

  it.scopedLive("a connection with a stale plan drops its other plans, because each would be refused in turn", () =>
    behind({ maxConnections: 1 }, (proxy) =>
      Effect.gen(function* () {
        const place = yield* Place
        yield* query(place.writer, "INSERT INTO item (name) VALUES ('a')")
        const sql = yield* Db.writer
        const texts = [1, 2, 3].map((n) => `SELECT ${n} AS n, item.* FROM item`)
        for (const text of texts) yield* sql.unsafe(text)
        yield* addColumn
        const refusals = yield* countRefusals(proxy)
        for (const text of texts) yield* Db.withTransaction(sql.unsafe(text))
        assert.strictEqual(refusals(), 1)
        yield* sql`DEALLOCATE ALL`.unprepared
        yield* sql`DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$`
        for (const text of texts) yield* Db.withTransaction(sql.unsafe(text))
        yield* sql`DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$`
        for (const text of texts) yield* sql.unsafe(text)
        assert.strictEqual(refusals(), 2)
      })
    )
  )

  for (const [name, first, undo] of [
    ["a nested transaction", insert("outer"), "ROLLBACK TO SAVEPOINT"],
    ["a nested transaction that begins the outer one", Effect.void, "ROLLBACK"]
  ] as const) {
    it.scopedLive(`an interruption of a stale plan in ${name} undoes the nested transaction alone`, () =>
      behind({ maxConnections: 1 }, (proxy) =>
        Effect.gen(function* () {
          yield* insert("a")
          yield* columns()
          yield* addColumn
          yield* Db.withTransaction(
            Effect.gen(function* () {
              yield* first
              const undoing = yield* proxy.when(sends(undo), "freeze")
              const nested = yield* Effect.fork(Db.withTransaction(columns()))
              yield* undoing
              const interruption = yield* Effect.fork(Fiber.interrupt(nested))
              yield* Effect.yieldNow()
              yield* proxy.thaw
              assert.isTrue(Exit.isInterrupted(yield* Fiber.join(interruption)))
              yield* insert("after")
            })
          )
          assert.include(yield* stored, "after")
          yield* columns()
        })
      )
    )
  }

  it.scopedLive("a stale plan for a recreated type is prepared again if nothing has run in its transaction", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const remake = elsewhere("DROP TYPE IF EXISTS mood CASCADE; CREATE TYPE mood AS ENUM ('sad', 'glad')")
      const cast = Effect.map(
        sql<{ mood: string }>`SELECT ${"glad"}::mood::text AS mood, ${["sad"]}::mood[]::text AS many`,
        (rows) => rows[0]?.mood
      )
      yield* remake
      assert.strictEqual(yield* cast, "glad")
      yield* remake
      assert.strictEqual(yield* cast, "glad")
      yield* remake
      assert.strictEqual(yield* Db.withTransaction(cast), "glad")
      yield* remake
      const error = yield* failure(Db.withTransaction(Effect.zipRight(insert("a"), cast)))
      assert.isTrue(RetryPolicy.isReplayable(error))
      assert.strictEqual(yield* cast, "glad")
      let runs = 0
      yield* remake
      const work = Effect.suspend(() => {
        runs++
        return Effect.zipRight(insert("a"), cast)
      })
      assert.strictEqual(yield* Db.withTransaction(work, { retry: true }), "glad")
      assert.strictEqual(runs, 2)
    }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
  )

  it.scopedLive("a stale plan in the middle of a transaction fails with an error that says what to do", () =>
    Effect.gen(function* () {
      yield* insert("a")
      yield* columns()
      const expected = yield* addColumn
      const middle = Db.withTransaction(Effect.zipRight(insert("b"), columns()))
      const error = yield* failure(middle)
      assert.strictEqual(error._tag === "QueryFailed" && error.sqlState, "0A000")
      assert.include(error.message, "changed since the statement was prepared")
      assert.include(error.message, "run the whole transaction again, or set its option `retry`")
      assert.strictEqual(yield* middle, expected)
    }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
  )
})
