/** Interruptions, outages and failed connects behind PgBouncer. */
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { DatabaseError, RetryPolicy } from "effect-db"
import { describe } from "vitest"
import { type Bouncer, behindBouncer, hasBouncer, makeBouncer, pooled } from "../support/bouncer.js"
import { changedUrl } from "../support/changedUrl.js"
import { active, Db, freshTable, insert, Place, stored } from "../support/databases.js"
import { eventually, until } from "../support/eventually.js"
import { taggedFailure } from "../support/failures.js"
import { behindPooler, refusal } from "../support/pooler.js"
import { makeProxy, sends } from "../support/proxy.js"
import { freshDatabase, query, terminateBackends } from "../support/server.js"
import { identityFiles, makeIdentity } from "../support/tlsGate.js"

const once = RetryPolicy.with(RetryPolicy.never)

/** Waits until the server of a database runs `count` matching statements. */
const running = (count: number, like: string) =>
  Effect.flatMap(Place, ({ writer }) =>
    eventually(
      query(
        writer,
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query LIKE $1",
        [like]
      ),
      (rows) => rows.length === count
    )
  )

/** Waits until `count` clients of a PgBouncer wait for a server. */
const waiting = (bouncer: Bouncer, count: number) =>
  eventually(
    bouncer.admin("SHOW CLIENTS"),
    (clients) => clients.filter(({ state }) => state === "waiting").length === count
  )

/** Waits until a client of a PgBouncer has a server. */
const held = (bouncer: Bouncer) =>
  eventually(bouncer.admin("SHOW SERVERS"), (servers) => servers.some(({ state }) => state === "active"))

describe.skipIf(!hasBouncer)(behindBouncer, () => {
  describe("interruption behind PgBouncer", () => {
    it.scopedLive("an interruption of many statements at once affects neither another statement nor PgBouncer", () =>
      behindPooler({ default_pool_size: 4 }, { maxConnections: 40 }, (bouncer) =>
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

    it.scopedLive("an interrupted statement that waits for a server of PgBouncer never runs", () =>
      behindPooler({ default_pool_size: 1 }, {}, (bouncer) =>
        Effect.gen(function* () {
          const released = yield* Deferred.make<void>()
          const holder = yield* Effect.fork(
            Db.withTransaction(Effect.zipLeft(insert("held"), Deferred.await(released)))
          )
          yield* held(bouncer)
          const statement = yield* Effect.fork(insert("interrupted"))
          yield* waiting(bouncer, 1)
          yield* Effect.timeout(Fiber.interrupt(statement), "1300 millis")
          // PgBouncer detects that the client is gone only when it has a free server
          yield* eventually(Db.status, ({ servers }) => servers[0]?.writes?.total === 1)
          yield* Deferred.succeed(released, undefined)
          yield* Fiber.join(holder)
          yield* insert("next")
          assert.deepStrictEqual(yield* stored, ["held", "next"])
        })
      )
    )

    it.scopedLive(
      "a cancel at the release of a layer that overtakes its statement is sent once more, and the statement is undone",
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
          const isCancelled = until(() => proxy.accepted > accepted && proxy.connections === connections)
          yield* Effect.fork(Effect.zipRight(isCancelled, proxy.thaw))
          yield* Scope.close(scope, Exit.void)
          const error = yield* Fiber.join(fiber)
          assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
        })
    )

    it.scopedLive("a cancel sends the client's certificate if PgBouncer demands one", () =>
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

    it.scopedLive("a connection is not closed before its cancel is done, because PgBouncer 1.18 would exit", () =>
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
          yield* eventually(
            Effect.sync(() => proxy.connections),
            (n) => n === 0
          )
        }).pipe(Effect.provide(Layer.merge(database, Layer.succeed(Place, place))))
      })
    )
  })

  describe("outages behind PgBouncer", () => {
    it.scopedLive(
      "a transaction whose server is lost is Disconnected, undone, and the loss of an unused one affects no statement",
      () =>
        behindPooler({ default_pool_size: 1 }, {}, (bouncer) =>
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

    it.scopedLive("RECONNECT and PAUSE delay work and fail none", () =>
      behindPooler({ default_pool_size: 3 }, {}, (bouncer) =>
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

    it.scopedLive("KILL fails open work with typed errors, and new work succeeds after RESUME", () =>
      behindPooler({}, {}, (bouncer) =>
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

    it.scopedLive("a stop of PgBouncer fails work with typed errors, and new work succeeds after its start", () =>
      behindPooler({}, {}, (bouncer) =>
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

    it.scopedLive("a statement that gets no server within query_wait_timeout is notSent, and is retried", () =>
      behindPooler({ default_pool_size: 1, query_wait_timeout: 1 }, {}, (bouncer) =>
        Effect.gen(function* () {
          const holding = yield* Deferred.make<void>()
          const holder = yield* Effect.fork(Db.withTransaction(Effect.zipLeft(insert("held"), Deferred.await(holding))))
          yield* eventually(bouncer.admin("SHOW SERVERS"), (servers) => servers.some(({ state }) => state === "active"))
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
      behindPooler({ max_client_conn: 2 }, {}, (bouncer) =>
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

    it.scopedLive("a connect to a PgBouncer whose server is down, or does not answer, fails as unresponsive", () =>
      Effect.gen(function* () {
        const place = yield* freshTable
        const proxy = yield* makeProxy(place.writer)
        const bouncer = yield* makeBouncer(proxy.url)
        const options = { writer: bouncer.url, connectTimeout: "500 millis" } as const
        yield* proxy.refuse
        assert.strictEqual((yield* refusal(options)).reason, "unresponsive")
        yield* proxy.accept
        // the database opens once there is a server
        yield* eventually(
          Effect.exit(Effect.scoped(Layer.build(Db.layer({ ...options, mode: "transactionPooler" })))),
          Exit.isSuccess
        )
        // PgBouncer accepts every client now, because it has kept the parameters of the server
        yield* proxy.freeze
        assert.strictEqual((yield* refusal(options)).reason, "unresponsive")
      })
    )
  })
})
