/** The helpers of statements: what they store, and what they refuse. */
import { inspect } from "node:util"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as Str from "effect/String"
import type * as Tracer from "effect/Tracer"
import { type Database, DatabaseError, DatabaseRuntime } from "effect-db"
import { Db, fresh, Place } from "../support/databases.js"
import { query } from "../support/server.js"
import { waysToRun } from "../support/waysToRun.js"

const open = (options: Partial<Database.Options> = {}) => fresh({ readers: [], ...options })

/** Runs a test twice, without and with spans, because the statements take different code paths. */
const paths = <E, R>(test: Effect.Effect<void, E, R>): Effect.Effect<void, E, R> =>
  Effect.gen(function* () {
    yield* test
    const native = yield* Effect.tracer
    const tracer: Tracer.Tracer = { ...native, span: (...args) => native.span(...args) }
    yield* Effect.withTracer(test, tracer)
  })

const table = (columns: string) =>
  Effect.gen(function* () {
    const sql = yield* Db.writer
    yield* sql.unsafe(`DROP TABLE IF EXISTS thing; CREATE TABLE thing (${columns})`)
    return sql
  })

/** The stored rows, as another session sees them. */
const things = Effect.flatMap(Place, ({ writer }) => query(writer, "SELECT * FROM thing ORDER BY 1"))

const refusal = <A, R>(self: Effect.Effect<A, unknown, R>) =>
  Effect.map(Effect.flip(self), (error) => {
    const known = DatabaseError.isDatabaseError(error) ? error : DatabaseError.fromSqlError(error as never)
    return [known._tag, known.message] as const
  })

describe("sql.insert", () => {
  const columns = "a int, b text DEFAULT 'none', c int GENERATED ALWAYS AS IDENTITY"

  it.scopedLive("insert stores the default of a column that a row leaves out and another row has", () =>
    Effect.gen(function* () {
      const sql = yield* table(columns)
      yield* sql`INSERT INTO thing ${sql.insert([{ a: 1 }, { a: 2, b: "x" }, { b: "y", a: 3 }])}`
      const [made] = yield* sql`INSERT INTO thing ${sql.insert([{ a: 4, b: "z" }, { a: 5 }]).returning("*")}`
      assert.deepStrictEqual(made, { a: 4, b: "z", c: 4 })
      assert.deepStrictEqual(yield* things, [
        { a: 1, b: "none", c: 1 },
        { a: 2, b: "x", c: 2 },
        { a: 3, b: "y", c: 3 },
        { a: 4, b: "z", c: 4 },
        { a: 5, b: "none", c: 5 }
      ])
    }).pipe(paths, Effect.provide(open()))
  )

  it.scopedLive("insert stores undefined and null as NULL, also when other rows leave the column out", () =>
    Effect.gen(function* () {
      const sql = yield* table(columns)
      yield* sql`INSERT INTO thing ${sql.insert([{ a: 1, b: undefined }, { a: 2, b: null }, { a: 3 }])}`
      assert.deepStrictEqual(
        (yield* things).map(({ b }) => b),
        [null, null, "none"]
      )
    }).pipe(paths, Effect.provide(open()))
  )

  it.scopedLive("insert stores a row without columns as a row of defaults", () =>
    Effect.gen(function* () {
      const sql = yield* table(columns)
      const rows = yield* sql`INSERT INTO thing ${sql.insert({}).returning("b, c")}`
      assert.deepStrictEqual(rows, [{ b: "none", c: 1 }])
      yield* sql`INSERT INTO thing ${sql.insert([{}, { a: 1 }])}`
      assert.deepStrictEqual(
        (yield* things).map(({ a }) => a),
        [1, null, null]
      )
    }).pipe(paths, Effect.provide(open()))
  )

  it.scopedLive(
    "insert refuses an empty list, several rows without columns and a null row, and the transaction goes on",
    () =>
      Effect.gen(function* () {
        const sql = yield* table(columns)
        const all: ReadonlyArray<ReadonlyArray<Record<string, unknown>>> = [[], [{}, {}], [null as never]]
        for (const rows of all) {
          const statement = sql`INSERT INTO thing ${sql.insert(rows)}`
          for (const run of [...waysToRun(sql, statement), Db.withTransaction(statement)]) {
            const [tag, message] = yield* refusal<unknown, Db>(run)
            assert.strictEqual(tag, "QueryFailed")
            assert.include(message, "sql.insert")
          }
        }
        yield* Effect.gen(function* () {
          yield* Effect.flip(sql`INSERT INTO thing ${sql.insert([])}`)
          yield* sql`INSERT INTO thing ${sql.insert({ a: 1 })}`
        }).pipe(Db.withTransaction())
        assert.lengthOf(yield* things, 1)
      }).pipe(paths, Effect.provide(open()))
  )

  it.scopedLive("insert and update send a value that is a fragment of SQL as SQL", () =>
    Effect.gen(function* () {
      const sql = yield* table("a int, b text")
      yield* sql`INSERT INTO thing ${sql.insert({ a: sql`1 + ${1}::int`, b: sql`upper(${"x"})` })}`
      yield* sql`INSERT INTO thing ${sql.insert([
        { a: sql`${3}::int * 2`, b: "y" },
        { a: 7, b: sql.literal("DEFAULT") }
      ])}`
      yield* sql`UPDATE thing SET ${sql.update({ a: sql`a + ${10}`, b: sql("b") })} WHERE a = ${7}`
      assert.deepStrictEqual(yield* things, [
        { a: 2, b: "X" },
        { a: 6, b: "y" },
        { a: 17, b: null }
      ])
    }).pipe(paths, Effect.provide(open()))
  )

  it.scopedLive("insert transforms names, also when rows differ", () =>
    Effect.gen(function* () {
      const sql = yield* table("first_name text, last_name text DEFAULT 'none'")
      yield* sql`INSERT INTO thing ${sql.insert([{ firstName: "a" }, { firstName: "b", lastName: "c" }])}`
      assert.deepStrictEqual(yield* things, [
        { first_name: "a", last_name: "none" },
        { first_name: "b", last_name: "c" }
      ])
    }).pipe(paths, Effect.provide(open({ transformQueryNames: Str.camelToSnake })))
  )

  it.scopedLive("plain code has the same insert helpers", () =>
    Effect.gen(function* () {
      yield* table("a int, b text DEFAULT 'none', c jsonb")
      const { writer } = yield* Place
      const runtime = DatabaseRuntime.make({ db: Db }, Db.layer({ writer }))
      yield* Effect.promise(() => runtime.open())
      const sql = runtime.databases.db.writer
      yield* Effect.promise(
        async () => await sql`INSERT INTO thing ${sql.insert([{ a: 1 }, { a: 2, b: "x", c: sql.json([1]) }])}`
      )
      const error = yield* Effect.flip(Effect.tryPromise(async () => await sql`INSERT INTO thing ${sql.insert([])}`))
      assert.instanceOf(error.error, DatabaseError.QueryFailed)
      yield* Effect.promise(() => runtime.close())
      assert.deepStrictEqual(yield* things, [
        { a: 1, b: "none", c: null },
        { a: 2, b: "x", c: [1] }
      ])
    }).pipe(Effect.provide(open()))
  )
})

describe("sql.updateValues", () => {
  it.scopedLive("updateValues updates rows from a list of rows", () =>
    Effect.gen(function* () {
      const sql = yield* table("a text, b text")
      yield* sql`INSERT INTO thing ${sql.insert([{ a: "1" }, { a: "2" }])}`
      const data = sql.updateValues(
        [
          { a: "1", b: "x" },
          { b: sql`upper(${"y"})`, a: "2" }
        ],
        "data"
      )
      yield* sql`UPDATE thing SET b = data.b FROM ${data} WHERE thing.a = data.a`
      const [row] = yield* sql`UPDATE thing SET b = data.b FROM ${sql
        .updateValues([{ a: "1", b: sql`lower(${"Z"})` }], "data")
        .returning("thing.b")}`
      assert.deepStrictEqual(row, { b: "z" })
    }).pipe(paths, Effect.provide(open()))
  )

  it.scopedLive("updateValues refuses an empty list, a row without columns and rows with different columns", () =>
    Effect.gen(function* () {
      const sql = yield* table("a text, b text DEFAULT 'none'")
      yield* sql`INSERT INTO thing ${sql.insert([{ a: "1" }, { a: "2" }])}`
      for (const rows of [[], [{ a: "1" }, { a: "2", b: "x" }], [{ a: "1", b: "x" }, { a: "2" }], [{}]]) {
        const [tag, message] = yield* refusal(
          sql`UPDATE thing SET b = 'changed' FROM ${sql.updateValues(rows, "data")} WHERE thing.a = data.a`
        )
        assert.strictEqual(tag, "QueryFailed")
        assert.include(message, "sql.updateValues")
      }
      assert.deepStrictEqual(yield* things, [
        { a: "1", b: "none" },
        { a: "2", b: "none" }
      ])
    }).pipe(paths, Effect.provide(open()))
  )
})

describe("sql.update", () => {
  it.scopedLive("update refuses a row in which no column is left", () =>
    Effect.gen(function* () {
      const sql = yield* table("a int")
      for (const helper of [sql.update({}), sql.update({ a: 1 }, ["a"])]) {
        const [tag, message] = yield* refusal(sql`UPDATE thing SET ${helper}`)
        assert.strictEqual(tag, "QueryFailed")
        assert.include(message, "sql.update")
      }
    }).pipe(paths, Effect.provide(open()))
  )
})

describe("sql.json", () => {
  const values = [
    [1, 2],
    [],
    ["a", null],
    [null],
    [[{ a: 1 }]],
    "x",
    'a "quoted" one',
    "",
    null,
    0,
    1.5,
    true,
    false,
    { a: [1, { b: "c" }], d: null },
    new Date(0)
  ]

  it.scopedLive("json stores any value as JSON, as a parameter, in insert and in update", () =>
    Effect.gen(function* () {
      const sql = yield* table("n int, plain json, other jsonb")
      for (const [n, value] of values.entries()) {
        yield* sql`INSERT INTO thing VALUES (${n}, ${sql.json(value)}, ${sql.json(value)})`
      }
      const expected = values.map((value) => JSON.parse(JSON.stringify(value)))
      const read = Effect.map(sql<{ plain: unknown; other: unknown }>`SELECT * FROM thing ORDER BY n`, (rows) =>
        rows.flatMap(({ other, plain }) => [plain, other])
      )
      const both = expected.flatMap((value) => [value, value])
      assert.deepStrictEqual(yield* read, both)
      // null of JSON is not NULL of SQL
      assert.deepStrictEqual(yield* sql`SELECT n FROM thing WHERE other IS NULL`, [])
      yield* sql`DELETE FROM thing`
      const rows = values.map((value, n) => ({ n, plain: sql.json(value), other: sql.json(value) }))
      yield* sql`INSERT INTO thing ${sql.insert(rows)}`
      assert.deepStrictEqual(yield* read, both)
      for (const [n, value] of values.entries()) {
        yield* sql`UPDATE thing SET ${sql.update({ plain: sql.json([value]) })} WHERE n = ${n}`
      }
      assert.deepStrictEqual(
        (yield* sql<{ plain: unknown }>`SELECT plain FROM thing ORDER BY n`).map(({ plain }) => plain),
        expected.map((value) => [value])
      )
    }).pipe(paths, Effect.provide(open()))
  )

  it.scopedLive("json transforms keys at every depth, and treats a key named __proto__ as any other", () =>
    Effect.gen(function* () {
      const sql = yield* table("data jsonb")
      const value = JSON.parse('{"aB":[null,{"cD":1}],"eF":[[{"gH":2}]],"__proto__":{"iJ":3}}')
      yield* sql`INSERT INTO thing VALUES (${sql.json(value)})`
      const { writer } = yield* Place
      const [row] = yield* query<{ text: string }>(writer, "SELECT data::text AS text FROM thing")
      assert.deepStrictEqual(
        JSON.parse(row?.text ?? ""),
        JSON.parse('{"a_b":[null,{"c_d":1}],"e_f":[[{"g_h":2}]],"__proto__":{"i_j":3}}')
      )
    }).pipe(
      paths,
      Effect.provide(open({ transformQueryNames: (name) => (name === "__proto__" ? name : Str.camelToSnake(name)) }))
    )
  )

  it.scopedLive("json keys that are renamed on the way in are renamed back on the way out, at any depth", () =>
    Effect.gen(function* () {
      const sql = yield* table("data jsonb")
      const all = [
        "[null]",
        '[1,{"aB":[{"cD":2},null]}]',
        '[[{"eF":1}]]',
        '{"__proto__":{"iJ":2},"constructor":{"gH":1}}',
        "null"
      ]
      for (const text of all) {
        yield* sql`DELETE FROM thing`
        yield* sql`INSERT INTO thing VALUES (${sql.json(JSON.parse(text))})`
        const [row] = yield* sql<{ data: unknown }>`SELECT * FROM thing`
        assert.deepStrictEqual(JSON.stringify(row?.data), text)
        assert.strictEqual(
          row?.data instanceof Object && Object.getPrototypeOf(row.data) === Object.prototype,
          text.startsWith("{")
        )
      }
    }).pipe(
      paths,
      Effect.provide(
        open({
          transformQueryNames: (name) => (name === "__proto__" ? name : Str.camelToSnake(name)),
          transformResultNames: (name) => (name === "__proto__" ? name : Str.snakeToCamel(name))
        })
      )
    )
  )

  it.scopedLive("json fails, without a defect, for a value that JSON cannot represent", () =>
    Effect.gen(function* () {
      const sql = yield* table("data jsonb")
      const circle: Record<string, unknown> = {}
      circle.self = circle
      for (const value of [1n, circle]) {
        assert.strictEqual((yield* refusal(sql`INSERT INTO thing VALUES (${sql.json(value)})`))[0], "QueryFailed")
      }
    }).pipe(paths, Effect.provide(open({ transformQueryNames: Str.camelToSnake })))
  )
})

describe("redacted values", () => {
  const secret = "correct horse battery"

  it.scopedLive("a redacted value is stored as it is, alone, in rows, in arrays and in JSON", () =>
    Effect.gen(function* () {
      const sql = yield* table("n int, a text, b text[], c jsonb")
      const hidden = Redacted.make(secret)
      const nested = { deep: [hidden, { at: Redacted.make(new Date(0)) }] }
      yield* sql`INSERT INTO thing VALUES (1, ${hidden}, ${[hidden, "x"]}, ${sql.json(nested)})`
      yield* sql`INSERT INTO thing ${sql.insert({ n: 2, a: hidden, b: [hidden, "x"], c: nested })}`
      yield* sql`INSERT INTO thing ${sql.insert([
        { n: 3, a: hidden, b: [hidden, "x"] },
        { n: 4, c: Redacted.make(nested) }
      ])}`
      yield* sql`UPDATE thing SET ${sql.update({ a: hidden, b: [hidden, "x"], c: sql.json(nested) })} WHERE n IN (3, 4)`
      yield* sql.unsafe("INSERT INTO thing VALUES (5, $1, $2, $3)", [hidden, [hidden, "x"], nested])
      const stored = { a: secret, b: [secret, "x"], c: { deep: [secret, { at: "1970-01-01T00:00:00.000Z" }] } }
      assert.deepStrictEqual(
        yield* things,
        [1, 2, 3, 4, 5].map((n) => ({ n, ...stored }))
      )
      assert.deepStrictEqual(yield* sql`SELECT n FROM thing WHERE a IN ${sql.in([hidden])} AND n = 1`, [{ n: 1 }])
      assert.deepStrictEqual(yield* sql`SELECT n FROM thing WHERE a = ANY(${[hidden]}) AND n = 1`, [{ n: 1 }])
      assert.deepStrictEqual(
        yield* Stream.runCollect(sql`SELECT ${hidden}::text AS a`.stream).pipe(Effect.map((_) => [..._])),
        [{ a: secret }]
      )
      yield* sql`INSERT INTO thing (a) VALUES (${Redacted.make(null)})`
    }).pipe(paths, Effect.provide(open()))
  )

  it.scopedLive("the words <redacted> in a program's own text are stored unchanged", () =>
    Effect.gen(function* () {
      const sql = yield* table("a text, c jsonb")
      yield* sql`INSERT INTO thing VALUES (${"<redacted>"}, ${sql.json(["<redacted>"])})`
      assert.deepStrictEqual(yield* things, [{ a: "<redacted>", c: ["<redacted>"] }])
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("a redacted value appears in no output: statement, error, span or log", () =>
    Effect.gen(function* () {
      const sql = yield* table("a text PRIMARY KEY, c jsonb")
      const hidden = Redacted.make(secret)
      const statement = sql`INSERT INTO thing ${sql.insert({ a: hidden, c: sql.json([hidden]) })}`
      const said: Array<unknown> = [statement, statement.compile(), JSON.stringify(statement), String(statement)]
      const logger = Logger.make((options) => void said.push(options))
      const native = yield* Effect.tracer
      const tracer: Tracer.Tracer = {
        ...native,
        span: (...args) => {
          const span = native.span(...args)
          said.push(span)
          return span
        }
      }
      yield* Effect.gen(function* () {
        const error = yield* Effect.flip(sql`INSERT INTO absent ${sql.insert({ a: hidden })}`)
        said.push(error, JSON.stringify(error), DatabaseError.fromSqlError(error).stack)
        yield* Effect.logError("failed", error)
      }).pipe(Effect.withTracer(tracer), Effect.provide(Logger.replace(Logger.defaultLogger, logger)))
      assert.isAbove(said.length, 6)
      assert.notInclude(inspect(said, { depth: 12 }), secret)
    }).pipe(Effect.provide(open()))
  )
})

describe("rows with transformed names", () => {
  it.scopedLive("rows with transformed names hold what is stored, whatever its keys, and are plain objects", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const stored =
        '{"a_b": [null, {"c_d": 1}], "__proto__": {"is_admin": true}, "constructor": {"e_f": 2}, "g_h": [[{"i_j": 3}]]}'
      const [row] = yield* sql<{
        theData: object
      }>`SELECT ${stored}::json AS the_data, 1 AS "__proto__", '[null]'::json AS an_array`
      assert.deepStrictEqual(
        JSON.stringify(row),
        '{"theData":{"aB":[null,{"cD":1}],"__proto__":{"isAdmin":true},"constructor":{"eF":2},"gH":[[{"iJ":3}]]},"__proto__":1,"anArray":[null]}'
      )
      assert.strictEqual(Object.getPrototypeOf(row), Object.prototype)
      assert.strictEqual(Object.getPrototypeOf(row?.theData), Object.prototype)
      const [streamed] = [...(yield* Stream.runCollect(sql`SELECT ${stored}::json AS the_data`.stream))]
      assert.deepStrictEqual(streamed, { theData: row?.theData })
      const plain = yield* sql`SELECT ${stored}::json AS the_data`.withoutTransform
      assert.deepStrictEqual(plain, [{ the_data: JSON.parse(stored) }])
    }).pipe(
      Effect.provide(fresh({ transformResultNames: (name) => (name === "__proto__" ? name : Str.snakeToCamel(name)) }))
    )
  )

  it.scopedLive("rows with transformed names keep the keys of JSON when these are not to be transformed", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const rows = yield* sql`SELECT '{"a_b": 1}'::json AS the_data; SELECT 2 AS other_one`
      assert.deepStrictEqual(rows as unknown, [[{ theData: { a_b: 1 } }], [{ otherOne: 2 }]])
    }).pipe(Effect.provide(fresh({ transformResultNames: Str.snakeToCamel, transformJson: false })))
  )
})
