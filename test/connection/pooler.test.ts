/**
 * `mode: "transactionPooler"`, behind a real PgBouncer: nothing relies on a session, and nothing is
 * left behind in the sessions that all clients share.
 */
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Consistency, type Database, DatabaseError, RetryPolicy, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { type Bouncer, behindBouncer, freshPooled, hasBouncer, makeBouncer, pooled } from "../support/bouncer.js"
import { changedUrl } from "../support/changedUrl.js"
import { active, Db, freshTable, insert, Place, soon, stored } from "../support/databases.js"
import { taggedFailure } from "../support/failures.js"
import { makeProxy, sends } from "../support/proxy.js"
import { freshDatabase, query, terminateBackends } from "../support/server.js"
import * as KnownFailures from "../support/suites/knownFailures.js"
import { identityFiles, makeIdentity } from "../support/tlsGate.js"

/** Runs a test with a new database, open as `Db`, behind a PgBouncer of its own. */
const behind = <A, E>(
  settings: Readonly<Record<string, string | number>>,
  options: Partial<Database.Options>,
  body: (bouncer: Bouncer) => Effect.Effect<A, E, Db | Place | Scope.Scope>
) =>
  Effect.gen(function* () {
    const place = yield* freshTable
    const bouncer = yield* makeBouncer(place.writer, settings)
    const database = Db.layer({ writer: bouncer.url, mode: "transactionPooler", ...options })
    return yield* Effect.provide(body(bouncer), Layer.merge(database, Layer.succeed(Place, place)))
  })

/** Returns the failure of opening a database. */
const refusal = (options: Database.Options) =>
  taggedFailure("ConnectFailed", Effect.scoped(Layer.build(Db.layer({ mode: "transactionPooler", ...options }))))

const once = RetryPolicy.with(RetryPolicy.never)

/** Waits until the server of a database runs so many matching statements. */
const running = (count: number, like: string) =>
  Effect.flatMap(Place, ({ writer }) =>
    Effect.repeat(
      query(
        writer,
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query LIKE $1",
        [like]
      ),
      { schedule: soon, until: (rows) => rows.length === count }
    )
  )

/** Waits until so many clients of a PgBouncer wait for a server. */
const waiting = (bouncer: Bouncer, count: number) =>
  Effect.repeat(bouncer.admin("SHOW CLIENTS"), {
    schedule: soon,
    until: (clients) => clients.filter(({ state }) => state === "waiting").length === count
  })

/** Waits until a client of a PgBouncer has a server. */
const held = (bouncer: Bouncer) =>
  Effect.repeat(bouncer.admin("SHOW SERVERS"), {
    schedule: soon,
    until: (servers) => servers.some(({ state }) => state === "active")
  })

/** The settings of the server for one transaction. */
const settings = `SELECT current_setting('statement_timeout') AS statement, current_setting('lock_timeout') AS lock,
  current_setting('idle_in_transaction_session_timeout') AS idle, current_setting('transaction_read_only') AS "readOnly"`

describe.skipIf(!hasBouncer)(behindBouncer, () => {
  describe("the round trips behind PgBouncer", () => {
    it.scopedLive(
      "an autocommit statement is one round trip, with limits and as a reader's too; a transaction of two is three",
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
              // a new connection proves the role of its server first
              yield* sql`SELECT 1`
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

    it.scopedLive(
      "a COMMIT in a causal session reads the primary's position in its own round trip, and later reads go to the primary",
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
            // a new connection proves the role of its server first
            yield* sql`SELECT 1`
            const before = proxy.roundTrips
            yield* Db.withTransaction(Effect.zipRight(insert("a"), insert("b")))
            assert.strictEqual(proxy.roundTrips - before, 3)
            assert.deepStrictEqual(yield* look, [{ standby: false, n: 2 }])
            // of the next client of the session
            assert.deepStrictEqual(yield* sql`SELECT coalesce(current_setting('effect_db.commit', true), '') AS left`, [
              { left: "" }
            ])
          }).pipe(
            Effect.provide(
              Db.layer({ writer: proxy.url, readers: [reader], mode: "transactionPooler", startup: "lazy" })
            ),
            Consistency.withSession(session)
          )
          // a client that reaches a replica by itself may read there
          const direct = Db.layer({ writer: place.writer, readers: [place.reader] })
          const seen = yield* look.pipe(Effect.provide(direct), Consistency.withSession(session))
          assert.deepStrictEqual(seen, [{ standby: true, n: 2 }])
        })
    )

    it.scopedLive(
      "a read whose token cannot be proved behind the pooler is NoReplicaCaughtUp if the primary is not allowed",
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

    it.scopedLive("a login sends nothing that PgBouncer refuses, whatever the environment holds", () =>
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

    it.scopedLive("a refusal without the mode for poolers says what to do", () =>
      Effect.gen(function* () {
        const place = yield* freshDatabase
        const error = yield* refusal({ writer: (pooled(place.name) ?? place).writer, mode: "session" })
        assert.strictEqual(error.reason, "poolerMode")
        assert.include(error.message, 'mode: "transactionPooler"')
      })
    )

    it.scopedLive("a first statement without the mode for poolers fails at once, because waiting does not help", () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const error = yield* Effect.flip(DatabaseError.refine(sql`SELECT 1`))
        assert.isTrue(error._tag === "ConnectFailed" && error.reason === "poolerMode", error.message)
      }).pipe(Effect.provide(freshPooled({ mode: "session", startup: "lazy", acquireTimeout: "1 hour" })))
    )

    it.scopedLive("200 fibers with 40 connections share 5 of the server's, and no statement is named", () =>
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
        behind({ default_pool_size: 1 }, { statementTimeout: "7 seconds", lockTimeout: "6 seconds" }, ({ url }) =>
          Effect.gen(function* () {
            const sql = yield* Db.writer
            const reader = yield* Db.reader
            const ask = Effect.map(sql.unsafe(settings), ([row]) => row)
            // an autocommit statement never idles in its transaction
            const single = { statement: "7s", lock: "6s", idle: "0", readOnly: "off" }
            const usual = { ...single, idle: "1min" }
            const others = Effect.map(query(url, settings), ([row]) => row)
            const untouched = { statement: "0", lock: "0", idle: "0", readOnly: "off" }

            assert.deepStrictEqual(yield* ask, single)
            assert.deepStrictEqual(yield* others, untouched)
            assert.deepStrictEqual(yield* reader.unsafe(settings), [{ ...single, readOnly: "on" }])
            assert.deepStrictEqual(yield* others, untouched)
            assert.deepStrictEqual(yield* sql.unsafe(`SELECT 1 AS one; ${settings}`), [[{ one: 1 }], [single]])
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

    it.scopedLive("the server's own limits for a statement and an idle transaction are typed errors", () =>
      behind({}, { statementTimeout: "300 millis", idleInTransactionTimeout: "100 millis" }, () =>
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
                yield* Effect.repeat(
                  query(writer, "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND state LIKE 'idle in%'", [name]),
                  { schedule: soon, until: (rows) => rows.length === 0 }
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

    // the holder of the lock idles meanwhile, so this has no limit for that
    it.scopedLive("the server's own limit for a lock is a typed error", () =>
      behind({}, { lockTimeout: "50 millis" }, () =>
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

    it.scopedLive("PgBouncer's limits for an idle transaction and for a statement are typed errors", () =>
      behind({ idle_transaction_timeout: 1, query_timeout: 2 }, {}, (bouncer) =>
        Effect.gen(function* () {
          const sql = yield* Db.writer
          yield* taggedFailure(
            "IdleTransactionTimeout",
            Db.withTransaction(
              Effect.gen(function* () {
                yield* insert("undone")
                yield* Effect.repeat(bouncer.admin("SHOW CLIENTS"), {
                  schedule: soon,
                  until: (clients) => clients.length === 1
                })
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
        // the settings that it makes itself end before its next statement
        yield* reader`SET TRANSACTION READ WRITE`
        yield* refusesWrites
      }).pipe(Effect.provide(freshPooled({ readers: [] })))
    )

    it.scopedLive("a reader refuses writes on a replica, and reads there", () =>
      Effect.gen(function* () {
        const { reader: replica } = yield* Place
        yield* Effect.repeat(query(replica, "SELECT 1 FROM pg_class WHERE relname = 'item'"), {
          schedule: soon,
          until: (rows) => rows.length === 1
        })
        yield* refusesWrites
        const reader = yield* Db.reader
        assert.deepStrictEqual(yield* reader`SELECT pg_is_in_recovery() AS standby`, [{ standby: true }])
      }).pipe(Effect.provide(freshPooled()))
    )

    it.scopedLive("a reader does not rely on what PgBouncer remembers of a standby", () =>
      Effect.gen(function* () {
        const place = yield* freshTable
        const bouncer = yield* makeBouncer(place.reader)
        const database = Db.layer({
          writer: place.writer,
          readers: [bouncer.url],
          mode: "transactionPooler",
          // one connection all the time
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
    it.scopedLive("eight streams, inside and outside of a transaction, share two sessions", () =>
      behind({ default_pool_size: 2 }, { maxConnections: 8 }, () =>
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
          // a consumer that stops early leaves nothing behind
          const first = yield* Stream.runHead(sql`SELECT n FROM generate_series(1, 500) AS n`.stream)
          assert.deepStrictEqual(first, Option.some({ n: 1 }))
          assert.strictEqual(yield* active, 0)
        })
      )
    )

    it.scopedLive("batches of requests stay in their transactions", () =>
      Effect.gen(function* () {
        const place = yield* KnownFailures.freshTables
        const batches = yield* Effect.flatMap(Db.writer, KnownFailures.batches).pipe(
          Effect.provide(Db.layer({ writer: (pooled(place.name) ?? place).writer, mode: "transactionPooler" }))
        )
        yield* KnownFailures.batchesKeptApart(batches, place)
      })
    )
  })

  it.scopedLive("statements that need a session of their own are refused with the reason, and notify works", () =>
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
      yield* Effect.repeat(sql.notify("news", "heard"), { schedule: soon, until: () => Deferred.isDone(heard) })
      assert.strictEqual(yield* Deferred.await(heard), "heard")
    }).pipe(Effect.provide(freshPooled()))
  )

  describe("interruption behind PgBouncer", () => {
    it.scopedLive("an interruption of many statements at once harms neither the others nor PgBouncer", () =>
      behind({ default_pool_size: 4 }, { maxConnections: 40 }, (bouncer) =>
        Effect.gen(function* () {
          const sql = yield* Db.writer
          const sleepers = yield* Effect.forEach(Array.from({ length: 30 }), () =>
            Effect.fork(sql`SELECT pg_sleep(20)`)
          )
          yield* running(4, "SELECT pg_sleep%")
          yield* waiting(bouncer, 26)
          const bystander = yield* Effect.fork(insert("bystander"))
          yield* waiting(bouncer, 27)
          yield* Effect.timeout(Fiber.interruptAll(sleepers), "1300 millis")
          yield* Effect.timeout(Fiber.join(bystander), "2 seconds")
          assert.deepStrictEqual(yield* stored, ["bystander"])
        })
      )
    )

    it.scopedLive("an interruption of a statement that waits for a server prevents it from ever running", () =>
      behind({ default_pool_size: 1 }, {}, (bouncer) =>
        Effect.gen(function* () {
          const released = yield* Deferred.make<void>()
          const holder = yield* Effect.fork(
            Db.withTransaction(Effect.zipLeft(insert("held"), Deferred.await(released)))
          )
          yield* held(bouncer)
          const statement = yield* Effect.fork(insert("interrupted"))
          yield* waiting(bouncer, 1)
          yield* Effect.timeout(Fiber.interrupt(statement), "1300 millis")
          // PgBouncer detects only when it has a server that the client is gone
          yield* Effect.repeat(Db.status, { schedule: soon, until: ({ servers }) => servers[0]?.writes?.total === 1 })
          yield* Deferred.succeed(released, undefined)
          yield* Fiber.join(holder)
          yield* insert("next")
          assert.deepStrictEqual(yield* stored, ["held", "next"])
        })
      )
    )

    it.scopedLive(
      "a cancel that overtakes its statement, at the end of a layer, is sent once more, and the statement is undone",
      () =>
        Effect.gen(function* () {
          const { writer } = yield* freshTable
          const proxy = yield* makeProxy(writer)
          const bouncer = yield* makeBouncer(proxy.url)
          const scope = yield* Scope.make()
          const options = { writer: bouncer.url, mode: "transactionPooler", shutdownTimeout: "50 millis" } as const
          const context = yield* Layer.buildWithScope(Db.layer(options), scope)
          const sql = yield* Effect.provide(Db.writer, context)
          yield* sql`SELECT 1`
          const { accepted, connections } = proxy
          const sent = yield* proxy.when(sends("pg_sleep"), "freeze")
          const fiber = yield* Effect.fork(DatabaseError.refine(sql`SELECT pg_sleep(60)`).pipe(Effect.flip))
          yield* sent
          const isCancelled = Effect.repeat(Effect.void, {
            schedule: soon,
            until: () => proxy.accepted > accepted && proxy.connections === connections
          })
          yield* Effect.fork(Effect.zipRight(isCancelled, proxy.thaw))
          yield* Scope.close(scope, Exit.void)
          const error = yield* Fiber.join(fiber)
          assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
        })
    )

    it.scopedLive("a cancel sends the client's certificate where PgBouncer demands one", () =>
      Effect.gen(function* () {
        const place = yield* freshTable
        const identity = makeIdentity("localhost", "open sesame")
        const files = yield* identityFiles(identity, "open sesame")
        const bouncer = yield* makeBouncer(place.writer, {
          client_tls_sslmode: "verify-full",
          client_tls_ca_file: files.cert,
          client_tls_cert_file: files.cert,
          client_tls_key_file: files.key
        })
        const { password, pathname, port, username } = new URL(Redacted.value(bouncer.url))
        const writer = {
          host: "localhost",
          port: Number(port),
          database: pathname.slice(1),
          username,
          password: Redacted.make(decodeURIComponent(password)),
          ssl: { ca: identity.cert, ...identity, passphrase: "open sesame" }
        }
        yield* Effect.gen(function* () {
          const sql = yield* Db.writer
          const fiber = yield* Effect.fork(sql`SELECT 1 FROM pg_sleep(60) AS long`)
          yield* running(1, "%AS long")
          yield* Fiber.interrupt(fiber)
          yield* running(0, "%AS long")
        }).pipe(
          Effect.provide(Layer.merge(Db.layer({ writer, mode: "transactionPooler" }), Layer.succeed(Place, place)))
        )
      })
    )

    it.scopedLive("a connection is not closed before its cancel is done, because PgBouncer 1.18 might end itself", () =>
      Effect.gen(function* () {
        const place = yield* freshTable
        const proxy = yield* makeProxy((pooled(place.name) ?? place).writer)
        const database = Db.layer({ writer: proxy.url, mode: "transactionPooler", startup: "lazy" })
        yield* Effect.gen(function* () {
          const sql = yield* Db.writer
          const sleeper = yield* Effect.fork(sql`SELECT pg_sleep(20)`)
          yield* running(1, "SELECT pg_sleep%")
          const cancelled = yield* proxy.when(({ type }) => type === "cancel", "freeze")
          const answered = yield* proxy.when(({ from, type }) => from === "server" && type === "E", "pass")
          yield* Fiber.interrupt(sleeper)
          yield* cancelled
          yield* query(
            place.writer,
            `SELECT pg_cancel_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE 'SELECT pg_sleep%'`
          )
          yield* answered
          yield* Effect.repeat(
            Effect.sync(() => assert.strictEqual(proxy.connections, 2)),
            Schedule.intersect(Schedule.spaced("2 millis"), Schedule.recurs(20))
          )
          yield* proxy.thaw
          yield* Effect.repeat(
            Effect.sync(() => proxy.connections),
            { schedule: soon, until: (n) => n === 0 }
          )
        }).pipe(Effect.provide(Layer.merge(database, Layer.succeed(Place, place))))
      })
    )
  })

  describe("outages behind PgBouncer", () => {
    it.scopedLive(
      "a server that is lost in a transaction is Disconnected, undone; the loss of an unused one is not noticed",
      () =>
        behind({ default_pool_size: 1 }, {}, (bouncer) =>
          Effect.gen(function* () {
            const sql = yield* Db.writer
            const { name } = yield* Place
            yield* sql`SELECT 1`
            assert.strictEqual(yield* terminateBackends(name), 1)
            yield* insert("kept")
            const error = yield* taggedFailure(
              "Disconnected",
              Db.withTransaction(Effect.all([insert("undone"), terminateBackends(name), insert("late")]))
            )
            assert.strictEqual(error.outcome, "undone")
            yield* bouncer.admin("RECONNECT")
            yield* insert("next")
            assert.deepStrictEqual(yield* stored, ["kept", "next"])
            assert.strictEqual(yield* active, 0)
          })
        )
    )

    it.scopedLive("RECONNECT and PAUSE are not noticed, but for the time they take", () =>
      behind({ default_pool_size: 3 }, {}, (bouncer) =>
        Effect.gen(function* () {
          const rows = (from: number) => Array.from({ length: 50 }, (_, i) => `row ${from + i}`)
          const load = (from: number) =>
            Effect.forEach(rows(from), (name) => Db.withTransaction(insert(name)), {
              concurrency: 10,
              discard: true
            })
          yield* Effect.all([load(0), Effect.repeatN(bouncer.admin("RECONNECT"), 5)], { concurrency: 2 })
          yield* bouncer.admin("PAUSE")
          const paused = yield* Effect.fork(load(100))
          yield* waiting(bouncer, 10)
          yield* bouncer.admin("RESUME")
          yield* Fiber.join(paused)
          assert.lengthOf(yield* stored, 100)
        })
      )
    )

    it.scopedLive("KILL ends open work with typed errors, and work goes on after RESUME", () =>
      behind({}, {}, (bouncer) =>
        Effect.gen(function* () {
          const { name } = yield* Place
          const sql = yield* Db.writer
          const statement = yield* Effect.fork(taggedFailure("Disconnected", sql`SELECT pg_sleep(20)`))
          yield* running(1, "SELECT pg_sleep%")
          const error = yield* taggedFailure(
            "Disconnected",
            Db.withTransaction(Effect.all([insert("undone"), bouncer.admin(`KILL ${name}`), insert("late")]))
          )
          assert.strictEqual(error.outcome, "undone")
          assert.strictEqual((yield* Fiber.join(statement)).outcome, "inDoubt")
          yield* bouncer.admin(`RESUME ${name}`)
          yield* insert("next")
          assert.deepStrictEqual(yield* stored, ["next"])
          assert.strictEqual(yield* active, 0)
        })
      )
    )

    it.scopedLive("PgBouncer may end in the middle and come back: all errors are typed, and work goes on", () =>
      behind({}, {}, (bouncer) =>
        Effect.gen(function* () {
          const sql = yield* Db.writer
          const statement = yield* Effect.fork(taggedFailure("Disconnected", sql`SELECT pg_sleep(20)`))
          yield* running(1, "SELECT pg_sleep%")
          const error = yield* taggedFailure(
            "Disconnected",
            Db.withTransaction(Effect.all([insert("undone"), bouncer.stop, insert("late")]))
          )
          assert.strictEqual(error.outcome, "undone")
          assert.strictEqual((yield* Fiber.join(statement)).outcome, "inDoubt")
          assert.strictEqual((yield* taggedFailure("ConnectFailed", once(insert("down")))).reason, "unreachable")
          yield* bouncer.start
          yield* insert("next")
          assert.deepStrictEqual(yield* stored, ["next"])
          assert.strictEqual(yield* active, 0)
        })
      )
    )

    it.scopedLive("a statement that got no server within PgBouncer's time was not sent, and is retried", () =>
      behind({ default_pool_size: 1, query_wait_timeout: 1 }, {}, (bouncer) =>
        Effect.gen(function* () {
          const holding = yield* Deferred.make<void>()
          const holder = yield* Effect.fork(Db.withTransaction(Effect.zipLeft(insert("held"), Deferred.await(holding))))
          yield* Effect.repeat(bouncer.admin("SHOW SERVERS"), {
            schedule: soon,
            until: (servers) => servers.some(({ state }) => state === "active")
          })
          for (const refused of [once(insert("refused")), once(Db.withTransaction(insert("refused")))]) {
            assert.strictEqual((yield* taggedFailure("Disconnected", refused)).outcome, "notSent")
          }
          const patient = yield* Effect.fork(insert("patient"))
          yield* waiting(bouncer, 1)
          yield* waiting(bouncer, 0)
          yield* Deferred.succeed(holding, undefined)
          yield* Fiber.joinAll([holder, patient])
          assert.deepStrictEqual(yield* stored, ["held", "patient"])
        })
      )
    )
  })

  describe("failed connects behind PgBouncer", () => {
    it.scopedLive("a failed connect reports the reason: the password, the user, the database, the role", () =>
      Effect.gen(function* () {
        const place = yield* freshDatabase
        const { reader, writer } = pooled(place.name) ?? place
        const cases = {
          authentication: changedUrl(writer, (url) => {
            url.password = "wrong"
          }),
          noSuchDatabase: changedUrl(writer, (url) => {
            url.pathname = "/nowhere"
          }),
          wrongRole: reader
        }
        for (const [reason, url] of Object.entries(cases)) {
          assert.strictEqual((yield* refusal({ writer: url })).reason, reason)
        }
        const unknown = changedUrl(writer, (url) => {
          url.username = "nobody"
        })
        assert.strictEqual((yield* refusal({ writer: unknown })).reason, "authentication")
      })
    )

    it.scopedLive("a failed connect reports too many clients, and a disabled database", () =>
      behind({ max_client_conn: 2 }, {}, (bouncer) =>
        Effect.gen(function* () {
          const { name } = yield* Place
          const options = { writer: bouncer.url, mode: "transactionPooler", startup: "lazy" } as const
          const another = Effect.flatMap(Layer.build(Db.layer(options)), (context) =>
            Effect.provide(insert("x"), context)
          )
          yield* bouncer.admin(`DISABLE ${name}`)
          assert.strictEqual((yield* taggedFailure("ConnectFailed", once(another))).reason, "startingUp")
          yield* bouncer.admin(`ENABLE ${name}`)
          yield* another
          assert.strictEqual((yield* taggedFailure("ConnectFailed", once(another))).reason, "tooManyConnections")
        })
      )
    )

    it.scopedLive("a failed connect reports that PgBouncer has no server behind it, or one that does not answer", () =>
      Effect.gen(function* () {
        const place = yield* freshTable
        const proxy = yield* makeProxy(place.writer)
        const bouncer = yield* makeBouncer(proxy.url)
        const options = { writer: bouncer.url, connectTimeout: "500 millis" } as const
        yield* proxy.refuse
        assert.strictEqual((yield* refusal(options)).reason, "unresponsive")
        yield* proxy.accept
        // the database opens once there is a server
        yield* Effect.repeat(
          Effect.exit(Effect.scoped(Layer.build(Db.layer({ ...options, mode: "transactionPooler" })))),
          {
            schedule: soon,
            until: Exit.isSuccess
          }
        )
        // PgBouncer accepts every client now, because it knows the server's answer
        yield* proxy.freeze
        assert.strictEqual((yield* refusal(options)).reason, "unresponsive")
      })
    )
  })
})
