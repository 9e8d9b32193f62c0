import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { Consistency, type Database, DatabaseError, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { behindBouncer, freshPooled, hasBouncer, makeBouncer, pooled } from "../support/bouncer.js"
import { active, Db, freshTable, insert, Place, stored } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { taggedFailure } from "../support/failures.js"
import { behindPooler, refusal, settings } from "../support/pooler.js"
import { answers, makeProxy, sends } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"
import * as KnownFailures from "../support/suites/knownFailures.js"
import { batches, batchesKeptApart } from "../support/suites/requestBatches.js"

describe.skipIf(!hasBouncer)(behindBouncer, () => {
  describe("the round trips behind PgBouncer", () => {
    it.scopedLive(
      "an autocommit statement takes one round trip, also with limits or on a reader, and a transaction of two statements takes three",
      () =>
        Effect.gen(function* () {
          const place = yield* freshTable
          const proxy = yield* makeProxy((pooled(place.name) ?? place).writer)
          const counted = <A, E, R>(self: Effect.Effect<A, E, R>) =>
            Effect.suspend(() => {
              const before = proxy.roundTrips
              return Effect.map(Effect.exit(self), () => proxy.roundTrips - before)
            })
          const trips = (options: Partial<Database.Options>) =>
            Effect.gen(function* () {
              const sql = yield* Db.writer
              const reader = yield* Db.reader
              // a new connection checks the role of its server first, and the first transaction checks
              // that the server reports ids
              yield* Db.withTransaction(insert("first"))
              return [
                yield* counted(sql`SELECT ${1}::int`),
                yield* counted(reader`SELECT ${1}::int`),
                yield* counted(Db.withTransaction(Effect.all([insert("a"), sql`DELETE FROM item`]))),
                yield* counted(sql.notify("news", "x"))
              ]
            }).pipe(
              Effect.provide(Db.layer({ writer: proxy.url, mode: "transactionPooler", startup: "lazy", ...options }))
            )
          assert.deepStrictEqual(yield* trips({}), [1, 1, 3, 1])
          assert.deepStrictEqual(yield* trips({ statementTimeout: "5 seconds", lockTimeout: "1 second" }), [1, 1, 3, 1])
        })
    )

    it.scopedLive.each(["status", "marker"] as const)(
      "a COMMIT that loses its connection to the pooler is resolved through the pooler, by %s",
      (outcome) =>
        Effect.gen(function* () {
          const place = yield* freshTable
          const proxy = yield* makeProxy((pooled(place.name) ?? place).writer)
          yield* Effect.gen(function* () {
            for (let n = 0; n < 10; n++) {
              yield* proxy.when(answers("COMMIT"), "cut")
              yield* Db.withTransaction(insert(`${n} a`))
              yield* proxy.when(sends("COMMIT"), "cut")
              const error = yield* taggedFailure("Disconnected", Db.withTransaction(insert(`${n} undone`)))
              assert.strictEqual(error.outcome, "undone")
              yield* proxy.when(sends("COMMIT"), "cut")
              yield* Db.withTransaction(insert(`${n} b`), { retry: true })
            }
          }).pipe(Effect.provide(Db.layer({ writer: proxy.url, mode: "transactionPooler", outcome })))
          const expected = Array.from({ length: 10 }, (_, n) => [`${n} a`, `${n} b`]).flat()
          assert.deepStrictEqual(yield* Effect.provideService(stored, Place, place), expected)
        })
    )

    it.scopedLive(
      "a COMMIT in a causal session reads the log position in the same round trip, and later reads go to the primary",
      () =>
        Effect.gen(function* () {
          const place = yield* freshTable
          const { reader, writer } = pooled(place.name) ?? place
          const proxy = yield* makeProxy(writer)
          const session = Consistency.makeSession({ maxWait: "20 seconds" })
          const look = Effect.flatMap(
            Db.reader,
            (sql) => sql`SELECT pg_is_in_recovery() AS standby, count(*)::int AS n FROM item`
          )
          yield* Effect.gen(function* () {
            const sql = yield* Db.writer
            // a new connection checks the role of its server first
            yield* Db.withTransaction(sql`SELECT pg_current_xact_id()`)
            const before = proxy.roundTrips
            yield* Db.withTransaction(Effect.zipRight(insert("a"), insert("b")))
            assert.strictEqual(proxy.roundTrips - before, 3)
            assert.deepStrictEqual(yield* look, [{ standby: false, n: 2 }])
            // the setting that keeps `synchronous_commit` and the id of the transaction over COMMIT
            // is reset, so it does not reach the next client of the session
            assert.deepStrictEqual(yield* sql`SELECT coalesce(current_setting('effect_db.commit', true), '') AS left`, [
              { left: "" }
            ])
          }).pipe(
            Effect.provide(
              Db.layer({ writer: proxy.url, readers: [reader], mode: "transactionPooler", startup: "lazy" })
            ),
            Consistency.withSession(session)
          )
          // a client without a pooler may read from a replica
          const direct = Db.layer({ writer: place.writer, readers: [place.reader] })
          const seen = yield* look.pipe(Effect.provide(direct), Consistency.withSession(session))
          assert.deepStrictEqual(seen, [{ standby: true, n: 2 }])
        })
    )

    it.scopedLive(
      "a read with a token behind the pooler fails with NoReplicaCaughtUp if the primary is not allowed",
      () =>
        Effect.gen(function* () {
          const session = Consistency.makeSession()
          yield* Db.withTransaction(insert("a")).pipe(Consistency.withSession(session))
          const token = session.known.get("app")
          if (!(token instanceof Consistency.Token)) return assert.fail(`there is no token, but ${token}`)
          const sql = yield* Db.reader
          const read = sql`SELECT count(*)::int AS n FROM item`
          const strict = Consistency.AtLeast({ token, maxWait: "5 seconds", otherwise: "fail" })
          const error = yield* taggedFailure("NoReplicaCaughtUp", Db.withConsistency(read, strict))
          assert.include(error.message, "pooler")
          const lenient = Consistency.AtLeast({ token, maxWait: "5 seconds" })
          assert.deepStrictEqual(yield* Db.withConsistency(read, lenient), [{ n: 1 }])
        }).pipe(Effect.provide(freshPooled()))
    )

    it.scopedLive("a login ignores PGOPTIONS, which PgBouncer would refuse", () =>
      Effect.gen(function* () {
        yield* Effect.acquireRelease(
          Effect.sync(() => {
            process.env.PGOPTIONS = "-c geqo=off"
          }),
          () =>
            Effect.sync(() => {
              delete process.env.PGOPTIONS
            })
        )
        const sql = yield* Db.writer
        const [row] = yield* sql`SELECT current_setting('geqo') AS geqo, current_setting('application_name') AS name`
        assert.deepStrictEqual(row, { geqo: "on", name: "my app" })
      }).pipe(Effect.provide(freshPooled({ applicationName: "my app", startup: "lazy" })))
    )

    it.scopedLive("a connect in session mode is refused with poolerMode, and the error advises transactionPooler", () =>
      Effect.gen(function* () {
        const place = yield* freshDatabase
        const error = yield* refusal({ writer: (pooled(place.name) ?? place).writer, mode: "session" })
        assert.strictEqual(error.reason, "poolerMode")
        assert.include(error.message, 'mode: "transactionPooler"')
      })
    )

    it.scopedLive("a first statement in session mode fails at once with poolerMode, because no retry would help", () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const error = yield* Effect.flip(DatabaseError.refine(sql`SELECT 1`))
        assert.isTrue(error._tag === "ConnectFailed" && error.reason === "poolerMode", error.message)
      }).pipe(Effect.provide(freshPooled({ mode: "session", startup: "lazy", acquireTimeout: "1 hour" })))
    )

    it.scopedLive("200 fibers on 40 connections share 5 sessions of the server, and no statement is prepared", () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const reader = yield* Db.reader
        const pid = Effect.map(
          sql<{ pid: number; named: number }>`
            SELECT pg_backend_pid() AS pid, (SELECT count(*)::int FROM pg_prepared_statements) AS named`,
          ([row]) => row ?? { pid: 0, named: -1 }
        )
        const work = (n: number) =>
          Effect.gen(function* () {
            const [before, after] = yield* Db.withTransaction(
              Effect.all([Effect.zipLeft(pid, insert(`row ${n}`)), Db.withTransaction(pid)])
            )
            yield* reader`SELECT count(*) FROM item WHERE amount = ${n}`
            yield* sql`UPDATE item SET amount = ${n} WHERE name = ${`row ${n}`}`
            assert.deepStrictEqual(before, after)
            return before
          })
        const seen = yield* Effect.forEach(
          Array.from({ length: 200 }, (_, n) => n),
          work,
          { concurrency: "unbounded" }
        )
        assert.isAtMost(new Set(seen.map(({ pid }) => pid)).size, 5)
        assert.isTrue(seen.every(({ named }) => named === 0))
        assert.lengthOf(yield* stored, 200)
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(freshPooled({ maxConnections: 40 })))
    )
  })

  describe("limits behind PgBouncer", () => {
    it.scopedLive(
      "limits hold for a statement, a transaction and a savepoint, and do not reach the next client of the session",
      () =>
        behindPooler({ default_pool_size: 1 }, { statementTimeout: "7 seconds", lockTimeout: "6 seconds" }, ({ url }) =>
          Effect.gen(function* () {
            const sql = yield* Db.writer
            const reader = yield* Db.reader
            const ask = Effect.map(sql.unsafe(settings), ([row]) => row)
            // an autocommit statement never idles in its transaction
            const autocommit = { statement: "7s", lock: "6s", idle: "0", readOnly: "off" }
            const usual = { ...autocommit, idle: "1min" }
            const others = Effect.map(query(url, settings), ([row]) => row)
            const untouched = { statement: "0", lock: "0", idle: "0", readOnly: "off" }

            assert.deepStrictEqual(yield* ask, autocommit)
            assert.deepStrictEqual(yield* others, untouched)
            assert.deepStrictEqual(yield* reader.unsafe(settings), [{ ...autocommit, readOnly: "on" }])
            assert.deepStrictEqual(yield* others, untouched)
            assert.deepStrictEqual(yield* sql.unsafe(`SELECT 1 AS one; ${settings}`), [[{ one: 1 }], [autocommit]])
            assert.deepStrictEqual(yield* others, untouched)
            assert.deepStrictEqual(yield* Db.withTransaction(ask), usual)
            assert.deepStrictEqual(yield* UnitOfWork.run(ask), usual)
            assert.deepStrictEqual(yield* others, untouched)
            const nested = yield* Effect.all([
              ask,
              Db.withTransaction(ask, { lockTimeout: "1 second", statementTimeout: "3 seconds" }),
              ask
            ]).pipe(Db.withTransaction({ lockTimeout: "2 seconds" }))
            assert.deepStrictEqual(nested, [
              { ...usual, lock: "2s" },
              { ...usual, lock: "1s", statement: "3s" },
              { ...usual, lock: "2s" }
            ])
            const rows = yield* Stream.runCollect(reader.unsafe(settings).stream)
            assert.deepStrictEqual([...rows], [{ ...usual, readOnly: "on" }])
            assert.deepStrictEqual(yield* others, untouched)
          })
        )
    )

    it.scopedLive("the server's limits for a statement and an idle transaction fail with typed errors", () =>
      behindPooler({}, { statementTimeout: "300 millis", idleInTransactionTimeout: "100 millis" }, () =>
        Effect.gen(function* () {
          const { name, writer } = yield* Place
          const sql = yield* Db.writer
          yield* taggedFailure("StatementTimeout", sql`SELECT pg_sleep(20)`)
          yield* taggedFailure("StatementTimeout", sql`SELECT 1; SELECT pg_sleep(20)`)
          yield* taggedFailure("StatementTimeout", Db.withTransaction(sql`SELECT pg_sleep(20)`))
          yield* taggedFailure(
            "IdleTransactionTimeout",
            Db.withTransaction(
              Effect.gen(function* () {
                yield* insert("undone")
                yield* eventually(
                  query(writer, "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND state LIKE 'idle in%'", [name]),
                  (rows) => rows.length === 0
                )
                yield* insert("late")
              })
            )
          )
          assert.deepStrictEqual(yield* stored, [])
          assert.strictEqual(yield* active, 0)
        })
      )
    )

    // the transaction that holds the lock idles meanwhile, so idleInTransactionTimeout is not set
    it.scopedLive("the server's limit for a lock fails with LockTimeout", () =>
      behindPooler({}, { lockTimeout: "50 millis" }, () =>
        Effect.gen(function* () {
          const sql = yield* Db.writer
          yield* insert("locked")
          const update = sql`UPDATE item SET amount = 1`
          yield* Db.withTransaction(Effect.zipRight(update, taggedFailure("LockTimeout", Db.independent(update))))
          assert.deepStrictEqual(yield* stored, ["locked"])
          assert.strictEqual(yield* active, 0)
        })
      )
    )

    it.scopedLive("PgBouncer's limits for an idle transaction and for a statement fail with typed errors", () =>
      behindPooler({ idle_transaction_timeout: 1, query_timeout: 2 }, {}, (bouncer) =>
        Effect.gen(function* () {
          const sql = yield* Db.writer
          yield* taggedFailure(
            "IdleTransactionTimeout",
            Db.withTransaction(
              Effect.gen(function* () {
                yield* insert("undone")
                yield* eventually(bouncer.admin("SHOW CLIENTS"), (clients) => clients.length === 1)
                yield* insert("late")
              })
            )
          )
          const error = yield* taggedFailure("Disconnected", sql`SELECT pg_sleep(20)`)
          assert.strictEqual(error.outcome, "inDoubt")
          assert.deepStrictEqual(yield* stored, [])
          yield* insert("next")
        })
      )
    )
  })

  describe("readers behind PgBouncer", () => {
    const refusesWrites = Effect.gen(function* () {
      const reader = yield* Db.reader
      const refused = <A, E>(self: Effect.Effect<A, E>) => taggedFailure("ReadOnlyViolation", self)
      const write = reader`INSERT INTO item (name) VALUES ('x')`
      yield* refused(write)
      yield* refused(reader`WITH x AS (INSERT INTO item (name) VALUES ('x') RETURNING *) SELECT * FROM x`)
      yield* refused(Stream.runDrain(reader`INSERT INTO item (name) VALUES ('x') RETURNING *`.stream))
      yield* refused(reader.withTransaction(write))
      const escape = yield* taggedFailure("QueryFailed", reader.withTransaction(reader`SET TRANSACTION READ WRITE`))
      assert.strictEqual(escape.sqlState, "25001")
      assert.deepStrictEqual(yield* stored, [])
      assert.strictEqual(yield* active, 0)
    })

    it.scopedLive("a reader refuses writes on the primary", () =>
      Effect.gen(function* () {
        const { writer } = yield* Place
        yield* query(
          writer,
          `CREATE FUNCTION sly() RETURNS void LANGUAGE plpgsql AS
           $$ BEGIN SET transaction_read_only = off; INSERT INTO item (name) VALUES ('x'); END $$`
        )
        const reader = yield* Db.reader
        yield* taggedFailure("QueryFailed", reader`SELECT sly()`)
        // a setting that a reader makes ends with its own statement
        yield* reader`SET TRANSACTION READ WRITE`
        yield* refusesWrites
      }).pipe(Effect.provide(freshPooled({ readers: [] })))
    )

    it.scopedLive("a reader refuses writes on a replica, and reads there", () =>
      Effect.gen(function* () {
        const { reader: replica } = yield* Place
        yield* eventually(query(replica, "SELECT 1 FROM pg_class WHERE relname = 'item'"), (rows) => rows.length === 1)
        yield* refusesWrites
        const reader = yield* Db.reader
        assert.deepStrictEqual(yield* reader`SELECT pg_is_in_recovery() AS standby`, [{ standby: true }])
      }).pipe(Effect.provide(freshPooled()))
    )

    it.scopedLive("a reader still refuses writes after PgBouncer has moved it from a standby to a primary", () =>
      Effect.gen(function* () {
        const place = yield* freshTable
        const bouncer = yield* makeBouncer(place.reader)
        const database = Db.layer({
          writer: place.writer,
          readers: [bouncer.url],
          mode: "transactionPooler",
          // the same connection is used all the time
          startup: "lazy",
          maxConnections: 1,
          validateAfterIdle: "1 minute"
        })
        yield* Effect.gen(function* () {
          const reader = yield* Db.reader
          const where = Effect.map(reader<{ standby: boolean }>`SELECT pg_is_in_recovery() AS standby`, ([row]) => row)
          assert.deepStrictEqual(yield* where, { standby: true })
          yield* bouncer.aim(place.writer)
          assert.deepStrictEqual(yield* where, { standby: false })
          yield* taggedFailure("ReadOnlyViolation", reader`INSERT INTO item (name) VALUES ('x')`)
        }).pipe(Effect.provide(database))
      })
    )
  })

  describe("transactions behind PgBouncer", () => {
    it.scopedLive("eight fibers with streams, inside and outside of transactions, share two server sessions", () =>
      behindPooler({ default_pool_size: 2 }, { maxConnections: 8 }, () =>
        Effect.gen(function* () {
          const sql = yield* Db.writer
          const reader = yield* Db.reader
          const numbers = (client: typeof sql) =>
            Stream.runFold(
              client<{ n: number }>`SELECT n FROM generate_series(1, 500) AS n`.stream,
              0,
              (_, { n }) => _ + n
            )
          const work = (i: number) =>
            i % 2 === 0
              ? Effect.all([numbers(sql), numbers(reader)])
              : Db.withTransaction(Effect.all([numbers(sql), Effect.as(insert(`row ${i}`), 125_250)]))
          const sums = yield* Effect.forEach([1, 2, 3, 4, 5, 6, 7, 8], work, { concurrency: "unbounded" })
          assert.deepStrictEqual(new Set(sums.flat()), new Set([125_250]))
          assert.lengthOf(yield* stored, 4)
          // a consumer that stops early leaves nothing checked out
          const first = yield* Stream.runHead(sql`SELECT n FROM generate_series(1, 500) AS n`.stream)
          assert.deepStrictEqual(first, Option.some({ n: 1 }))
          assert.strictEqual(yield* active, 0)
        })
      )
    )

    it.scopedLive("batched requests run in the transactions of their callers", () =>
      Effect.gen(function* () {
        const place = yield* KnownFailures.freshTables
        const seen = yield* Effect.flatMap(Db.writer, batches).pipe(
          Effect.provide(Db.layer({ writer: (pooled(place.name) ?? place).writer, mode: "transactionPooler" }))
        )
        yield* batchesKeptApart(seen, place)
      })
    )
  })

  it.scopedLive("listen and reserve are refused because they need a session of their own, and notify works", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const sql = yield* Db.writer
      const heard = yield* Deferred.make<string>()
      const listener = Layer.build(Db.layer({ writer }))
      const direct = yield* Effect.flatMap(listener, (context) => Effect.provide(Db.writer, context))
      yield* Effect.forkScoped(Stream.runForEach(direct.listen("news"), (_) => Deferred.succeed(heard, _)))
      for (const refused of [Stream.runDrain(sql.listen("news")), Effect.scoped(sql.reserve)]) {
        const error = yield* taggedFailure("ConfigInvalid", refused)
        assert.strictEqual(error.setting, "mode")
        assert.match(error.message, /"session" for (listen|reserve)/)
      }
      yield* eventually(Effect.zipRight(sql.notify("news", "heard"), Deferred.isDone(heard)), (isDone) => isDone)
      assert.strictEqual(yield* Deferred.await(heard), "heard")
    }).pipe(Effect.provide(freshPooled()))
  )
})
