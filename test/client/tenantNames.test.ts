/** The names of schemas, and their order of precedence. */
import type { SqlError } from "@effect/sql/SqlError"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { DatabaseError, DatabaseRuntime, Tenant, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { Audit, Db, run } from "../support/databases.js"
import { failure } from "../support/failures.js"
import { a, b, fresh, here, place, there, watched } from "../support/schemas.js"

describe("names of schemas", () => {
  const odd = [
    'with "quotes"',
    "it's",
    "Upper Case",
    "select",
    "a,b",
    "a.b",
    "back\\slash",
    "smörgåsbord 🍞",
    "; DROP SCHEMA a CASCADE; --",
    '"; DROP SCHEMA a CASCADE; --',
    "$$",
    "x".repeat(63),
    "é".repeat(31)
  ]

  it.scopedLive("schema names are quoted as identifiers, whatever they contain", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      for (const name of odd) {
        const [row] = yield* sql<{ name: string }>`SELECT quote_ident(${name}) AS name`
        yield* run(`CREATE SCHEMA ${row?.name}`)
        yield* Db.withSchema(run("CREATE TABLE mark (name text)"), name)
        const inside = Effect.zipRight(
          Effect.flatMap(Db.writer, (sql) => sql`UPDATE mark SET name = ${name}`),
          here
        )
        yield* Db.withSchema(run("INSERT INTO mark VALUES ('')"), name)
        assert.strictEqual(yield* Db.withSchema(inside, name), name)
        assert.strictEqual(yield* Db.withTransaction(Db.withSchema(inside, name)), name)
        assert.strictEqual(yield* Db.withSchema(inside, [name, "a"]), name)
      }
      assert.deepStrictEqual(yield* Effect.all([a(here), here]), ["a", "public"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a tenant scope with a wrong option refuses its statements instead of ignoring the option", () =>
    Effect.gen(function* () {
      const wrong: ReadonlyArray<readonly [options: object, said: string]> = [
        [{ database: [Db] }, 'the unknown option "database"'],
        [{ databases: Db }, "`databases` that are no list"],
        [{ databases: [undefined] }, "`databases` that are no list"]
      ]
      const runtime = DatabaseRuntime.make({ db: Db }, Layer.succeedContext(yield* Effect.context<Db>()), {
        lazy: true
      })
      for (const [options, said] of wrong) {
        const plain = Effect.tryPromise({
          try: async () => await runtime.withTenant(() => runtime.databases.db.reader`SELECT 1`, "a", options),
          catch: (error) => error
        })
        const uses: ReadonlyArray<Effect.Effect<unknown, unknown, Db>> = [
          Tenant.withTenant(DatabaseError.refine(here), "a", options),
          plain
        ]
        for (const self of uses) {
          const error = yield* Effect.flip(self)
          assert.isTrue(DatabaseError.isDatabaseError(error) && error._tag === "SchemaInvalid", String(error))
          assert.include((error as DatabaseError.SchemaInvalid).message, said)
        }
      }
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("invalid schema names are refused before anything is sent, wherever they are used", () =>
    Effect.gen(function* () {
      const { context, sent } = yield* watched()
      // that of the start
      sent.length = 0
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        // values that a program without types passes, such as a header that is not there
        const none = undefined as unknown as string
        const wrong: ReadonlyArray<readonly [schema: string | ReadonlyArray<string>, said: string]> = [
          ["", "empty"],
          [[], "an empty list"],
          [["a", ""], "empty"],
          ["x".repeat(64), "64 bytes long"],
          ["é".repeat(32), "64 bytes long"],
          ["a\0b", "NUL"],
          ["half \ud83c", "no Unicode"],
          ["$user", "stands for another"],
          [none, "no text"],
          [[none], "no text"]
        ]
        for (const [schema, said] of wrong) {
          const scopes = [Db.withSchema(schema), Tenant.withTenant(schema)]
          for (const inScope of scopes) {
            const uses: ReadonlyArray<Effect.Effect<unknown, unknown, Db>> = [
              here,
              there,
              Db.withTransaction(here),
              UnitOfWork.run(here),
              Stream.runCollect(sql`SELECT 1`.stream),
              Db.notify("channel")
            ]
            for (const use of uses) {
              const error = yield* failure(inScope(use))
              assert(DatabaseError.isDatabaseError(error) && error._tag === "SchemaInvalid")
              assert.strictEqual(error.database, "app")
              assert.include(error.message, 'database "app"')
              assert.include(error.message, said)
            }
          }
        }
        assert.deepStrictEqual(sent, [])
        // an effect that does not use the database does not fail
        assert.strictEqual(yield* Tenant.withTenant(Effect.succeed(1), ""), 1)
        // a valid scope inside an invalid one is valid
        assert.strictEqual(yield* a(Db.withSchema(a(here), "")), "a")
      }).pipe(Effect.provide(context))
    })
  )

  it.scopedLive("a schema that does not exist has no tables: nothing is looked up elsewhere", () =>
    Effect.gen(function* () {
      const error = yield* failure(Db.withSchema(here, "nowhere"))
      assert(DatabaseError.isDatabaseError(error) && error._tag === "QueryFailed")
      assert.include(error.message, '"mark" does not exist')
      assert.strictEqual(yield* Db.withSchema(here, ["nowhere", "a", "b"]), "a")
    }).pipe(Effect.provide(fresh()))
  )
})

describe("the precedence of schema scopes", () => {
  const qualified = Effect.flatMap(Db.writer, (sql) =>
    Effect.map(sql<{ name: string }>`SELECT name FROM c.mark`, ([row]) => row?.name)
  )
  const tenantA = Tenant.withTenant("a")
  const tenantB = Tenant.withTenant("b")

  it.scopedLive(
    "a qualified name precedes the innermost tenant, which precedes the innermost schema, which precedes the default",
    () =>
      Effect.gen(function* () {
        const seen: Effect.Effect<ReadonlyArray<string | undefined>, SqlError, Db> = Effect.all([
          tenantA(here),
          tenantA(b(here)),
          b(tenantA(here)),
          tenantB(tenantA(b(here))),
          tenantA(tenantB(here)),
          b(a(here)),
          a(tenantB(qualified)),
          here
        ])
        const expected: ReadonlyArray<string | undefined> = ["a", "a", "a", "a", "b", "a", "c", "public"]
        assert.deepStrictEqual(yield* seen, expected)
        assert.deepStrictEqual(yield* Db.withTransaction(seen), expected)
        assert.deepStrictEqual(yield* UnitOfWork.run(seen), expected)
      }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a tenant applies to all databases or to the listed ones, and a schema to its own database only", () =>
    Effect.gen(function* () {
      const two = yield* place
      const audit = Audit.layer({ writer: two.writer })
      const other = Effect.flatMap(Audit.writer, (sql) =>
        Effect.map(sql<{ name: string }>`SELECT name FROM mark`, ([row]) => row?.name)
      )
      const both = Effect.all([here, other])
      const onDb = Tenant.withTenant("b", { databases: [Db] })
      yield* Effect.gen(function* () {
        const seen: Effect.Effect<ReadonlyArray<ReadonlyArray<string | undefined>>, SqlError, Db | Audit> = Effect.all([
          both,
          tenantA(both),
          onDb(both),
          tenantA(onDb(both)),
          onDb(tenantA(both)),
          a(both),
          Audit.withSchema(a(both), "c"),
          a(onDb(both)),
          Tenant.withTenant(tenantA(both), "c", { databases: [] })
        ])
        const expected = [
          ["public", "public"],
          ["a", "a"],
          ["b", "public"],
          ["b", "a"],
          ["a", "a"],
          ["a", "public"],
          ["a", "c"],
          ["b", "public"],
          ["a", "a"]
        ]
        assert.deepStrictEqual(yield* seen, expected)
        assert.deepStrictEqual(yield* UnitOfWork.run(seen), expected)
      }).pipe(Effect.provide(audit))
    }).pipe(Effect.provide(fresh()))
  )
})
