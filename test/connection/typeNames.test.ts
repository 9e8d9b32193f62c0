/** Parsers for types by the names of the types. */
import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { type Database, DatabaseError } from "effect-db"
import Pg from "pg"
import { Db } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { makeProxy, sends } from "../support/proxy.js"
import { freshRole, loggedIn } from "../support/roles.js"
import { freshDatabase, inThisDatabase, query } from "../support/server.js"

const schema = `
  CREATE TYPE mood AS ENUM ('sad', 'ok', 'very, "happy"');
  CREATE SCHEMA other;
  CREATE TYPE other.mood AS ENUM ('bad');
  CREATE TABLE person (id int, current mood, past mood[], elsewhere other.mood[])`

/** A parser that returns `mood` in capital letters, which shows that it was used. */
const types = { mood: (text: string) => text.toUpperCase() }

const open = (options: Partial<Database.Options> = {}) =>
  Effect.gen(function* () {
    const place = yield* Effect.tap(freshDatabase, ({ writer }) => query(writer, schema))
    const proxy = yield* makeProxy(place.writer)
    const layer = Db.layer({ writer: proxy.url, validateAfterIdle: Duration.infinity, types, ...options })
    return { ...place, layer, proxy }
  })

const read = "SELECT 'ok'::mood AS one, ARRAY['sad', NULL, 'very, \"happy\"']::mood[] AS many, 1 AS n, 'x' AS t"
const expected = { one: "OK", many: ["SAD", null, 'VERY, "HAPPY"'], n: 1, t: "x" }

describe("types by name", () => {
  it.scopedLive("columns of a named type and of its arrays are parsed, however the statement runs", () =>
    Effect.gen(function* () {
      const { layer } = yield* open()
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const rows = sql.unsafe(read)
        for (const _ of [1, 2]) {
          assert.deepStrictEqual(yield* rows, [expected])
          assert.deepStrictEqual(yield* rows.unprepared, [expected])
          assert.deepStrictEqual(yield* rows.values, [Object.values(expected)])
        }
        const many = sql.unsafe<object>(`${read}, generate_series(1, 300)`)
        const streamed = yield* Stream.runCollect(many.stream)
        assert.lengthOf([...streamed], 300)
        assert.deepInclude([...streamed][299], expected)
        const nested = yield* Db.withTransaction(sql.withTransaction(rows))
        assert.deepStrictEqual(nested, [expected])
        const connection = yield* sql.reserve
        assert.deepStrictEqual(yield* connection.execute(read, [], undefined), [expected])
        const several: ReadonlyArray<unknown> = yield* sql.unsafe(
          `SELECT 'ok'::mood AS a; SELECT ARRAY['sad']::mood[] AS b`
        )
        assert.deepStrictEqual(several, [[{ a: "OK" }], [{ b: ["SAD"] }]])
      }).pipe(Effect.scoped, Effect.provide(layer))
    })
  )

  it.scopedLive("columns of the first statement are parsed, also in a stream, a transaction or several commands", () =>
    Effect.gen(function* () {
      const first = <A>(use: Effect.Effect<A, unknown, Db>) =>
        Effect.flatMap(open(), ({ layer }) => Effect.provide(use, layer))
      const statement = Effect.map(Db.writer, (sql) => sql.unsafe<object>(read))
      const streamed = yield* first(Effect.flatMap(statement, (_) => Stream.runCollect(_.stream)))
      assert.deepStrictEqual([...streamed], [expected])
      assert.deepStrictEqual(yield* first(Db.withTransaction(Effect.flatten(statement))), [expected])
      assert.deepStrictEqual(yield* first(Effect.flatMap(statement, (_) => _.values)), [Object.values(expected)])
      const reader = Effect.flatMap(Db.reader, (sql) => sql.unsafe(read))
      assert.deepStrictEqual(yield* first(reader), [expected])
      assert.deepStrictEqual(yield* first(Db.withTransaction(reader)), [expected])
      const several = yield* first(
        Effect.flatMap(Db.writer, (sql) => sql.unsafe("SELECT 'ok'::mood AS a; SELECT 1 AS n; SELECT 'sad'::mood AS b"))
      )
      assert.deepStrictEqual(several as unknown, [[{ a: "OK" }], [{ n: 1 }], [{ b: "SAD" }]])
      const written = yield* first(
        Effect.flatMap(
          Db.writer,
          (sql) => sql`INSERT INTO person ${sql.insert({ id: 1, past: ["sad", "ok"] }).returning("past")}`
        )
      )
      assert.deepStrictEqual(written, [{ past: ["SAD", "OK"] }])
    })
  )

  it.scopedLive("type names are looked up once per server, whatever the number of its connections", () =>
    Effect.gen(function* () {
      const { layer, reader, proxy } = yield* open({ maxConnections: 2 })
      const replica = yield* makeProxy(reader)
      const trips = (of: typeof proxy, use: Effect.Effect<unknown, unknown, Db>) =>
        Effect.suspend(() => {
          const before = of.roundTrips
          return Effect.map(use, () => of.roundTrips - before)
        })
      const statement = Effect.flatMap(Db.writer, (sql) => sql.unsafe(read).unprepared)
      yield* Effect.gen(function* () {
        assert.strictEqual(yield* trips(proxy, statement), 2)
        assert.strictEqual(yield* trips(proxy, statement), 1)
        const connections = proxy.accepted
        yield* Db.withTransaction(
          Effect.gen(function* () {
            yield* statement
            // BEGIN with the statement, and COMMIT, on a new connection without a lookup
            assert.strictEqual(yield* trips(proxy, Db.independent(Db.withTransaction(statement))), 2)
          })
        )
        assert.strictEqual(proxy.accepted, connections + 1)
      }).pipe(Effect.provide(layer))
      const reads = Effect.flatMap(Db.reader, (sql) => sql.unsafe(read).unprepared)
      yield* Effect.gen(function* () {
        yield* statement
        assert.strictEqual(yield* trips(replica, reads), 2)
        assert.strictEqual(yield* trips(replica, reads), 1)
        assert.deepStrictEqual(yield* reads, [expected])
      }).pipe(
        Effect.provide(
          // the queries of a monitor would count
          Db.layer({
            writer: proxy.url,
            readers: [replica.url],
            validateAfterIdle: Duration.infinity,
            monitor: false,
            types
          })
        )
      )
    })
  )

  it.scopedLive("a type that was dropped and recreated is looked up again", () =>
    Effect.gen(function* () {
      const { layer, writer } = yield* open()
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const rows = sql.unsafe(read)
        assert.deepStrictEqual(yield* rows.unprepared, [expected])
        yield* query(writer, "DROP TABLE person; DROP TYPE mood")
        yield* query(writer, "CREATE TYPE mood AS ENUM ('sad', 'ok', 'very, \"happy\"')")
        assert.deepStrictEqual(yield* rows.unprepared, [expected])
        // a renamed type has no parser under its new name
        yield* sql`ALTER TYPE mood RENAME TO feeling`
        assert.deepStrictEqual(yield* sql`SELECT 'ok'::feeling AS a, ARRAY['ok']::feeling[] AS b`, [
          { a: "ok", b: "{ok}" }
        ])
      }).pipe(Effect.provide(layer))
    })
  )

  it.scopedLive("a type name with a schema matches that type only, and built-in types can have parsers", () =>
    Effect.gen(function* () {
      const { layer } = yield* open({
        types: { ...types, "other.mood": (text: string) => `${text}!`, int8: BigInt, numeric: Number }
      })
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const rows = yield* sql`SELECT 'ok'::mood AS a, 'bad'::other.mood AS b, ARRAY['bad']::other.mood[] AS c,
          1::int8 AS d, 1.5 AS e, ARRAY[1.5, 2] AS f, ARRAY[1]::int8[] AS g, '1 2'::int2vector AS h`
        assert.deepStrictEqual(rows, [
          { a: "OK", b: "bad!", c: ["bad!"], d: 1n, e: 1.5, f: [1.5, 2], g: [1n], h: "1 2" }
        ])
      }).pipe(Effect.provide(layer))
    })
  )

  it.scopedLive("a lookup sees the types that its transaction has created, and is repeated after the rollback", () =>
    Effect.gen(function* () {
      const { layer } = yield* open()
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        yield* Effect.flip(
          Db.withTransaction(
            Effect.gen(function* () {
              yield* sql`DROP TABLE person; DROP TYPE mood; CREATE TYPE mood AS ENUM ('ok')`
              assert.deepStrictEqual(yield* sql`SELECT ARRAY['ok']::mood[] AS a`, [{ a: ["OK"] }])
              return yield* Effect.fail("undone")
            })
          )
        )
        assert.deepStrictEqual(yield* sql.unsafe(read), [expected])
      }).pipe(Effect.provide(layer))
    })
  )

  it.scopedLive("a parser that throws fails its own statement only", () =>
    Effect.gen(function* () {
      const { layer } = yield* open({
        types: {
          mood: (text: string) => {
            throw new Error(`no parser for ${text.length} letters`)
          }
        }
      })
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        for (const text of [read, "SELECT 'ok'::mood", "SELECT ARRAY['ok']::mood[]"]) {
          const error = yield* Effect.flip(DatabaseError.refine(sql.unsafe(text)))
          assert.strictEqual(error._tag, "QueryFailed")
          assert.include(error.message, "no parser for")
        }
        assert.deepStrictEqual(yield* sql`SELECT 1 AS n`, [{ n: 1 }])
      }).pipe(Effect.provide(layer))
    })
  )

  it.scopedLive("the error of an autocommit INSERT whose types cannot be looked up says that it has run", () =>
    Effect.gen(function* () {
      const { writer } = yield* open()
      const role = yield* freshRole(writer)
      yield* query(writer, "REVOKE SELECT ON pg_catalog.pg_type FROM PUBLIC; GRANT ALL ON person TO PUBLIC")
      const context = yield* Layer.build(Db.layer({ writer: loggedIn(writer, role), types, maxConnections: 1 }))
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const insert = sql`INSERT INTO person (id, current) VALUES (1, 'ok') RETURNING current`
        const error = yield* Effect.flip(DatabaseError.refine(insert))
        assert(error._tag === "QueryFailed")
        assert.strictEqual(error.sqlState, undefined)
        assert.match(error.message, /the statement has run.*names.*types.*permission denied for table pg_type/)
        assert.strictEqual(error.sql, "INSERT INTO person (id, current) VALUES (1, 'ok') RETURNING current")
        assert.lengthOf(yield* query(writer, "SELECT FROM person"), 1)
        // in a transaction the row is rolled back, so the error is that of the lookup
        const inside = yield* Effect.flip(DatabaseError.refine(Db.withTransaction(insert)))
        assert.strictEqual(inside._tag === "QueryFailed" && inside.sqlState, "42501")
        assert.lengthOf(yield* query(writer, "SELECT FROM person"), 1)
        const reader = yield* Db.reader
        const read = yield* Effect.flip(DatabaseError.refine(reader`SELECT current FROM person`))
        assert.strictEqual(read._tag === "QueryFailed" && read.sqlState, "42501")
      }).pipe(Effect.provide(context))
    })
  )

  it.scopedLive("an autocommit INSERT is in doubt, not undone, if the lookup of its types is cut short", () =>
    Effect.gen(function* () {
      const { layer, proxy, writer } = yield* open()
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const looked = yield* proxy.when(sends("pg_catalog.pg_type"), "freeze")
        const inserting = yield* Effect.fork(
          Effect.flip(DatabaseError.refine(sql`INSERT INTO person (id, current) VALUES (1, 'ok') RETURNING current`))
        )
        yield* looked
        const other = new Pg.Client({ connectionString: Redacted.value(writer) })
        yield* Effect.acquireRelease(
          Effect.promise(() => other.connect()),
          () => Effect.promise(() => other.end())
        )
        const lock = "BEGIN; LOCK TABLE pg_catalog.pg_namespace IN ACCESS EXCLUSIVE MODE"
        yield* Effect.promise(() => other.query(lock))
        const cancelled = yield* proxy.when(({ type }) => type === "cancel", "pass")
        yield* proxy.thaw
        const waits = `SELECT FROM pg_locks
          WHERE ${inThisDatabase} AND relation = 'pg_catalog.pg_namespace'::regclass AND NOT granted`
        const look = Effect.promise(() => other.query(waits))
        yield* eventually(look, ({ rowCount }) => rowCount !== 0)
        yield* Db.invalidate({ mode: "hard" })
        yield* cancelled
        const error = yield* Fiber.join(inserting)
        assert.strictEqual(error._tag === "Disconnected" && error.outcome, "inDoubt")
        assert.include(error.message, "the statement has run")
      }).pipe(Effect.scoped, Effect.provide(layer))
      assert.lengthOf(yield* query(writer, "SELECT FROM person"), 1)
    })
  )

  it.effect("a parser that is no function is refused", () =>
    Effect.gen(function* () {
      const writer = Redacted.make("postgres://me@localhost/app")
      for (const given of [{ mood: "text" }, "text", [() => 1]]) {
        const error = yield* Effect.flip(
          Effect.scoped(Effect.provide(Db.writer, Db.layer({ writer, startup: "lazy", types: given as never })))
        )
        assert.strictEqual(error._tag, "ConfigInvalid")
        assert.include(error.message, "types")
      }
    })
  )
})
