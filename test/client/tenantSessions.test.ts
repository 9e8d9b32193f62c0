/**
 * Schema scopes with work at COMMIT, search paths of the session, prepared statements, reserved
 * connections, resolvers and plain code.
 */
import { SqlClient } from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as SqlResolver from "@effect/sql/SqlResolver"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { DatabaseError, DatabaseRuntime, Tenant, TestDatabase, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { Audit, active, Db, Place, run } from "../support/databases.js"
import { failure } from "../support/failures.js"
import { a, b, fresh, here, place, stored, tagOf, there, watched } from "../support/schemas.js"
import { query } from "../support/server.js"

describe("the schema of work at COMMIT", () => {
  it.scopedLive("work that the server does at COMMIT uses the schema of the transaction's last statement", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      yield* query(
        writer,
        `CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN INSERT INTO item SELECT NEW.name || ' in ' || name FROM mark; RETURN NEW; END $$;
         CREATE TABLE public.job (name text);
         CREATE CONSTRAINT TRIGGER late AFTER INSERT ON public.job DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW EXECUTE FUNCTION public.note()`
      )
      const job = (name: string) => Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO public.job VALUES (${name})`)
      yield* a(job("1"))
      yield* a(Db.withTransaction(Effect.all([job("2"), here])))
      yield* Db.withTransaction(Effect.all([a(job("3")), b(here)]))
      yield* Db.withTransaction(Effect.all([a(job("4")), here]))
      yield* job("5")
      assert.deepStrictEqual(yield* stored, [
        "a: 1 in a",
        "a: 2 in a",
        "b: 3 in b",
        "public: 4 in public",
        "public: 5 in public"
      ])
    }).pipe(Effect.provide(fresh()))
  )
})

describe("the search path of a session", () => {
  it.scopedLive("a search path that onConnect sets applies outside of scopes, also later in the transaction", () =>
    Effect.gen(function* () {
      const seen = Effect.all([here, a(here), here, b(here), here])
      assert.deepStrictEqual(yield* seen, ["c", "a", "c", "b", "c"])
      assert.deepStrictEqual(yield* Db.withTransaction(seen), ["c", "a", "c", "b", "c"])
      assert.deepStrictEqual(yield* Effect.provide(seen, TestDatabase.layer(Db)), ["c", "a", "c", "b", "c"])
    }).pipe(
      Effect.provide(
        fresh({
          onConnect: Effect.flatMap(SqlClient, (sql) => sql`SET search_path TO c`)
        })
      )
    )
  )

  it.scopedLive("an empty search path that is set by hand is restored as an empty one", () =>
    Effect.gen(function* () {
      const empty = run("SELECT current_setting('search_path') AS path")
      const seen = Db.withTransaction(
        Effect.all([run("SELECT set_config('search_path', '', true)"), a(here), empty]).pipe(
          Effect.map(([, inside, outside]) => [inside, outside])
        )
      )
      assert.deepStrictEqual(yield* seen, ["a", [{ path: "" }]])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("the search path is sent once for consecutive statements of a scope, if the server reports it", () =>
    Effect.gen(function* () {
      const { context, sent } = yield* watched()
      yield* Effect.gen(function* () {
        const [version] = yield* run("SELECT current_setting('server_version_num')::int AS number")
        yield* a(Db.withTransaction(Effect.all([here, here, here, there, here])))
        const times = sent.filter((text) => text.includes("search_path")).length
        const knows = version !== undefined && "number" in version && Number(version.number) >= 180_000
        assert.strictEqual(times, knows ? 1 : 5)
      }).pipe(Effect.provide(context))
    })
  )
})

describe("prepared statements in schema scopes", () => {
  const types = {
    a: "CREATE TABLE a.thing (id int, value int); INSERT INTO a.thing VALUES (1, 10)",
    b: "CREATE TABLE b.thing (id text, value text); INSERT INTO b.thing VALUES ('1', 'ten')",
    public: "CREATE TABLE public.thing (id bigint, value timestamptz); INSERT INTO public.thing VALUES (1, 'epoch')"
  }
  const value = Effect.flatMap(Db.writer, (sql) =>
    Effect.map(sql<{ value: unknown }>`SELECT value FROM thing WHERE id = ${"1"}`, (rows) => rows[0]?.value)
  )
  const all: Effect.Effect<ReadonlyArray<unknown>, SqlError, Db> = Effect.all([a(value), b(value), value])
  const expected: ReadonlyArray<unknown> = [10, "ten", new Date(0)]
  const tables = Effect.flatMap(Place, ({ writer }) => query(writer, Object.values(types).join(";")))

  it.scopedLive(
    "prepared statements with the same text have the types of their schema, on one connection, in transactions and outside",
    () =>
      Effect.gen(function* () {
        yield* tables
        for (const _ of [1, 2, 3]) {
          assert.deepStrictEqual(yield* all, expected)
          assert.deepStrictEqual(yield* Db.withTransaction(all), expected)
          assert.deepStrictEqual(yield* Db.withTransaction(a(Effect.all([value, b(value), value]))), [10, "ten", 10])
        }
        // one prepared statement is kept for each schema
        const sql = yield* Db.writer
        const kept = yield* sql`SELECT 1 FROM pg_prepared_statements WHERE statement LIKE '%thing%'`.unprepared
        assert.lengthOf(kept, 3)
        yield* a(run("ALTER TABLE thing ALTER value TYPE text"))
        assert.deepStrictEqual(yield* all, ["10", "ten", new Date(0)])
      }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("prepared statements of all schemas share one limit, and the least recently used goes first", () =>
    Effect.gen(function* () {
      yield* tables
      for (const _ of [1, 2, 3]) assert.deepStrictEqual(yield* all, expected)
      assert.deepStrictEqual(yield* a(value), 10)
      const kept = `SELECT parameter_types::text AS types FROM pg_prepared_statements
        WHERE statement LIKE '%thing%' ORDER BY types`
      const sql = yield* Db.writer
      // those of the schemas public and a, because that of b is used before them
      assert.deepStrictEqual(yield* sql.unsafe(kept).unprepared, [{ types: "{bigint}" }, { types: "{integer}" }])
    }).pipe(Effect.provide(fresh({ preparedStatements: 2 })))
  )
})

describe("a reserved connection in a schema scope", () => {
  it.scopedLive("a reserved connection is refused in a schema scope: only its caller knows its transactions", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const error = yield* failure(a(Effect.scoped(sql.reserve)))
      assert(DatabaseError.isDatabaseError(error) && error._tag === "SchemaInvalid")
      assert.include(error.message, "reserved")
      yield* Effect.scoped(
        Effect.gen(function* () {
          const reserved = yield* sql.reserve
          const name = reserved.executeUnprepared("SELECT name FROM mark", [], undefined)
          assert.strictEqual(yield* tagOf(a(name)), "SchemaInvalid")
          assert.deepStrictEqual(yield* name, [{ name: "public" }])
          const rows = reserved.executeStream("SELECT name FROM mark", [], undefined)
          assert.strictEqual(yield* tagOf(a(Stream.runCollect(rows))), "SchemaInvalid")
        })
      )
      // a schema scope of another database has no effect
      assert.strictEqual(Exit.isSuccess(yield* Effect.exit(Audit.withSchema(Effect.scoped(sql.reserve), "a"))), true)
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a reserved connection of a sandbox is refused in a schema scope, and so are its streams", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const reserved = yield* sql.reserve
      const name = reserved.executeUnprepared("SELECT name FROM mark", [], undefined)
      assert.strictEqual(yield* tagOf(a(name)), "SchemaInvalid")
      const rows = reserved.executeStream("SELECT name FROM mark", [], undefined)
      assert.strictEqual(yield* tagOf(a(Stream.runCollect(rows))), "SchemaInvalid")
      assert.lengthOf(yield* Stream.runCollect(rows), 1)
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer(Db)), Effect.provide(fresh()))
  )
})

describe("SqlResolver in schema scopes", () => {
  const resolver = Effect.flatMap(Db.writer, (sql) =>
    SqlResolver.findById("Mark", {
      Id: Schema.Number,
      Result: Schema.Struct({ id: Schema.Number, name: Schema.String }),
      ResultId: ({ id }) => id,
      execute: (ids) => sql`SELECT id, name FROM mark, unnest(${ids}::int[]) AS id`
    })
  )
  const batched = { batching: true, concurrency: "unbounded" } as const

  it.scopedLive("requests of SqlResolver are in the schema scope, alone and batched, in transactions and outside", () =>
    Effect.gen(function* () {
      const { execute } = yield* resolver
      const one = Effect.map(execute(1), (found) => Option.getOrThrow(found).name)
      const batch = Effect.map(
        Effect.forEach([1, 2], (id) => execute(id), batched),
        (all) => all.map((found) => Option.getOrThrow(found).name)
      )
      const seen = Effect.all([a(one), one, b(one), a(batch), batch, b(batch), a(UnitOfWork.runNew(one))])
      const expected = ["a", "public", "b", ["a", "a"], ["public", "public"], ["b", "b"], "a"]
      assert.deepStrictEqual(yield* seen, expected)
      assert.deepStrictEqual(yield* Db.withTransaction(seen), expected)
      assert.deepStrictEqual(yield* UnitOfWork.run(seen), expected)
      assert.deepStrictEqual(yield* a(Db.withTransaction(Effect.all([one, b(one), batch]))), ["a", "b", ["a", "a"]])
      assert.deepStrictEqual(yield* a(UnitOfWork.run(Effect.all([one, b(one), batch]))), ["a", "b", ["a", "a"]])
      const tenants = Effect.all([a(one), b(one), one], batched)
      assert.deepStrictEqual(yield* Db.withTransaction(tenants), ["a", "b", "public"])
    }).pipe(Effect.provide(fresh({ maxConnections: 2 })))
  )
})

describe("plain code in schema scopes", () => {
  it.scopedLive(
    "plain code keeps its schema scopes across awaits, in its effects, and in work that outlives the scope",
    () =>
      Effect.gen(function* () {
        const made = yield* place
        const runtime = DatabaseRuntime.make({ db: Db }, Db.layer({ writer: made.writer, maxConnections: 2 }))
        yield* Effect.acquireRelease(
          Effect.promise(() => runtime.open()),
          () => Effect.promise(() => runtime.close())
        )
        const { db } = runtime.databases
        const plain = async () => (await db.writer<{ name: string }>`SELECT name FROM mark`)[0]?.name
        const all = async () => [await plain(), await runtime.runPromise(here), await runtime.outside(plain)]
        yield* Effect.promise(async () => {
          assert.deepStrictEqual(await all(), ["public", "public", "public"])
          assert.deepStrictEqual(await db.withSchema(all, "a"), ["a", "a", "a"])
          assert.deepStrictEqual(await runtime.withTenant(all, "a"), ["a", "a", "a"])
          assert.deepStrictEqual(await runtime.withTenant(() => db.withSchema(all, "b"), "a"), ["a", "a", "a"])
          assert.deepStrictEqual(await runtime.withTenant(() => runtime.unitOfWork(all), "a"), ["a", "a", "a"])
          assert.deepStrictEqual(await runtime.unitOfWork(() => runtime.withTenant(all, "b")), ["b", "b", "b"])
          assert.deepStrictEqual(await db.withTransaction(() => db.withSchema(all, "b")), ["b", "b", "b"])
          assert.strictEqual(await runtime.withTenant(plain, "b", { databases: [] }), "public")
          assert.strictEqual(await runtime.runPromise(Tenant.withTenant(Effect.promise(plain), "a")), "public")
          const both = await Promise.all([runtime.withTenant(all, "a"), all(), runtime.withTenant(all, "b")])
          assert.deepStrictEqual(both, [Array(3).fill("a"), Array(3).fill("public"), Array(3).fill("b")])
          // a middleware calls its next handler in the same way, without waiting for it
          let late: Promise<unknown> = Promise.resolve()
          runtime.withTenant(() => {
            late = Promise.resolve().then(all)
          }, "a")
          assert.deepStrictEqual(await late, ["a", "a", "a"])
          const error = await runtime.withTenant(plain, "").catch((error: unknown) => error)
          assert(DatabaseError.isDatabaseError(error) && error._tag === "SchemaInvalid")
        })
      })
  )
})
