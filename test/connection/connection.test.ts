import * as fs from "node:fs"
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { type Database, DatabaseError } from "effect-db"
import { describe } from "vitest"
import { active, Db, fresh, insert, Place, pid, stored } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { freshDatabase, query } from "../support/server.js"
import { listenOnPort } from "../support/tcp.js"

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
  it.scopedLive("statements are prepared once, and the least recently used of too many is closed", () =>
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

  it.scopedLive("no statement stays prepared if preparedStatements is 0", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      assert.deepStrictEqual(yield* sql`SELECT ${1}::int AS a`, [{ a: 1 }])
      assert.deepStrictEqual(yield* prepared, [])
    }).pipe(Effect.provide(fresh({ maxConnections: 1, preparedStatements: 0 })))
  )

  it.scopedLive("a statement with a stale plan is prepared again, also if its own transaction has made it stale", () =>
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

  it.scopedLive("rows are returned as objects, arrays, raw results and one list for each of several commands", () =>
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
    "several commands in one text are atomic outside of a transaction, part of it inside, and refused on a reader",
    () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const reader = yield* Db.reader
        yield* Effect.flip(sql`INSERT INTO item (name) VALUES ('x'); SELECT 1 / 0`)
        assert.deepStrictEqual(yield* stored, [])
        const undone = Effect.zipRight(
          sql`INSERT INTO item (name) VALUES ('y'); INSERT INTO item (name) VALUES ('z')`,
          Effect.fail("undone" as const)
        )
        assert.strictEqual(yield* Effect.flip(Db.withTransaction(undone)), "undone")
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

  it.scopedLive("a statement that cannot be sent or is refused fails, and its connection stays usable", () =>
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
      const session = yield* pid
      for (const statement of bad) {
        const error = yield* statement.pipe(DatabaseError.refine, Effect.flip)
        assert.oneOf(error._tag, ["QueryFailed", "InvalidInput"])
        assert.strictEqual(yield* pid, session)
      }
      yield* insert("next")
      assert.strictEqual(yield* active, 0)
      assert.deepStrictEqual(yield* stored, ["next"])
    }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
  )

  it.scopedLive("the error of a constraint violation names the constraint or the column", () =>
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

  it.scopedLive("names are transformed in statements and in rows if both transformations are set", () =>
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

  it.scopedLive("an exception in transformResultNames is a defect of its statement, and the next one succeeds", () =>
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

  it.scopedLive("a reserved connection is unusable after its scope", () =>
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

  it.scopedLive("a statement that has committed and fails with the code of a stale plan is not run again", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      yield* sql`CREATE PROCEDURE twice() LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO item (amount) VALUES (1); COMMIT; RAISE EXCEPTION 'x' USING ERRCODE = '26000'; END $$`
      yield* Effect.ignore(sql`CALL twice()`)
      yield* Effect.ignore(sql`CALL twice()`)
      assert.strictEqual((yield* sql`SELECT * FROM item`).length, 2)
    }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
  )

  it.scopedLive("a column may have any name, such as __proto__", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const [row] = yield* sql`SELECT 1 AS "__proto__", 2 AS "constructor", 3 AS "1"`
      assert.deepStrictEqual(Object.entries(row ?? {}).sort(), [
        ["1", 3],
        ["__proto__", 1],
        ["constructor", 2]
      ])
      assert.strictEqual(Object.getPrototypeOf(row), Object.prototype)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("values returns rows as arrays also if the statement is sent by the simple protocol", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      assert.deepStrictEqual(yield* sql`SELECT 1, 'a;b'`.values, [[1, "a;b"]])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive(
    "a reader that uses the primary cannot write in a DO block, and its read with a stale plan is prepared again",
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

  it.scopedLive.skipIf(process.platform !== "linux")(
    "TCP keepalive probes start after 30 s of silence, or after keepAlive, or never if that is false",
    () =>
      Effect.gen(function* () {
        const { writer } = yield* freshDatabase
        /**
         * Returns the seconds after which the kernel probes the connection of a database with these
         * options; 0 if it does not.
         */
        const seconds = (options: Partial<Database.Options>) =>
          Effect.gen(function* () {
            const sql = yield* Db.writer
            const [ports] = yield* sql<{ client: number; server: number }>`
              SELECT inet_client_port() AS client, inet_server_port() AS server`
            const hex = (port: number | undefined) => `:${(port ?? 0).toString(16).toUpperCase().padStart(4, "0")}`
            const entry = Effect.sync(() =>
              fs
                .readFileSync("/proc/net/tcp", "utf8")
                .split("\n")
                .map((line) => line.trim().split(/\s+/))
                .find((words) => words[1]?.endsWith(hex(ports?.client)) && words[2]?.endsWith(hex(ports?.server)))
            )
            // until all sent data is acknowledged, the timer is that of retransmission
            yield* eventually(entry, (words) => /^0[02]:/.test(words?.[5] ?? ""))
            const [kind, ticks] = (yield* entry)?.[5]?.split(":") ?? []
            return kind === "02" ? Math.ceil(Number.parseInt(ticks ?? "", 16) / 100) : 0
          }).pipe(Effect.provide(Db.layer({ writer, ...options })))
        const usual = yield* seconds({})
        assert.isTrue(usual > 20 && usual <= 30, String(usual))
        const longer = yield* seconds({ keepAlive: "2 minutes" })
        assert.isTrue(longer > 110 && longer <= 120, String(longer))
        assert.strictEqual(yield* seconds({ keepAlive: false }), 0)
      })
  )

  it.scopedLive("a connect to a server whose messages are unreadable or unsupported fails with ConnectFailed", () =>
    Effect.gen(function* () {
      /** Returns the failure of a connect to a server that answers the first message with these bytes. */
      const failure = (answer: Buffer, ssl = false) =>
        Effect.gen(function* () {
          const port = yield* listenOnPort((socket) => void socket.once("data", () => socket.write(answer)))
          const writer = { host: "127.0.0.1", port, database: "app", username: "me", ssl }
          const error = yield* Effect.flip(Layer.build(Db.layer({ writer, connectTimeout: "300 millis" })))
          if (answer.includes("HTTP")) assert.include(error.message, "it is no PostgreSQL server")
          return error._tag === "ConnectFailed" ? error.reason : error._tag
        })
      // the server demands a login by GSSAPI, which the driver does not support
      assert.strictEqual(yield* failure(Buffer.from([0x52, 0, 0, 0, 8, 0, 0, 0, 7])), "authentication")
      // an authentication request without its number
      assert.strictEqual(yield* failure(Buffer.from([0x52, 0, 0, 0, 4])), "protocol")
      const http = Buffer.from("HTTP/1.1 400 Bad Request\r\n\r\n")
      assert.strictEqual(yield* failure(http), "protocol")
      assert.strictEqual(yield* failure(http, true), "protocol")
    })
  )

  it.scopedLive("an infinite limit is sent as none, 0.4 ms as 1 ms, and too long a limit as the server's maximum", () =>
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
