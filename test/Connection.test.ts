import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { DatabaseError } from "effect-db"
import { describe } from "vitest"
import { active, Db, fresh, insert, Place, soon, stored } from "./fixtures/databases.js"
import { makeProxy, sends } from "./fixtures/proxy.js"
import { freshDatabase, query } from "./fixtures/server.js"

const prepared = Effect.flatMap(Db.writer, (sql) =>
  Effect.map(
    sql<{
      statement: string
    }>`SELECT statement FROM pg_prepared_statements WHERE statement NOT LIKE '%pg_prepared%' ORDER BY statement`
      .unprepared,
    (rows) => rows.map((row) => row.statement)
  )
)

describe("Connection", () => {
  it.scopedLive("statements are prepared once, bounded, the one used longest ago is closed on the server", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      for (const n of [1, 2, 3]) {
        assert.deepStrictEqual(yield* sql`SELECT ${n}::int AS a`, [{ a: n }])
        assert.deepStrictEqual(yield* sql`SELECT ${n}::int AS b`, [{ b: n }])
      }
      assert.deepStrictEqual(yield* prepared, ["SELECT $1::int AS a", "SELECT $1::int AS b"])
      yield* sql`SELECT ${1}::int AS c`
      assert.deepStrictEqual(yield* prepared, ["SELECT $1::int AS b", "SELECT $1::int AS c"])
    }).pipe(Effect.provide(fresh({ maxConnections: 1, preparedStatements: 2 })))
  )

  it.scopedLive("with preparedStatements 0 none is kept", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      assert.deepStrictEqual(yield* sql`SELECT ${1}::int AS a`, [{ a: 1 }])
      assert.deepStrictEqual(yield* prepared, [])
    }).pipe(Effect.provide(fresh({ maxConnections: 1, preparedStatements: 0 })))
  )

  it.scopedLive(
    "a plan that went stale is prepared again without a failure, also after one's own change inside of a transaction",
    () =>
      Effect.gen(function* () {
        const { writer } = yield* Place
        const sql = yield* Db.writer
        yield* insert("a")
        const all = sql`SELECT * FROM item`
        assert.deepStrictEqual(Object.keys((yield* all)[0] ?? {}), ["id", "name", "amount"])
        yield* query(writer, "ALTER TABLE item ADD COLUMN extra text")
        assert.deepStrictEqual(Object.keys((yield* all)[0] ?? {}), ["id", "name", "amount", "extra"])
        yield* Db.withTransaction(
          Effect.gen(function* () {
            yield* all
            yield* sql`ALTER TABLE item DROP COLUMN extra`
            assert.deepStrictEqual(Object.keys((yield* all)[0] ?? {}), ["id", "name", "amount"])
          })
        )
        yield* sql`DEALLOCATE ALL`
        assert.strictEqual((yield* all).length, 1)
      }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
  )

  it.scopedLive("rows come as objects, arrays, raw results and one list for each of several commands", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      assert.deepStrictEqual(yield* sql`SELECT 1 AS a, NULL AS b, ARRAY[1, 2] AS c, '{"x":1}'::jsonb AS d, true AS e`, [
        { a: 1, b: null, c: [1, 2], d: { x: 1 }, e: true }
      ])
      assert.deepStrictEqual(yield* sql`SELECT 1, 'x'`.values, [[1, "x"]])
      const raw = (yield* sql`INSERT INTO item (name) VALUES ('a'), ('b') RETURNING name`.raw) as {
        readonly command: string
        readonly rowCount: number
        readonly rows: ReadonlyArray<unknown>
        readonly fields: ReadonlyArray<{ readonly name: string }>
      }
      assert.strictEqual(raw.command, "INSERT")
      assert.strictEqual(raw.rowCount, 2)
      assert.deepStrictEqual(raw.rows, [{ name: "a" }, { name: "b" }])
      assert.deepStrictEqual(
        raw.fields.map((field) => field.name),
        ["name"]
      )
      assert.deepStrictEqual(yield* sql`SELECT 1 AS a; SELECT 2 AS b`, [[{ a: 1 }], [{ b: 2 }]] as never)
      assert.deepStrictEqual(yield* sql`SELECT ';' AS a`, [{ a: ";" }])
      assert.deepStrictEqual(yield* sql`SELECT 1 AS a;`, [{ a: 1 }])
      assert.deepStrictEqual(yield* sql.unsafe(""), [])
      assert.deepStrictEqual(yield* sql`SELECT ${sql.json({ a: [1] })}::jsonb AS j`, [{ j: { a: [1] } }])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive(
    "several commands in one text: all or nothing outside of a transaction, part of it inside, refused on a reader",
    () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const reader = yield* Db.reader
        yield* Effect.ignore(sql`INSERT INTO item (name) VALUES ('x'); SELECT 1 / 0`)
        assert.deepStrictEqual(yield* stored, [])
        yield* Db.withTransaction(sql`INSERT INTO item (name) VALUES ('a'); INSERT INTO item (name) VALUES ('b')`)
        assert.deepStrictEqual(yield* stored, ["a", "b"])
        const refused = yield* reader`SELECT 1; SELECT 2`.pipe(DatabaseError.refine, Effect.flip)
        assert.strictEqual(refused._tag === "QueryFailed" && refused.sqlState, "42601")
      }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a reader cannot make itself a writer", () =>
    Effect.gen(function* () {
      const reader = yield* Db.reader
      const write = reader`INSERT INTO item (name) VALUES ('x')`.pipe(DatabaseError.refine, Effect.flip)
      yield* reader`SELECT set_config('default_transaction_read_only', 'off', false)`
      assert.strictEqual((yield* write)._tag, "ReadOnlyViolation")
      yield* reader`SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE`
      assert.strictEqual((yield* write)._tag, "ReadOnlyViolation")
      const inside = yield* Effect.flip(
        DatabaseError.refine(reader.withTransaction(reader`SET TRANSACTION READ WRITE`))
      )
      assert.strictEqual(inside._tag === "QueryFailed" && inside.sqlState, "25001")
      const cte = yield* reader`WITH x AS (DELETE FROM item RETURNING *) SELECT * FROM x`.pipe(
        DatabaseError.refine,
        Effect.flip
      )
      assert.strictEqual(cte._tag, "ReadOnlyViolation")
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh({ readers: [] })))
  )

  it.scopedLive("what cannot be sent is a failure, and the connection is as good as before", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const circular: { self?: unknown } = {}
      circular.self = circular
      const bad = [
        sql`SELECT ${circular as never}::jsonb`,
        sql.unsafe("SELECT '\0'"),
        sql.unsafe(
          "SELECT 1",
          Array.from({ length: 70_000 }, () => 1)
        ),
        sql`SELECT ${"nul \0 inside"}::text`,
        sql`SELECT ${"no number"}::int`,
        sql`COPY item FROM STDIN`,
        sql`NOT SQL AT ALL`
      ]
      for (const statement of bad) {
        const error = yield* statement.pipe(DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag, "QueryFailed")
      }
      yield* insert("next")
      assert.strictEqual(yield* active, 0)
      assert.deepStrictEqual(yield* stored, ["next"])
    }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
  )

  it.scopedLive("violations carry what the server says about them", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      yield* sql`CREATE TABLE strict (n int NOT NULL CHECK (n > 0), item int REFERENCES item, EXCLUDE (n WITH =))`
      yield* insert("a")
      const cases = [
        [sql`INSERT INTO item (name) VALUES ('a')`, "UniqueViolation", "item_name_key"],
        [sql`INSERT INTO strict VALUES (1, 99)`, "ForeignKeyViolation", "strict_item_fkey"],
        [sql`INSERT INTO strict VALUES (0)`, "CheckViolation", "strict_n_check"],
        [sql`INSERT INTO strict VALUES (1), (1)`, "ExclusionViolation", "strict_n_excl"]
      ] as const
      for (const [statement, tag, constraint] of cases) {
        const error = yield* statement.pipe(DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag, tag)
        assert.strictEqual("constraint" in error && error.constraint, constraint)
      }
      const missing = yield* sql`INSERT INTO strict VALUES (NULL)`.pipe(DatabaseError.refine, Effect.flip)
      assert.strictEqual(missing._tag, "NotNullViolation")
      assert.strictEqual("column" in missing && missing.column, "n")
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("names are transformed both ways where asked for", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      yield* sql`CREATE TABLE camel (first_name text)`
      yield* sql`INSERT INTO camel ${sql.insert({ firstName: "Ada" })}`
      assert.deepStrictEqual(yield* sql`SELECT * FROM camel`, [{ firstName: "Ada" }])
      assert.deepStrictEqual(yield* sql`SELECT * FROM camel`.withoutTransform, [{ first_name: "Ada" }])
      assert.deepStrictEqual(yield* sql.withoutTransforms()`SELECT * FROM camel`, [{ first_name: "Ada" }])
      const all = yield* Stream.runCollect(sql`SELECT * FROM camel`.stream)
      assert.deepStrictEqual([...all], [{ firstName: "Ada" }])
    }).pipe(
      Effect.provide(
        fresh({
          transformQueryNames: (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
          transformResultNames: (name) => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase())
        })
      )
    )
  )

  it.scopedLive("notifications reach every listener, inside of a transaction on its commit", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* Place
      const sql = yield* Db.writer
      const listen = (n: number) => Effect.fork(Stream.runCollect(Stream.take(sql.listen("news; x"), n)))
      const listeners = [yield* listen(1), yield* listen(2)] as const
      yield* Effect.repeat(
        query(writer, "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND query LIKE 'LISTEN%' AND state = 'idle'", [
          name
        ]),
        { schedule: soon, until: (rows) => rows.length === 1 }
      )
      yield* Effect.ignore(Db.withTransaction(Effect.zipRight(sql.notify("news; x", "undone"), Effect.fail("no"))))
      yield* Db.withTransaction(sql.notify("news; x", "it's"))
      assert.deepStrictEqual([...(yield* Fiber.join(listeners[0]))], ["it's"])
      yield* sql.notify("news; x", "")
      assert.deepStrictEqual([...(yield* Fiber.join(listeners[1]))], ["it's", ""])
      const bad = yield* sql.listen("a\0b").pipe(Stream.runDrain, DatabaseError.refine, Effect.flip)
      assert.strictEqual(bad._tag, "QueryFailed")
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a listener that is interrupted while it joins does no harm to the others", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* freshDatabase
      const proxy = yield* makeProxy(writer)
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const first = yield* Effect.fork(Stream.runCollect(Stream.take(sql.listen("first"), 1)))
        yield* Effect.repeat(
          query(
            writer,
            "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND query LIKE 'LISTEN%' AND state = 'idle'",
            [name]
          ),
          { schedule: soon, until: (rows) => rows.length === 1 }
        )
        const joining = yield* proxy.when(sends('LISTEN "second"'), "freeze")
        const second = yield* Effect.fork(Stream.runDrain(sql.listen("second")))
        yield* joining
        const interrupting = yield* Effect.fork(Fiber.interrupt(second))
        yield* Effect.yieldNow()
        yield* proxy.thaw
        yield* Fiber.join(interrupting)
        // longer than any bound that was set for the interrupted one
        yield* query(writer, "SELECT pg_sleep(1.2)")
        yield* sql.notify("first", "still here")
        assert.deepStrictEqual([...(yield* Fiber.join(first))], ["still here"])
      }).pipe(Effect.provide(Db.layer({ writer: proxy.url })))
    })
  )

  it.scopedLive("listeners on a connection that does not answer any more are told", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* freshDatabase
      const proxy = yield* makeProxy(writer)
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const first = yield* Effect.fork(sql.listen("first").pipe(Stream.runDrain, DatabaseError.refine, Effect.flip))
        yield* Effect.repeat(
          query(
            writer,
            "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND query LIKE 'LISTEN%' AND state = 'idle'",
            [name]
          ),
          { schedule: soon, until: (rows) => rows.length === 1 }
        )
        const joining = yield* proxy.when(sends('LISTEN "second"'), "freeze")
        const second = yield* Effect.fork(Stream.runDrain(sql.listen("second")))
        yield* joining
        yield* Fiber.interrupt(second)
        assert.strictEqual((yield* Fiber.join(first))._tag, "Disconnected")
      }).pipe(Effect.provide(Db.layer({ writer: proxy.url })))
    })
  )

  it.scopedLive("a fault in the user's transformation is the statement's defect, and harms nothing else", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const exit = yield* Effect.exit(sql`SELECT 1 AS bad`)
      assert.isTrue(Exit.isFailure(exit) && Cause.isDie(exit.cause))
      const inside = yield* Effect.exit(Db.withTransaction(sql`SELECT 1 AS bad`))
      assert.isTrue(Exit.isFailure(inside) && Cause.isDie(inside.cause))
      assert.deepStrictEqual(yield* sql`SELECT 1 AS good`, [{ good: 1 }])
      assert.strictEqual(yield* active, 0)
    }).pipe(
      Effect.provide(
        fresh({
          maxConnections: 1,
          transformResultNames: (name) => {
            if (name === "bad") throw new Error("a bug")
            return name
          }
        })
      )
    )
  )

  it.scopedLive("a reserved connection is of no use after its scope", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const connection = yield* Effect.scoped(sql.reserve)
      const error = yield* Db.withTransaction(
        Effect.zipRight(
          insert("ours"),
          connection
            .execute("INSERT INTO item (name) VALUES ('theirs')", [], undefined)
            .pipe(DatabaseError.refine, Effect.flip)
        )
      )
      assert.strictEqual(error._tag, "TransactionEnded")
      assert.deepStrictEqual(yield* stored, ["ours"])
    }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
  )

  it.scopedLive("what looks like a stale plan but has run is not run again", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      yield* sql`CREATE PROCEDURE twice() LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO item (amount) VALUES (1); COMMIT; RAISE EXCEPTION 'x' USING ERRCODE = '26000'; END $$`
      yield* Effect.ignore(sql`CALL twice()`)
      yield* Effect.ignore(sql`CALL twice()`)
      assert.strictEqual((yield* sql`SELECT * FROM item`).length, 2)
    }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
  )

  it.scopedLive("arrays are arrays, whatever the protocol", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      assert.deepStrictEqual(yield* sql`SELECT 1, 'a;b'`.values, [[1, "a;b"]])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive(
    "code on the server cannot make a reader of the primary a writer, and its reads are prepared again when they must be",
    () =>
      Effect.gen(function* () {
        const { writer } = yield* Place
        const reader = yield* Db.reader
        const error = yield* reader`
        DO $$ BEGIN SET default_transaction_read_only = off; COMMIT; INSERT INTO item (name) VALUES ('x'); END $$`.pipe(
          DatabaseError.refine,
          Effect.flip
        )
        assert.strictEqual(error._tag, "QueryFailed")
        assert.deepStrictEqual(yield* stored, [])
        const all = reader`SELECT * FROM item`
        yield* all
        yield* query(writer, "ALTER TABLE item ADD COLUMN extra text")
        assert.deepStrictEqual(yield* all, [])
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(fresh({ readers: [], maxConnections: 1 })))
  )

  it.scopedLive("limits: infinity is none, a fraction is not, and what is too long for the server is its longest", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const [row] = yield* sql`
        SELECT current_setting('statement_timeout') AS statement, current_setting('lock_timeout') AS lock,
               current_setting('idle_in_transaction_session_timeout') AS idle`
      assert.deepStrictEqual(row, { statement: "0", lock: "1ms", idle: "2147483647ms" })
    }).pipe(
      Effect.provide(
        fresh({
          statementTimeout: Duration.infinity,
          lockTimeout: Duration.millis(0.4),
          idleInTransactionTimeout: "60 days"
        })
      )
    )
  )
})
