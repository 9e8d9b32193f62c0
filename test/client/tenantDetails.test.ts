/**
 * Schema scopes with other features: statements that plain code returns, savepoints that are set by
 * hand, stale plans, migrations, causal sessions.
 */

import { NodeContext } from "@effect/platform-node"
import { SqlClient } from "@effect/sql/SqlClient"
import { PgMigrator } from "@effect/sql-pg"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Consistency, type Database, DatabaseError, DatabaseRuntime, Tenant, TestDatabase } from "effect-db"
import { describe } from "vitest"
import { Db, Place, run } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { failure } from "../support/failures.js"
import { freshDatabase, query } from "../support/server.js"

const schemas = ["public", "a", "b", "c"]
const setUp = schemas
  .flatMap((name) => [
    `CREATE SCHEMA IF NOT EXISTS ${name}`,
    `CREATE TABLE ${name}.mark AS SELECT '${name}' AS name`,
    `CREATE TABLE ${name}.item (name text UNIQUE)`
  ])
  .join(";")
const place = Effect.tap(freshDatabase, ({ reader, writer }) =>
  Effect.zipRight(
    query(writer, setUp),
    eventually(
      query(reader, "SELECT 1 FROM pg_tables WHERE schemaname = 'c' AND tablename = 'item'"),
      (rows) => rows.length === 1
    )
  )
)
const fresh = (options: Partial<Database.Options> = {}) =>
  Layer.unwrapScoped(
    Effect.map(place, (made) =>
      Layer.merge(
        Db.layer({ writer: made.writer, readers: [made.reader], maxConnections: 1, ...options }),
        Layer.succeed(Place, made)
      )
    )
  ).pipe(Layer.orDie)
const here = Effect.flatMap(Db.writer, (sql) =>
  Effect.map(sql<{ name: string }>`SELECT name FROM mark`, ([row]) => row?.name ?? "none")
)
const a = Db.withSchema("a")
const b = Db.withSchema("b")
/** A runtime on a new database, for plain code. */
const opened = Effect.gen(function* () {
  const { writer } = yield* place
  const runtime = DatabaseRuntime.make({ db: Db }, Db.layer({ writer, maxConnections: 2 }))
  yield* Effect.acquireRelease(
    Effect.promise(() => runtime.open()),
    () => Effect.promise(() => runtime.close())
  )
  return runtime
})

describe("schema scopes", () => {
  it.scopedLive("a statement that the code of withTenant or withSchema returns runs in the schema of that call", () =>
    Effect.gen(function* () {
      const runtime = yield* opened
      const { db } = runtime.databases
      yield* Effect.promise(async () => {
        const one = await runtime.withTenant(() => db.writer<{ name: string }>`SELECT name FROM mark`, "a")
        const two = await db.withSchema(() => db.writer<{ name: string }>`SELECT name FROM mark`, "a")
        await runtime.withTenant(() => db.writer`INSERT INTO item VALUES ('of a')`, "a")
        const three = await db.withTransaction(() => db.writer<{ name: string }>`SELECT name FROM mark`)
        assert.deepStrictEqual(three, [{ name: "public" }])
        const rows = await db.writer`SELECT name FROM public.item`
        assert.deepStrictEqual([one, two, rows], [[{ name: "a" }], [{ name: "a" }], []])
      })
    })
  )

  for (const mode of ["session", "transactionPooler"] as const) {
    it.scopedLive(`a failure can be rolled back to a savepoint in a transaction after a scope, in ${mode} mode`, () =>
      Effect.gen(function* () {
        const program = (scope: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>) =>
          Db.withTransaction(
            Effect.gen(function* () {
              yield* scope(here)
              yield* run("SAVEPOINT mine")
              yield* Effect.ignore(run("SELECT 1/0"))
              yield* run("ROLLBACK TO SAVEPOINT mine")
              return yield* here
            })
          )
        assert.strictEqual(yield* program((_) => _), "public")
        assert.strictEqual(yield* program(a), "public")
      }).pipe(Effect.provide(fresh({ mode })))
    )
    it.scopedLive(`a failure can be rolled back to a savepoint in a transaction inside a scope, in ${mode} mode`, () =>
      Effect.gen(function* () {
        const program = a(
          Db.withTransaction(
            Effect.gen(function* () {
              yield* run("SAVEPOINT mine")
              yield* Effect.ignore(run("SELECT 1/0"))
              yield* run("ROLLBACK TO SAVEPOINT mine")
              return yield* here
            })
          )
        )
        assert.strictEqual(yield* program, "a")
      }).pipe(Effect.provide(fresh({ mode })))
    )
  }

  for (const kind of ["writer", "reader"] as const) {
    it.scopedLive(`a stale plan of a ${kind} is prepared again in a schema scope and outside`, () =>
      Effect.gen(function* () {
        const { writer, reader } = yield* Place
        const all = Effect.flatMap(Db[kind], (sql) => sql`SELECT * FROM item`)
        yield* Effect.all([all, all, a(all), a(all)])
        yield* query(writer, "ALTER TABLE public.item ADD x int; ALTER TABLE a.item ADD x int")
        yield* eventually(
          query(reader, "SELECT 1 FROM pg_attribute WHERE attrelid = 'a.item'::regclass AND attname = 'x'"),
          (rows) => rows.length === 1
        )
        assert.deepStrictEqual(yield* all, [])
        assert.deepStrictEqual(yield* a(all), [])
      }).pipe(Effect.provide(fresh()))
    )
  }

  it.scopedLive("pg_temp, which is an alias, is refused as a schema", () =>
    Effect.gen(function* () {
      yield* a(run("CREATE TEMP TABLE secret AS SELECT 'of a' AS name"))
      const error = yield* failure(Tenant.withTenant(run("SELECT * FROM secret"), "pg_temp"))
      assert(DatabaseError.isDatabaseError(error) && error._tag === "SchemaInvalid")
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a sandbox refuses to reserve in a schema scope, as the database does", () =>
    Effect.gen(function* () {
      const reserved = a(
        Effect.scoped(
          Effect.flatMap(Db.writer, (sql) =>
            Effect.flatMap(sql.reserve, (one) => one.executeUnprepared("SELECT name FROM mark", [], undefined))
          )
        )
      )
      const tag = Effect.map(Effect.either(DatabaseError.refine(reserved)), (either) =>
        either._tag === "Left" ? (either.left as { _tag: string })._tag : either.right
      )
      const real = yield* tag
      assert.strictEqual(real, "SchemaInvalid")
      assert.deepStrictEqual(yield* Effect.provide(tag, TestDatabase.layer(Db)), real)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a statement after a schema scope sees the session's path again, also if the scope had the same", () =>
    Effect.gen(function* () {
      const seen = yield* Db.withTransaction(Effect.all([here, a(here), a(run("SET LOCAL search_path TO b")), here]))
      assert.deepStrictEqual([seen[0], seen[1], seen[3]], ["a", "a", "a"])
    }).pipe(
      Effect.provide(
        fresh({ onConnect: Effect.flatMap(SqlClient, (sql) => sql`SELECT set_config('search_path', '"a"', false)`) })
      )
    )
  )

  it.scopedLive("a causal session's write is seen by its read in a schema scope", () =>
    Effect.gen(function* () {
      const session = Consistency.makeSession({ maxWait: "10 seconds" })
      const seen = yield* Effect.gen(function* () {
        const out: Array<unknown> = []
        yield* a(run("INSERT INTO item VALUES ('1')"))
        const read = Effect.flatMap(Db.reader, (sql) => sql`SELECT pg_is_in_recovery() AS standby, name FROM item`)
        out.push(yield* a(read), yield* b(read))
        yield* b(Db.withTransaction(run("INSERT INTO item VALUES ('2')")))
        out.push(yield* b(read), yield* read)
        return out
      }).pipe(Consistency.withSession(session))
      assert.deepStrictEqual(seen, [[{ standby: true, name: "1" }], [], [{ standby: true, name: "2" }], []])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("the pool strategies none, single and assertSingle keep schema scopes apart", () =>
    Effect.gen(function* () {
      for (const strategy of ["none", "single", "assertSingle"] as const) {
        const seen = yield* Effect.all([a(here), here, Db.withTransaction(Effect.all([a(here), b(here), here]))]).pipe(
          Effect.provide(fresh({ strategy, resetOnReturn: "discardAll" }))
        )
        assert.deepStrictEqual(seen, ["a", "public", ["a", "b", "public"]])
      }
    })
  )

  it.scopedLive("a stream and values from the code of withTenant run in its schema, even if awaited outside", () =>
    Effect.gen(function* () {
      const runtime = yield* opened
      const { db } = runtime.databases
      yield* Effect.promise(async () => {
        const rows: Array<unknown> = []
        for await (const row of runtime.withTenant(() => db.writer`SELECT name FROM mark`.stream(), "a")) rows.push(row)
        const values = await runtime.withTenant(() => db.writer`SELECT name FROM mark`.values(), "a")
        assert.deepStrictEqual([rows, values], [[{ name: "a" }], [["a"]]])
      })
    })
  )

  it.scopedLive("a statement that the code of `outside` returns runs outside of the unit, which does not undo it", () =>
    Effect.gen(function* () {
      const runtime = yield* opened
      const { db } = runtime.databases
      yield* Effect.promise(async () => {
        await runtime
          .unitOfWork(async () => {
            await runtime.outside(() => db.writer`INSERT INTO item VALUES ('outside')`)
            throw new Error("no")
          })
          .catch(() => {})
        assert.deepStrictEqual(await db.writer`SELECT name FROM item`, [{ name: "outside" }])
      })
    })
  )

  it.scopedLive("the migrations of a tenant run in its schema", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const migrate = PgMigrator.run({
        loader: PgMigrator.fromRecord({
          "0001_todo": Effect.flatMap(SqlClient, (sql) => sql`CREATE TABLE todo (id int)`)
        })
      }).pipe(Effect.provide(Layer.merge(Db.layerSqlClient, NodeContext.layer)))
      yield* Tenant.withTenant(migrate, "a")
      yield* Tenant.withTenant(migrate, "b")
      yield* Tenant.withTenant(migrate, "b")
      const rows = yield* query(
        writer,
        "SELECT schemaname AS s, tablename AS t FROM pg_tables WHERE tablename IN ('todo', 'effect_sql_migrations') ORDER BY 1, 2"
      )
      assert.deepStrictEqual(
        rows,
        ["a", "b"].flatMap((s) => [
          { s, t: "effect_sql_migrations" },
          { s, t: "todo" }
        ])
      )
    }).pipe(Effect.provide(fresh({ maxConnections: 2 })))
  )

  it.scopedLive("a layer that is built in a schema scope does not keep the scope", () =>
    Effect.gen(function* () {
      const made = yield* place
      const db = Db.layer({
        writer: made.writer,
        readers: [made.reader],
        maxConnections: 2,
        onConnect: Effect.flatMap(SqlClient, (sql) => sql`SET search_path TO c`)
      })
      const seen = yield* a(
        Effect.all([here, b(here), Effect.provide(here, TestDatabase.layer(Db))]).pipe(Effect.provide(db))
      )
      assert.deepStrictEqual(seen, ["a", "b", "a"])
      const runtime = DatabaseRuntime.make({ db: Db }, db)
      const plain = yield* Effect.promise(() =>
        runtime.withTenant(async () => {
          await runtime.open()
          return (await runtime.databases.db.writer`SELECT name FROM mark`)[0]?.name
        }, "a")
      )
      const outside = yield* Effect.promise(
        async () => (await runtime.databases.db.writer`SELECT name FROM mark`)[0]?.name
      )
      yield* Effect.promise(() => runtime.close())
      assert.deepStrictEqual([plain, outside], ["a", "c"])
    })
  )

  for (const [name, scope] of [
    ["outside of a schema scope", <A, E, R>(self: Effect.Effect<A, E, R>) => self],
    ["in a schema scope", a]
  ] as const) {
    it.scopedLive(`a reader cannot write by several commands in one text ${name}`, () =>
      Effect.gen(function* () {
        const { writer } = yield* Place
        const reader = yield* Db.reader
        const text = "SET TRANSACTION READ WRITE; INSERT INTO item VALUES ('x')"
        const texts = [
          text,
          "SET transaction_read_only = off; INSERT INTO item VALUES ('y')",
          "COMMIT; BEGIN READ WRITE; INSERT INTO item VALUES ('z'); COMMIT"
        ]
        for (const one of texts) {
          yield* Effect.exit(Db.withConsistency(scope(reader.unsafe(one)), Consistency.Strong()))
          yield* Effect.exit(Db.withConsistency(scope(reader.unsafe(one).unprepared), Consistency.Strong()))
        }
        const rows = yield* query(writer, "SELECT * FROM public.item UNION ALL SELECT * FROM a.item")
        assert.deepStrictEqual(rows, [])
      }).pipe(Effect.provide(fresh()))
    )
  }

  it.scopedLive("an empty schema name is refused for a statement that the code of withTenant returns", () =>
    Effect.gen(function* () {
      const runtime = yield* opened
      const { db } = runtime.databases
      yield* Effect.promise(async () => {
        const bad = await runtime
          .withTenant(() => db.writer`SELECT name FROM mark`, "")
          .then(
            (rows) => rows,
            (error: unknown) => error
          )
        assert.instanceOf(bad, Error)
      })
    })
  )
})
