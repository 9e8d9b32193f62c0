/**
 * Schema scopes: the schema in which unqualified names are looked up, for one statement, a
 * database, a tenant. They run on a server's own sessions, and as behind a pooler, where a session
 * has no state.
 */
import { SqlClient } from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as SqlResolver from "@effect/sql/SqlResolver"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import {
  Consistency,
  type Database,
  DatabaseError,
  DatabaseRuntime,
  RetryPolicy,
  Tenant,
  TestDatabase,
  UnitOfWork
} from "effect-db"
import { describe } from "vitest"
import { pooled } from "../support/bouncer.js"
import { Audit, active, Db, insert, Place, run, soon } from "../support/databases.js"
import { failure } from "../support/failures.js"
import { type Message, makeProxy, sends } from "../support/proxy.js"
import { freshDatabase, query, terminateBackends } from "../support/server.js"

const schemas = ["public", "a", "b", "c"]

/**
 * Statements that give each schema a table with its name, one for rows, and a function that reads
 * where it runs.
 */
const setUp = [
  ...schemas.flatMap((name) => [
    `CREATE SCHEMA IF NOT EXISTS ${name}`,
    `CREATE TABLE ${name}.mark AS SELECT '${name}' AS name`,
    `CREATE TABLE ${name}.item (name text UNIQUE)`
  ]),
  `CREATE FUNCTION public.seen(n int) RETURNS text LANGUAGE plpgsql AS
     $$ BEGIN RETURN (SELECT name FROM mark); END $$`
].join(";")

const place = Effect.tap(freshDatabase, ({ reader, writer }) =>
  Effect.zipRight(
    query(writer, setUp),
    Effect.repeat(query(reader, "SELECT 1 FROM pg_proc WHERE proname = 'seen'"), {
      until: (rows) => rows.length === 1,
      schedule: soon
    })
  )
)

/** Returns the address of a database: through PgBouncer in its mode, if there is one. */
const address = (made: Effect.Effect.Success<typeof place>, { mode }: Partial<Database.Options>) =>
  mode === "transactionPooler" ? (pooled(made.name) ?? made) : made

/** Opens a database with its schemas, reached by one connection for each purpose. */
const fresh = (options: Partial<Database.Options> = {}) =>
  Layer.unwrapScoped(
    Effect.map(place, (made) => {
      const { reader, writer } = address(made, options)
      return Layer.merge(
        Db.layer({ writer, readers: [reader], maxConnections: 1, ...options }),
        Layer.succeed(Place, made)
      )
    })
  ).pipe(Layer.orDie)

const on = (kind: "writer" | "reader") =>
  Effect.flatMap(Db[kind], (sql) =>
    Effect.map(sql<{ name: string }>`SELECT name FROM mark`, ([row]) => row?.name ?? "none")
  )

/** The schema that a writer's statement sees. */
const here = on("writer")
const there = on("reader")

const a = Db.withSchema("a")
const b = Db.withSchema("b")

/** The rows of each schema, as another session sees them. */
const stored = Effect.flatMap(Place, ({ writer }) =>
  Effect.map(
    query<{ row: string }>(
      writer,
      `${schemas.map((name) => `SELECT '${name}: ' || name AS row FROM ${name}.item`).join(" UNION ALL ")} ORDER BY 1`
    ),
    (rows) => rows.map(({ row }) => row)
  )
)

const tagOf = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.map(failure(self), (error) => (DatabaseError.isDatabaseError(error) ? error._tag : error))

/** Opens a database behind a proxy, and records the messages of its client. */
const watched = (options: Partial<Database.Options> = {}) =>
  Effect.gen(function* () {
    const made = yield* place
    const proxy = yield* makeProxy(address(made, options).writer)
    const sent: Array<string> = []
    const note = ({ bytes, from, type }: Message) => {
      if (from === "client" && (type === "P" || type === "Q" || type === "B" || type === "E")) {
        sent.push(bytes.toString("latin1"))
      }
      return false
    }
    yield* proxy.when(note, "pass")
    const context = yield* Layer.build(
      Layer.merge(Db.layer({ writer: proxy.url, maxConnections: 1, ...options }), Layer.succeed(Place, made))
    )
    return { proxy, sent, context }
  })

const modes: ReadonlyArray<readonly [mode: "session" | "transactionPooler", name: string]> = [
  ["session", "in sessions of its own"],
  ["transactionPooler", "as behind a pooler"]
]

for (const [mode, name] of modes) {
  describe(`a schema scope, ${name}`, () => {
    const given = (options: Partial<Database.Options> = {}) => fresh({ mode, ...options })

    it.scopedLive(
      "each statement outside of a transaction sees its own schema, and nothing is left on the one connection",
      () =>
        Effect.gen(function* () {
          for (const _ of [1, 2]) {
            assert.deepStrictEqual(
              yield* Effect.all([here, a(here), b(here), here, a(there), there, b(there), there]),
              ["public", "a", "b", "public", "a", "public", "b", "public"]
            )
          }
          yield* Effect.all([insert("1"), a(insert("1")), b(insert("1"))])
          assert.deepStrictEqual(yield* stored, ["a: 1", "b: 1", "public: 1"])
          assert.deepStrictEqual(yield* run("SHOW search_path"), [{ search_path: '"$user", public' }])
        }).pipe(Effect.provide(given()))
    )

    it.scopedLive("a statement in a schema scope is one exchange, which begins and commits", () =>
      Effect.gen(function* () {
        const { context, proxy, sent } = yield* watched({ mode })
        yield* Effect.provide(here, context)
        const before = proxy.roundTrips
        sent.length = 0
        assert.strictEqual(yield* Effect.provide(a(here), context), "a")
        assert.strictEqual(proxy.roundTrips, before + 1)
        const commands = sent.flatMap((text) => text.match(/BEGIN|SET LOCAL search_path|SELECT|COMMIT/) ?? [])
        assert.deepStrictEqual(commands, ["BEGIN", "SET LOCAL search_path", "SELECT", "COMMIT"])
      })
    )

    it.scopedLive("nothing more is sent when no statement was ever in a schema scope", () =>
      Effect.gen(function* () {
        const { context, sent } = yield* watched({ mode })
        yield* Effect.provide(
          Effect.all([
            here,
            Db.withTransaction(Effect.all([here, Db.withTransaction(here), here])),
            UnitOfWork.run(here)
          ]),
          context
        )
        assert.deepStrictEqual(
          sent.filter((text) => text.includes("search_path")),
          []
        )
      })
    )

    it.scopedLive("several commands in one text run in the schema scope", () =>
      Effect.gen(function* () {
        const several = "INSERT INTO item VALUES ('1'); INSERT INTO item VALUES ('2')"
        yield* a(run(several))
        assert.strictEqual(yield* here, "public")
        assert.strictEqual(yield* tagOf(b(run(`${several}; INSERT INTO item VALUES ('1')`))), "UniqueViolation")
        yield* Db.withTransaction(
          Effect.all([run(several), b(run(several)), run("SELECT 1; INSERT INTO item VALUES ('3')")])
        )
        assert.deepStrictEqual(yield* stored, ["a: 1", "a: 2", "b: 1", "b: 2", "public: 1", "public: 2", "public: 3"])
      }).pipe(Effect.provide(given()))
    )

    it.scopedLive("a statement that fails in a schema scope leaves nothing behind", () =>
      Effect.gen(function* () {
        yield* a(insert("1"))
        assert.strictEqual(yield* tagOf(a(insert("1"))), "UniqueViolation")
        assert.strictEqual(yield* tagOf(b(run("SELECT * FROM nowhere"))), "QueryFailed")
        assert.deepStrictEqual(yield* Effect.all([here, b(here)]), ["public", "b"])
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(given()))
    )

    it.scopedLive("each statement in a transaction sees its own schema, and one in no scope sees the default", () =>
      Effect.gen(function* () {
        const seen = yield* Db.withTransaction(
          Effect.gen(function* () {
            const all = yield* Effect.all([a(here), a(here), here, b(here), a(here), here, here])
            yield* Effect.all([insert("1"), a(insert("1")), b(insert("1"))])
            return all
          })
        )
        assert.deepStrictEqual(seen, ["a", "a", "public", "b", "a", "public", "public"])
        assert.deepStrictEqual(yield* stored, ["a: 1", "b: 1", "public: 1"])
        assert.strictEqual(yield* here, "public")
      }).pipe(Effect.provide(given()))
    )

    it.scopedLive("a schema scope around a transaction, or around a unit of work, is that of its statements", () =>
      Effect.gen(function* () {
        assert.deepStrictEqual(yield* a(Db.withTransaction(Effect.all([here, b(here), here, there]))), [
          "a",
          "b",
          "a",
          "a"
        ])
        const unit = UnitOfWork.run(Effect.all([there, here, insert("1"), there, b(there), b(here), here]))
        assert.deepStrictEqual(yield* a(unit), ["a", "a", [], "a", "b", "b", "a"])
        assert.deepStrictEqual(yield* stored, ["a: 1"])
      }).pipe(Effect.provide(given()))
    )

    it.scopedLive("every level of savepoints sees the schema that it saw before, after release and rollback", () =>
      Effect.gen(function* () {
        const undone = <A>(self: Effect.Effect<A, unknown, Db>) =>
          Effect.ignore(Db.withTransaction(Effect.zipRight(self, Effect.fail("no"))))
        const seen = yield* Db.withTransaction(
          Effect.gen(function* () {
            const all: Array<unknown> = []
            const look = (self: Effect.Effect<unknown, unknown, Db>) => Effect.map(self, (one) => void all.push(one))
            // the path is the scope's when the savepoint is set
            yield* look(a(here))
            yield* undone(here)
            yield* look(here)
            yield* look(a(here))
            yield* undone(b(here))
            yield* look(a(here))
            yield* undone(Effect.all([here, b(here), here]))
            yield* look(here)
            // it is the default when the savepoint is set
            yield* undone(a(here))
            yield* look(here)
            yield* undone(a(here))
            yield* look(b(here))
            yield* look(here)
            // kept
            yield* look(Db.withTransaction(a(here)))
            yield* look(here)
            yield* look(a(Db.withTransaction(Effect.all([here, b(here)]))))
            yield* look(here)
            // a statement's failure is undone with the savepoint around it
            yield* a(Effect.ignore(Db.withTransaction(run("SELECT * FROM nowhere"))))
            yield* look(here)
            yield* look(b(here))
            return all
          })
        )
        assert.deepStrictEqual(seen, [
          ...["a", "public", "a", "a", "public"],
          ...["public", "b", "public"],
          ...["a", "public", ["a", "b"], "public"],
          ...["public", "b"]
        ])
      }).pipe(Effect.provide(given()))
    )

    it.scopedLive("schemas that are set and undone by hand are as they would be without scopes", () =>
      Effect.gen(function* () {
        const seen = yield* Db.withTransaction(
          Effect.gen(function* () {
            const all: Array<string> = []
            const look = (self: typeof here) => Effect.map(self, (one) => void all.push(one))
            yield* run("SET LOCAL search_path TO c")
            yield* look(here)
            yield* look(a(here))
            yield* look(here)
            yield* run("SAVEPOINT mine")
            yield* look(b(here))
            yield* run("ROLLBACK TO mine")
            yield* look(a(here))
            yield* look(here)
            yield* a(run("SAVEPOINT other"))
            yield* run("SET LOCAL search_path TO b")
            yield* look(here)
            yield* look(a(here))
            yield* run("ROLLBACK TO other")
            yield* look(here)
            // a scope's own statement may change the path; the next statement has that of the scope
            yield* a(run("SET LOCAL search_path TO b"))
            yield* look(a(here))
            yield* look(here)
            yield* a(run("RESET ALL"))
            yield* look(a(here))
            yield* look(here)
            return all
          })
        )
        assert.deepStrictEqual(seen, [
          ...["c", "a", "c"],
          ...["b", "a", "c"],
          ...["b", "a", "c"],
          ...["a", "c"],
          ...["a", "public"]
        ])
      }).pipe(Effect.provide(given()))
    )

    it.scopedLive(
      "a replica's reads are in the schema scope, and so are those of the writer that a reader joins, which stay read-only",
      () =>
        Effect.gen(function* () {
          const standby = Effect.flatMap(Db.reader, (sql) =>
            Effect.map(
              sql<{ standby: boolean; name: string }>`SELECT pg_is_in_recovery() AS standby, name FROM mark`,
              ([row]) => [row?.standby, row?.name]
            )
          )
          assert.deepStrictEqual(yield* Effect.all([a(standby), standby]), [
            [true, "a"],
            [true, "public"]
          ])
          const reader = yield* Db.reader
          assert.deepStrictEqual(yield* reader.withTransaction(Effect.all([a(standby), standby, b(standby)])), [
            [true, "a"],
            [true, "public"],
            [true, "b"]
          ])
          yield* Db.withTransaction(
            Effect.gen(function* () {
              yield* a(insert("1"))
              assert.deepStrictEqual(yield* Effect.all([a(standby), standby, b(standby), here]), [
                [false, "a"],
                [false, "public"],
                [false, "b"],
                "public"
              ])
              assert.strictEqual(yield* tagOf(a(reader`INSERT INTO item VALUES ('2')`)), "ReadOnlyViolation")
              assert.deepStrictEqual(yield* Effect.all([here, b(there), there]), ["public", "b", "public"])
            })
          )
          const strong = Db.withConsistency(a(standby), Consistency.Strong())
          assert.deepStrictEqual(yield* strong, [false, "a"])
          assert.strictEqual(yield* tagOf(a(reader`INSERT INTO item VALUES ('2')`)), "ReadOnlyViolation")
        }).pipe(Effect.provide(given()))
    )

    it.scopedLive("a stream is in the schema scope that reads it, to its last row, whatever runs in between", () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const rows = sql<{ n: number; name: string }>`
          SELECT n, seen(n) AS name FROM generate_series(1, 300) AS n`.pipe((_) => _.stream)
        const names = (self: Stream.Stream<{ readonly n: number; readonly name: string }, unknown, Db>) =>
          Effect.map(Stream.runCollect(self), (all) => [...new Set([...all].map(({ name }) => name))])
        // a function that is not looked up elsewhere
        const both = ["a", "public"]
        const inA = Db.withSchema(["a", "public"])
        assert.deepStrictEqual(yield* inA(names(rows)), ["a"])
        assert.deepStrictEqual(yield* names(rows), ["public"])
        yield* Db.withTransaction(
          Effect.gen(function* () {
            const other = (n: number) => (n % 100 === 0 ? Effect.all([Db.withSchema(here, "b"), here]) : Effect.void)
            const between = Stream.tap(rows, ({ n }) => Db.withSchema(other(n), both))
            assert.deepStrictEqual(yield* names(between), ["public"])
            assert.deepStrictEqual(yield* inA(names(Stream.tap(rows, ({ n }) => b(other(n))))), ["a"])
            assert.strictEqual(yield* here, "public")
          })
        )
        const reader = yield* Db.reader
        const read = reader<{ n: number; name: string }>`SELECT n, seen(n) AS name FROM generate_series(1, 300) AS n`
        assert.deepStrictEqual(yield* inA(names(read.stream)), ["a"])
        assert.deepStrictEqual(yield* names(read.stream), ["public"])
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(given()))
    )

    it.scopedLive("forked fibers, independent work, hooks and work that outlives a unit are in the schema scope", () =>
      Effect.gen(function* () {
        const started = yield* Deferred.make<void>()
        const late = yield* a(Effect.forkDaemon(Effect.zipRight(Deferred.await(started), here)))
        yield* Deferred.succeed(started, undefined)
        assert.strictEqual(yield* Fiber.join(late), "a")
        const both = Effect.all([a(here), here, b(here), here], { concurrency: "unbounded" })
        assert.deepStrictEqual(yield* both, ["a", "public", "b", "public"])
        assert.deepStrictEqual(yield* Db.withTransaction(both), ["a", "public", "b", "public"])
        const outside = Effect.all([a(UnitOfWork.outside(here)), a(Db.independent(here)), Db.independent(a(here))])
        assert.deepStrictEqual(yield* UnitOfWork.run(outside), ["a", "a", "a"])
        yield* UnitOfWork.run(
          Effect.all([
            a(Db.beforeCommit(insert("before"))),
            b(Db.afterCommit(insert("after"))),
            Db.beforeCommit(insert("before")),
            insert("1")
          ])
        )
        assert.deepStrictEqual(yield* stored, ["a: before", "b: after", "public: 1", "public: before"])
        const detached = yield* a(UnitOfWork.run(UnitOfWork.detach(Stream.fromEffect(here))))
        assert.deepStrictEqual([...(yield* Stream.runCollect(detached))], ["a"])
      }).pipe(Effect.provide(given({ maxConnections: 2 })))
    )

    it.scopedLive("a retried statement is retried in its schema scope", () =>
      Effect.gen(function* () {
        const { name } = yield* Place
        yield* a(here)
        yield* terminateBackends(name)
        assert.deepStrictEqual(yield* RetryPolicy.idempotent(Effect.all([a(there), a(here), here])), [
          "a",
          "a",
          "public"
        ])
        let attempt = 0
        const whole = Db.withTransaction(
          Effect.gen(function* () {
            yield* insert(`${++attempt}`)
            if (attempt === 1) yield* terminateBackends(name)
            return yield* Effect.all([here, b(here), here])
          }),
          { retry: true }
        )
        assert.deepStrictEqual(yield* a(whole), ["a", "b", "a"])
        assert.deepStrictEqual(yield* stored, ["a: 2"])
      }).pipe(Effect.provide(given()))
    )

    it.scopedLive("an interrupted statement ends its schema scope", () =>
      Effect.gen(function* () {
        const { context, proxy } = yield* watched({ mode })
        yield* Effect.gen(function* () {
          const sleeping = yield* proxy.when(sends("pg_sleep"), "pass")
          const fiber = yield* Effect.fork(a(run("SELECT pg_sleep(600)")))
          yield* sleeping
          yield* Fiber.interrupt(fiber)
          assert.strictEqual(yield* here, "public")
        }).pipe(Effect.provide(context))
      })
    )

    it.scopedLive("a schema scope in a sandbox is as in the database, though no COMMIT ends its settings", () =>
      Effect.gen(function* () {
        yield* Effect.gen(function* () {
          const sql = yield* Db.writer
          assert.deepStrictEqual(yield* Effect.all([a(here), here, b(there), there, a(there), here]), [
            ...["a", "public", "b", "public", "a", "public"]
          ])
          assert.deepStrictEqual(yield* a(Db.withTransaction(Effect.all([here, b(here), there]))), ["a", "b", "a"])
          assert.deepStrictEqual(yield* UnitOfWork.run(Effect.all([here, a(insert("1")), there, a(there)])), [
            "public",
            [],
            "public",
            "a"
          ])
          assert.strictEqual(yield* tagOf(a(insert("1"))), "UniqueViolation")
          assert.deepStrictEqual(yield* Effect.all([here, b(here), here]), ["public", "b", "public"])
          const { reserve } = sql
          const reserved = Effect.scoped(
            Effect.flatMap(reserve, (one) => one.executeUnprepared("SELECT name FROM mark", [], undefined))
          )
          assert.deepStrictEqual(yield* reserved, [{ name: "public" }])
          assert.strictEqual((yield* failure(a(reserved)))._tag, "SchemaInvalid")
        }).pipe(Effect.provide(TestDatabase.layer(Db)))
        assert.deepStrictEqual(yield* stored, [])
      }).pipe(Effect.provide(given()))
    )
  })
}

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
  it.scopedLive("a search path that onConnect sets is seen outside of scopes, also later in the transaction", () =>
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
        // they are kept: one for each schema
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
      const kept = "SELECT statement FROM pg_prepared_statements WHERE statement LIKE '%thing%'"
      const sql = yield* Db.writer
      assert.lengthOf(yield* sql.unsafe(kept).unprepared, 2)
    }).pipe(Effect.provide(fresh({ preparedStatements: 2 })))
  )
})

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

  it.scopedLive("schema names are quoted as names, whatever they contain", () =>
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

  it.scopedLive("a tenant with a mistyped option refuses every statement, for it would be that of every database", () =>
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

  it.scopedLive("impossible schema names are refused before anything is sent, wherever they are used", () =>
    Effect.gen(function* () {
      const { context, sent } = yield* watched()
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
    "the statement's own name comes first, then the tenant, then the schema, each the innermost, then the default",
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

  it.scopedLive("a tenant applies to every database, or to the listed ones; a schema to its own database only", () =>
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

describe("a reserved connection in a schema scope", () => {
  it.scopedLive("a reserved connection is refused in a schema scope: only its holder knows its transactions", () =>
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
      // a scope of another database has no effect on it
      assert.strictEqual(Exit.isSuccess(yield* Effect.exit(Audit.withSchema(Effect.scoped(sql.reserve), "a"))), true)
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh()))
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

  it.scopedLive("requests of SqlResolver are in the schema scope, single and batched, in transactions or not", () =>
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
    "plain code keeps its schema scopes across awaits, in its effects, and in work it starts that outlives it",
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
          // as a middleware calls its next handler
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
