/** The parts of an error that describe its statement: the text, the server's fields, the call site, advice. */
import { inspect } from "node:util"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { type Database, DatabaseError, DatabaseRuntime } from "effect-db"
import { Db, fresh, Place, run } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { failure, taggedFailure } from "../support/failures.js"
import { freshDatabase, query } from "../support/server.js"

const open = (options: Partial<Database.Options> = {}) => fresh({ readers: [], ...options })

const secret = "correct horse battery"

describe("the text of a statement in its error", () => {
  it.scopedLive("an error shows the line of the statement with a mark at the position that the server reports", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const error = yield* taggedFailure("QueryFailed", sql`SELECT *\nFROM item, absent\nWHERE id = ${1}`)
      assert.strictEqual(error.sql, "SELECT *\nFROM item, absent\nWHERE id = $1")
      assert.strictEqual(error.position, 21)
      assert.deepStrictEqual(error.message.split("\n").slice(1), [
        "  LINE 2: FROM item, absent",
        "                     ^"
      ])
      assert.match(error.message, /^database "app" at .*: relation "absent" does not exist \(42P01\)\n/)
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("a mark counts an emoji as one character, and a long line is cut around the mark", () =>
    Effect.gen(function* () {
      const wide = yield* taggedFailure("QueryFailed", run("SELECT '🐎🐎', absent"))
      assert.deepStrictEqual(wide.message.split("\n").slice(1), [
        "  LINE 1: SELECT '🐎🐎', absent",
        "                       ^"
      ])
      const columns = Array.from({ length: 200 }, (_, i) => `${i} AS c${i}`).join(", ")
      const long = yield* taggedFailure("QueryFailed", run(`SELECT ${columns}, absent, ${columns}`))
      const [line = "", mark = ""] = long.message.split("\n").slice(1)
      assert.isBelow(line.length, 130)
      assert.strictEqual(line.slice(mark.length - 1, mark.length + 5), "absent")
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive(
    "an error has the text of its statement and a position in that text, also if the statement was sent with BEGIN, as a stream or as one of several commands",
    () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const reader = yield* Db.reader
        const wrong = "SELECT absent"
        const statement = sql.unsafe(wrong)
        const all: ReadonlyArray<readonly [Effect.Effect<unknown, unknown, Db>, number]> = [
          [statement, 8],
          [statement.raw, 8],
          [statement.values, 8],
          [statement.withoutTransform, 8],
          [statement.unprepared, 8],
          [Stream.runDrain(statement.stream), 8],
          [reader.unsafe(wrong), 8],
          [Db.withTransaction(statement), 8],
          [Db.withTransaction(sql.withTransaction(statement)), 8],
          [Db.withTransaction(Effect.zipRight(sql`SELECT 1`, reader.unsafe(wrong))), 8],
          [sql.unsafe(`SELECT 1; ${wrong}`), 18],
          [Effect.scoped(Effect.flatMap(sql.reserve, (_) => _.execute(wrong, [], undefined))), 8]
        ]
        for (const [effect, position] of all) {
          const error = yield* taggedFailure("QueryFailed", effect)
          assert.isTrue(error.sql?.endsWith(wrong), error.sql)
          assert.strictEqual(error.position, position)
          assert.include(error.message, "^")
        }
      }).pipe(Effect.provide(open()))
  )

  it.scopedLive("an error without a mark shows the statement in one line, cut off if it is long", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      yield* sql`INSERT INTO item ${sql.insert({ name: secret })}`
      const error = yield* taggedFailure("UniqueViolation", sql`INSERT INTO item\n ${sql.insert({ name: secret })}`)
      assert.strictEqual(error.sql, 'INSERT INTO item\n ("name") VALUES ($1)')
      assert.isTrue(error.message.endsWith('\n  in: INSERT INTO item ("name") VALUES ($1)'), error.message)
      assert.notInclude(error.message, secret)
      const rows = Array.from({ length: 300 }, () => ({ name: "a" }))
      const long = yield* taggedFailure("UniqueViolation", sql`INSERT INTO item ${sql.insert(rows)}`)
      assert.isBelow(long.message.length, 400)
      assert.isTrue(long.message.endsWith(" ..."), long.message)
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive(
    "an error has the text of a statement that was lost or could not be sent, and none if COMMIT failed",
    () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const ended = yield* taggedFailure("Disconnected", sql`SELECT pg_terminate_backend(pg_backend_pid())`)
        assert.strictEqual(ended.sql, "SELECT pg_terminate_backend(pg_backend_pid())")
        const unsendable = yield* taggedFailure("QueryFailed", sql`SELECT ${sql.json(1n)}`)
        assert.strictEqual(unsendable.sql, "SELECT $1")
        yield* run("ALTER TABLE item ADD CONSTRAINT late UNIQUE (amount) DEFERRABLE INITIALLY DEFERRED")
        const commit = yield* taggedFailure(
          "CommitFailed",
          Db.withTransaction(run("INSERT INTO item (name, amount) VALUES ('a', 1), ('b', 1)"))
        )
        assert(commit.cause instanceof DatabaseError.UniqueViolation)
        assert.strictEqual(commit.cause.sql, undefined)
      }).pipe(Effect.provide(open()))
  )

  it.scopedLive("an error does not show a password in the text of its statement", () =>
    Effect.gen(function* () {
      for (const text of [
        `ALTER ROLE absent PASSWORD '${secret}' absent`,
        `ALTER ROLE absent password E'${secret}\\'s'`,
        `CREATE USER MAPPING FOR absent SERVER absent OPTIONS (user 'me', password '${secret}')`,
        `CREATE SUBSCRIPTION s CONNECTION 'host=absent password=''${secret}''' PUBLICATION p`,
        `CREATE SUBSCRIPTION s CONNECTION 'host=absent password=${secret.replaceAll(" ", "")} dbname=a' PUBLICATION`
      ]) {
        const error = yield* failure(run(text))
        const shown = inspect(error, { depth: 9 }) + JSON.stringify(error)
        assert.notInclude(shown, "horse", text)
        assert.include(shown, "absent")
      }
    }).pipe(Effect.provide(open()))
  )
})

describe("the server's fields in an error", () => {
  const raise = `
    CREATE FUNCTION refuse(what text) RETURNS int LANGUAGE plpgsql AS $$
    BEGIN
      RAISE EXCEPTION 'refused' USING ERRCODE = 'UE001', DETAIL = 'the detail', HINT = 'the hint',
        SCHEMA = 'the schema', TABLE = 'the table', COLUMN = 'the column', CONSTRAINT = 'the constraint', DATATYPE = 'the type';
    END $$`

  it.scopedLive("every field of RAISE is a field of the error, and `where` tells the line", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      yield* run(raise)
      const error = yield* taggedFailure("QueryFailed", sql`SELECT refuse(${secret})`)
      const { column, constraint, dataType, detail, hint, schema, sqlState, table, where } = error
      assert.deepStrictEqual(
        { column, constraint, dataType, detail, hint, schema, sqlState, table, where },
        {
          column: "the column",
          constraint: "the constraint",
          dataType: "the type",
          detail: "the detail",
          hint: "the hint",
          schema: "the schema",
          sqlState: "UE001",
          table: "the table",
          where: "PL/pgSQL function refuse(text) line 3 at RAISE"
        }
      )
      assert.include(error.message, "where: PL/pgSQL function refuse(text) line 3 at RAISE")
      yield* run("CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
      const domain = yield* taggedFailure("CheckViolation", sql`SELECT ${-1}::positive`)
      assert.strictEqual(domain.dataType, "positive")
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("an error does not show the values of parameters in the server's context", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* Place
      yield* query(writer, `ALTER DATABASE ${name} SET log_parameter_max_length_on_error = -1`)
      yield* query(
        writer,
        `CREATE FUNCTION dynamic(what text) RETURNS int LANGUAGE plpgsql AS $$
        BEGIN EXECUTE format('SELECT %L, absent', what); RETURN 1; END $$`
      )
      const sql = yield* Db.writer
      const all = [
        sql`SELECT 1 / (${0}::int), ${secret}::text`,
        sql`SELECT ${`["${secret}" 1]`}::json`,
        sql`SELECT dynamic(${secret})`
      ]
      for (const statement of all) {
        const error = yield* failure(statement)
        assert.notInclude(inspect(error, { depth: 9 }) + JSON.stringify(error), secret)
      }
      const dynamic = yield* taggedFailure("QueryFailed", sql`SELECT dynamic(${secret})`)
      assert.strictEqual(dynamic.where, "PL/pgSQL function dynamic(text) line 2 at EXECUTE")
    }).pipe(Effect.provide(open({ startup: "lazy" })))
  )
})

describe("the call site in an error", () => {
  it.scopedLive("an error has the call site if it is recorded for leak detection", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const error = yield* taggedFailure("QueryFailed", sql`SELECT absent`)
      assert.match(error.location ?? "", /statementError\.test\.ts:\d+:\d+/)
      assert.include(error.message, `\n  at: ${error.location}`)
    }).pipe(Effect.provide(open({ leakThreshold: "1 hour" })))
  )

  it.scopedLive("an error without a recorded call site has the span around its statement, if there is one", () =>
    Effect.gen(function* () {
      const error = yield* taggedFailure("QueryFailed", Effect.withSpan(run("SELECT absent"), "adding"))
      assert.strictEqual(error.location, 'span "adding"')
      assert.strictEqual((yield* taggedFailure("QueryFailed", run("SELECT absent"))).location, undefined)
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("an error of promise code has the frames of that code in its stack", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const runtime = DatabaseRuntime.make({ db: Db }, Db.layer({ writer }))
      const { db } = runtime.databases
      const frames = async (code: () => Promise<unknown>): Promise<string> => {
        try {
          await code()
        } catch (error) {
          return error instanceof Error ? (error.stack ?? "") : ""
        }
        throw new Error("it did not fail")
      }
      const askingAlone = async () => {
        await db.writer`SELECT absent`
      }
      const askingInside = () =>
        db.withTransaction(async function adding() {
          await db.writer`SELECT 1`
          await askingAlone()
        })
      const askingInUnit = async () => {
        await runtime.unitOfWork(async function working() {
          await askingAlone()
        })
      }
      const askingStream = async () => {
        for await (const _ of db.writer`SELECT absent`.stream()) void _
      }
      yield* Effect.promise(async () => {
        await runtime.open()
        const alone = await frames(askingAlone)
        assert.match(alone, /^DatabaseError|QueryFailed/)
        assert.include(alone.split("\n")[0], 'database "app"')
        for (const [stack, names] of [
          [alone, ["askingAlone"]],
          [await frames(askingInside), ["askingAlone", "adding"]],
          [await frames(askingInUnit), ["askingAlone", "working"]],
          [await frames(askingStream), ["askingStream"]]
        ] as const) {
          for (const name of names)
            assert.match(stack, new RegExp(`at (async )?\\S*${name} .*statementError\\.test\\.ts:\\d+:\\d+`))
        }
        await runtime.close()
      })
    }).pipe(Effect.provide(open()))
  )
})

describe("errors after a failed transaction", () => {
  it.scopedLive("an error of a statement in an aborted transaction names the first failure", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const refused = [
        Effect.gen(function* () {
          yield* Effect.ignore(sql`SELECT first_fault`)
          yield* Effect.ignore(sql`SELECT 1`)
          yield* sql`SELECT 2`
        }).pipe(Db.withTransaction()),
        Effect.gen(function* () {
          const connection = yield* sql.reserve
          const execute = (text: string) => connection.executeRaw(text, [])
          yield* Effect.ignore(execute("SELECT an_older_fault"))
          yield* execute("BEGIN")
          yield* Effect.ignore(execute("SELECT first_fault"))
          yield* execute("SELECT 2")
        }).pipe(Effect.scoped)
      ]
      for (const effect of refused) {
        const error = yield* taggedFailure("QueryFailed", effect)
        assert.strictEqual(error.sqlState, "25P02")
        assert.strictEqual(error.sql, "SELECT 2")
        assert.match(
          error.message.split("\n")[0] ?? "",
          /current transaction is aborted.*column "first_fault" does not exist/
        )
        const first = error.cause instanceof Error ? error.cause.cause : undefined
        assert(first instanceof DatabaseError.QueryFailed)
        assert.strictEqual(first.sql, "SELECT first_fault")
      }
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("a failed nested transaction is not the cause of later errors", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const error = yield* Effect.gen(function* () {
        yield* Effect.ignore(sql.withTransaction(sql`SELECT nested_fault`))
        yield* Effect.ignore(sql`SELECT first_fault`)
        yield* sql`SELECT 2`
      }).pipe(Db.withTransaction(), (_) => taggedFailure("QueryFailed", _))
      assert.include(error.message, "first_fault")
      assert.notInclude(error.message, "nested_fault")
    }).pipe(Effect.provide(open()))
  )
})

describe("advice in errors", () => {
  it.scopedLive("an error of SQLSTATE class 22, such as a value out of range, is InvalidInput", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const all = [
        ["22P02", sql`SELECT ${"x"}::int`],
        ["22012", sql`SELECT 1 / 0`],
        ["22003", sql`SELECT ${"99999999999"}::int`],
        ["22001", run("CREATE TEMP TABLE short (a varchar(1)); INSERT INTO short VALUES ('ab')")],
        ["22007", sql`SELECT ${"x"}::date`],
        ["22021", sql`SELECT ${"\0"}::text`]
      ] as const
      for (const [sqlState, statement] of all) {
        const error = yield* taggedFailure("InvalidInput", statement)
        assert.strictEqual(error.sqlState, sqlState)
        assert.include(error.message, `(${sqlState})`)
        assert.isString(error.sql)
      }
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("the error of a statement that an administrator cancels does not advise raising statementTimeout", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const slow = yield* Effect.fork(taggedFailure("StatementTimeout", run("SELECT pg_sleep(30)")))
      yield* eventually(
        query(
          writer,
          "SELECT pg_cancel_backend(pid) AS done FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT pg_sleep(30)'"
        ),
        (rows) => rows.length > 0
      )
      const { message } = yield* Fiber.join(slow)
      assert.include(message, "user request")
      assert.include(message, "an administrator or another program")
      assert.notInclude(message, "raise")
      const timeout = yield* taggedFailure(
        "StatementTimeout",
        Db.withTransaction(run("SELECT pg_sleep(30)"), { statementTimeout: "50 millis" })
      )
      assert.include(timeout.message, "raise statementTimeout")
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("the error of NOWAIT does not advise raising lockTimeout", () =>
    Effect.gen(function* () {
      yield* run("INSERT INTO item (name) VALUES ('a')")
      yield* Db.withTransaction(
        Effect.gen(function* () {
          yield* run("SELECT * FROM item FOR UPDATE")
          const other = (text: string) => Db.independent(Db.withTransaction(run(text), { lockTimeout: "50 millis" }))
          const nowait = yield* taggedFailure("LockTimeout", other("SELECT * FROM item FOR UPDATE NOWAIT"))
          assert.include(nowait.message, "omit NOWAIT")
          assert.notInclude(nowait.message, "lockTimeout")
          const waited = yield* taggedFailure("LockTimeout", other("SELECT * FROM item FOR UPDATE"))
          assert.include(waited.message, "raise lockTimeout")
        })
      )
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("the error of a refused write says which of reader, transaction and server refuses it", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const write = "INSERT INTO item (name) VALUES ('a')"
      const onReader = Effect.flatMap(Db.reader, (sql) => sql.unsafe(write))
      for (const effect of [
        onReader,
        Db.withTransaction(onReader),
        Effect.flatMap(Db.reader, (sql) => sql.withTransaction(sql.unsafe(write)))
      ]) {
        const error = yield* taggedFailure("ReadOnlyViolation", effect)
        assert.strictEqual(error.reason, "reader")
        assert.include(error.message, "run it through the writer")
      }
      for (const effect of [
        Db.withTransaction(run(write), { access: "read only" }),
        Db.withTransaction(Db.withTransaction(run(write)), { access: "read only" })
      ]) {
        const error = yield* taggedFailure("ReadOnlyViolation", effect)
        assert.strictEqual(error.reason, "transaction")
        assert.include(error.message, "read only")
        assert.notInclude(error.message, "through the writer")
      }
      // a session that is read-only by a setting stands for a server that is read-only
      const session = yield* Effect.flatMap(Db.writer, (sql) => sql.reserve)
      yield* session.executeRaw("SET default_transaction_read_only = on", [])
      const error = yield* taggedFailure("ReadOnlyViolation", session.executeRaw(write, []))
      assert.strictEqual(error.reason, "server")
      assert.include(error.message, "standby")
      assert.notInclude(error.message, "through the writer")
      assert.deepStrictEqual(yield* query(writer, "SELECT name FROM item"), [])
    }).pipe(Effect.provide(open({ maxConnections: 1 })))
  )

  it.scopedLive("transaction_timeout and idle_in_transaction_session_timeout each have advice of their own", () =>
    Effect.gen(function* () {
      const limited = (setting: string) =>
        Db.withTransaction(
          Effect.gen(function* () {
            yield* run(`SET LOCAL ${setting} = '50ms'`)
            const ended = yield* Deferred.make<void>()
            yield* eventually(
              Effect.map(Db.status, ({ servers }) => servers[0]?.writes?.total ?? 0),
              (total) => total === 0
            ).pipe(Effect.zipRight(Deferred.succeed(ended, undefined)))
            yield* run("SELECT 1")
          })
        )
      const transaction = yield* taggedFailure("IdleTransactionTimeout", limited("transaction_timeout"))
      assert.include(transaction.message, "transaction_timeout")
      const idle = yield* taggedFailure("IdleTransactionTimeout", limited("idle_in_transaction_session_timeout"))
      assert.include(idle.message, "do slow work outside of the transaction")
      assert.notInclude(idle.message, "transaction_timeout")
    }).pipe(Effect.provide(open({ minConnections: 0 })))
  )

  it.scopedLive("the error of a prepared statement that already exists suggests the mode for poolers", () =>
    Effect.gen(function* () {
      const error = yield* taggedFailure("QueryFailed", run("PREPARE s1 AS SELECT 1"))
      assert.strictEqual(error.sqlState, "42P05")
      assert.include(error.message, 'mode: "transactionPooler"')
    }).pipe(Effect.provide(open({ maxConnections: 1 })))
  )

  it.scopedLive("an error mentions the provider of credentials only if there is one", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const { hostname, pathname, port, username } = new URL(Redacted.value(writer))
      const server = { host: hostname, port: Number(port), database: pathname.slice(1), username }
      const broken = { ...server, password: Redacted.make(5 as never) }
      const fixed = yield* Effect.flip(Effect.scoped(Effect.provide(Db, Db.layer({ writer: broken }))))
      assert.strictEqual(fixed._tag, "ConnectFailed")
      assert.notInclude(fixed.message, "provider")
      assert.include(fixed.message, "settings")
      const asked = yield* Effect.flip(
        Effect.scoped(Effect.provide(Db, Db.layer({ writer: server, credentials: Effect.fail("no") })))
      )
      assert.include(asked.message, "the provider of credentials failed")
    })
  )
})
