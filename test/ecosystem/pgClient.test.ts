/** The behaviour of `@effect/sql-pg`'s client, tested on the client of `Db.layerSqlClient`. */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Statement from "@effect/sql/Statement"
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as Str from "effect/String"
import type { Database } from "effect-db"
import { Db, fresh, Place } from "../support/databases.js"

const open = (options: Partial<Database.Options> = {}) =>
  Layer.provideMerge(Db.layerSqlClient, fresh({ readers: [], ...options }))

const renamed = { transformQueryNames: Str.camelToSnake, transformResultNames: Str.snakeToCamel }

type Sql = PgClient.PgClient

/** A statement, and the text and values to which it is compiled. */
type Case = readonly [make: (sql: Sql) => Statement.Statement<unknown>, text: string, values: ReadonlyArray<unknown>]

const day = new Date(0)

const cases: ReadonlyArray<Case> = [
  [(sql) => sql`INSERT INTO p ${sql.insert({ a: "x", b: 1 })}`, 'INSERT INTO p ("a","b") VALUES ($1,$2)', ["x", 1]],
  [
    (sql) => sql`INSERT INTO p ${sql.insert([{ a: 1 }, { a: undefined }]).returning("*")}`,
    'INSERT INTO p ("a") VALUES ($1),($2) RETURNING *',
    [1, null]
  ],
  [
    (sql) => sql`UPDATE p SET a = d.a FROM ${sql.updateValues([{ a: 1 }, { a: 2 }], "d").returning("*")}`,
    'UPDATE p SET a = d.a FROM (values ($1),($2)) AS d("a") RETURNING *',
    [1, 2]
  ],
  [
    (sql) => sql`UPDATE p SET ${sql.update({ a: 1, b: 2 }, ["b"]).returning(sql`a, ${3}::int`)} WHERE c = ${4}`,
    'UPDATE p SET "a" = $1 RETURNING a, $2::int WHERE c = $3',
    [1, 3, 4]
  ],
  [
    (sql) => sql`SELECT * FROM ${sql("p")} WHERE a IN ${sql.in([1, "x"])}`,
    'SELECT * FROM "p" WHERE a IN ($1,$2)',
    [1, "x"]
  ],
  [(sql) => sql`SELECT ${sql.in("a", [])}`, "SELECT 1=0", []],
  [
    (sql) => sql`SELECT ${sql.and([sql.in("a", [1]), sql`b < ${day}`, "c"])}`,
    'SELECT ("a" IN ($1) AND b < $2 AND c)',
    [1, day]
  ],
  [(sql) => sql`SELECT ${sql.csv("ORDER BY", ["a", sql`b`])}`, "SELECT ORDER BY a, b", []],
  [(sql) => sql.unsafe("SELECT $1", [1]), "SELECT $1", [1]]
]

describe("a statement", () => {
  it.scopedLive("a statement is compiled as by the plain client", () =>
    Effect.gen(function* () {
      const sql = yield* PgClient.PgClient
      const plain = PgClient.makeCompiler()
      for (const [make, text, values] of cases) {
        assert.deepStrictEqual(make(sql).compile(), [text, values])
        // also by the compiler of the plain client
        assert.deepStrictEqual(plain.compile(make(sql), false), [text, values])
      }
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("a statement has its names transformed, unless it belongs to the client without transforms", () =>
    Effect.gen(function* () {
      const sql = yield* PgClient.PgClient
      const plain = sql.withoutTransforms()
      yield* sql`CREATE TABLE ${sql("aPerson")} (first_name text, data jsonb)`
      const row = { firstName: "x", data: sql.json({ aKey: [1, { bKey: 2 }] }) }
      assert.strictEqual(
        sql`INSERT INTO ${sql("aPerson")} ${sql.insert(row)}`.compile()[0],
        'INSERT INTO "a_person" ("first_name","data") VALUES ($1,$2)'
      )
      yield* sql`INSERT INTO ${sql("aPerson")} ${sql.insert(row)}`
      const text = yield* plain`SELECT first_name, data::text AS data FROM a_person`
      assert.deepStrictEqual(text, [{ first_name: "x", data: '{"a_key": [1, {"b_key": 2}]}' }])
      assert.deepStrictEqual(yield* sql`SELECT * FROM a_person`, [{ firstName: "x", data: { aKey: [1, { bKey: 2 }] } }])
      assert.deepStrictEqual(yield* sql`SELECT first_name FROM a_person`.withoutTransform, [{ first_name: "x" }])
      yield* plain`INSERT INTO ${plain("a_person")} ${plain.insert({ first_name: "y", data: plain.json({ aKey: 1 }) })}`
      assert.deepStrictEqual(yield* plain`SELECT data FROM a_person WHERE first_name = 'y'`, [{ data: { aKey: 1 } }])
    }).pipe(Effect.provide(open(renamed)))
  )

  it.scopedLive("a statement with several commands returns the rows of each", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const all: ReadonlyArray<unknown> = yield* sql`
        CREATE TABLE several (id text);
        INSERT INTO several VALUES ('a') RETURNING id;
        SELECT 1 AS one`
      assert.deepStrictEqual(all, [[], [{ id: "a" }], [{ one: 1 }]])
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("a statement sends an object as JSON, an array as an array, a date and bytes as such", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const bytes = new Uint8Array([0, 1, 255])
      const [row] = yield* sql`SELECT ${{ a: 1 }}::jsonb AS json, ${[1, 2]}::int[] AS list,
        ${day}::timestamptz AS day, ${bytes}::bytea AS bytes, ${null}::int AS nothing`
      assert.deepStrictEqual(row, { json: { a: 1 }, list: [1, 2], day, bytes: Buffer.from(bytes), nothing: null })
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("a statement can be changed by a transformer, and the dialect of its client is pg", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const rows = yield* Statement.withTransformer(sql`SELECT 1 AS n`, (_, make) =>
        Effect.succeed(make`SELECT 2 AS n`)
      )
      assert.deepStrictEqual(rows, [{ n: 2 }])
      assert.strictEqual(sql.onDialectOrElse({ pg: () => "pg", orElse: () => "another" }), "pg")
    }).pipe(Effect.provide(open()))
  )
})

describe("the client", () => {
  it.scopedLive("the client is the same under both tags, with the config that it was opened with", () =>
    Effect.gen(function* () {
      const sql = yield* PgClient.PgClient
      assert.strictEqual<unknown>(yield* SqlClient.SqlClient, sql)
      const { writer } = yield* Place
      const { hostname, password, port } = new URL(Redacted.value(writer))
      assert.strictEqual(sql.config.host, hostname)
      assert.strictEqual(sql.config.port, Number(port))
      const known = sql.config.password
      assert.strictEqual(known && Redacted.value(known), decodeURIComponent(password))
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("the client reserves a connection, whose transaction by hand is invisible before its COMMIT", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const count = Effect.map(sql<{ n: number }>`SELECT count(*)::int AS n FROM item`, ([row]) => row?.n)
      yield* Effect.gen(function* () {
        const reserved = yield* sql.reserve
        yield* reserved.executeRaw("BEGIN", [])
        const rows = yield* reserved.executeValues("INSERT INTO item (name) VALUES ($1) RETURNING name", ["a"])
        assert.deepStrictEqual(rows, [["a"]])
        assert.strictEqual(yield* count, 0)
        yield* reserved.executeRaw("COMMIT", [])
        assert.strictEqual(yield* count, 1)
        const streamed = yield* Stream.runCollect(reserved.executeStream("SELECT name FROM item", [], undefined))
        assert.deepStrictEqual([...streamed], [{ name: "a" }])
      }).pipe(Effect.scoped)
    }).pipe(Effect.provide(open()))
  )
})
