import { inspect } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { type Database, DatabaseError } from "effect-db"
import { describe } from "vitest"
import { changedUrl } from "../support/changedUrl.js"
import { Audit, active, Db } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { freshDatabase, query } from "../support/server.js"
import { closedPort, listenOnPort } from "../support/tcp.js"

const secret = "s3cr3t-w0rd"

/** Waits until a database of the server has no connection of effect-db any more. */
const allClosed = (name: string, writer: Redacted.Redacted<string>) =>
  eventually(
    query<{ n: number }>(
      writer,
      "SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = $1 AND application_name = 'effect-db'",
      [name]
    ),
    (rows) => rows[0]?.n === 0
  )

/**
 * Opens a database that cannot be opened, and returns its failure. Asserts that it fails within its
 * timeout and a second, and that neither the failure nor the log shows the secret.
 */
const failure = (options: Database.Options) =>
  Effect.gen(function* () {
    const said: Array<string> = []
    const logger = Logger.make(({ cause, message }) => void said.push(inspect(message), Cause.pretty(cause)))
    const exit = yield* Layer.build(Db.layer({ connectTimeout: "1 second", ...options })).pipe(
      Effect.scoped,
      Effect.provide(Logger.replace(Logger.defaultLogger, logger)),
      Effect.timeout("2 seconds"),
      Effect.exit
    )
    assert.isTrue(Exit.isFailure(exit))
    const error = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
    const all = [
      ...said,
      inspect(exit, { depth: 10 }),
      inspect(error, { depth: 10, showHidden: true }),
      String(error),
      JSON.stringify(error)
    ]
    for (const text of all) assert.notInclude(text, secret)
    assert.isTrue(DatabaseError.isDatabaseError(error))
    return error as DatabaseError.DatabaseError
  })

const reasonOf = (error: DatabaseError.DatabaseError) => (error._tag === "ConnectFailed" ? error.reason : error._tag)

describe("start-up", () => {
  it.scopedLive("a wrong password, user, database, host or port fails with ConnectFailed and the reason", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const port = yield* closedPort
      const { host } = new URL(Redacted.value(writer))
      const cases = [
        [
          changedUrl(writer, (url) => {
            url.password = secret
          }),
          "authentication",
          host
        ],
        [
          changedUrl(writer, (url) => {
            url.username = "nobody_here"
          }),
          "authentication",
          host
        ],
        [
          changedUrl(writer, (url) => {
            url.pathname = "/not_there"
          }),
          "noSuchDatabase",
          host
        ],
        [
          changedUrl(writer, (url) => {
            url.port = String(port)
          }),
          "unreachable",
          `127.0.0.1:${port}`
        ],
        [
          changedUrl(writer, (url) => {
            url.host = "no-such-host.invalid:5432"
          }),
          "unreachable",
          "no-such-host.invalid:5432"
        ]
      ] as const
      for (const [url, reason, server] of cases) {
        const error = yield* failure({ writer: url })
        assert.strictEqual(reasonOf(error), reason)
        assert.include(error.message, `database "app" at ${server}`)
      }
    })
  )

  it.scopedLive("a server that accepts and never answers fails the start as unresponsive, within the timeout", () =>
    Effect.gen(function* () {
      const port = yield* listenOnPort()
      const error = yield* failure({ writer: Redacted.make(`postgres://me:${secret}@127.0.0.1:${port}/app`) })
      assert.strictEqual(reasonOf(error), "unresponsive")
      assert.include(error.message, `127.0.0.1:${port}`)
    })
  )

  it.scopedLive("a server without TLS is refused when TLS is required", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const error = yield* failure({
        writer: changedUrl(writer, (url) => void url.searchParams.set("sslmode", "require"))
      })
      assert.strictEqual(reasonOf(error), "tls")
    })
  )

  it.scopedLive("a malformed URL or setting fails with ConfigInvalid that names the setting and never the secret", () =>
    Effect.gen(function* () {
      const good = Redacted.make(`postgres://me:${secret}@127.0.0.1:1/app`)
      const cases: ReadonlyArray<readonly [Database.Options, string]> = [
        [{ writer: Redacted.make("") }, "writer"],
        [{ writer: Redacted.make(secret) }, "writer"],
        [{ writer: Redacted.make(`http://me:${secret}@host/app`) }, "writer"],
        [{ writer: Redacted.make(`postgres://me:${secret}@host:port/app`) }, "writer (port)"],
        [{ writer: Redacted.make(`postgres://me:${secret}@host:99999/app`) }, "writer (port)"],
        [{ writer: Redacted.make(`postgres://me:${secret}@/app`) }, "writer (host)"],
        [{ writer: Redacted.make(`postgres://host/app`) }, "writer (user)"],
        [{ writer: Redacted.make(`postgres://me:${secret}@host/app?sslmode=constructor`) }, "writer (sslmode)"],
        [{ writer: Redacted.make(`postgres://me:12/${secret}@host/app`) }, "writer"],
        [{ writer: Redacted.make(`postgres://me:12@host/app?${secret}=${secret}`) }, "writer"],
        [{ writer: Redacted.make(`postgres://me:12@host/app?sslmode=${secret}`) }, "writer (sslmode)"],
        [{ writer: Redacted.make(`postgres://me:${secret}@host/app?gssencmode=require`) }, "writer (gssencmode)"],
        [{ writer: good, readers: [Redacted.make("nonsense")] }, "readers[0]"],
        [{ writer: good, maxConnections: 0 }, "maxConnections"],
        [{ writer: good, maxConnections: 2, minConnections: 3 }, "minConnections"],
        [{ writer: good, connectTimeout: "Infinity" as never }, "connectTimeout"],
        [{ writer: good, applicationName: "a\0b" }, "applicationName"],
        [{ writer: { host: "", database: "app", username: "me" } }, "writer.host"],
        [{ writer: { host: "h", port: 1.5, database: "app", username: "me" } }, "writer.port"]
      ]
      for (const [options, setting] of cases) {
        const error = yield* failure(options)
        assert.strictEqual(error._tag, "ConfigInvalid", inspect(error))
        assert.strictEqual(error._tag === "ConfigInvalid" && error.setting, setting)
        assert.include(error.message, 'database "app"')
      }
    })
  )

  it.scopedLive(
    "a dead reader does not stop the start: it is reported, marked down, and the primary serves reads, read-only",
    () =>
      Effect.gen(function* () {
        const { writer } = yield* freshDatabase
        yield* query(writer, "CREATE TABLE item (name text)")
        const port = yield* closedPort
        const said: Array<string> = []
        const logger = Logger.make(({ message }) => void said.push(inspect(message)))
        const dead = changedUrl(writer, (url) => {
          url.port = String(port)
        })
        yield* Effect.gen(function* () {
          yield* eventually(Db.status, (_) => _.servers[1]?.up === false)
          const { servers } = yield* Db.status
          assert.deepStrictEqual(
            servers.map((_) => [_.role, _.up]),
            [
              ["writer", true],
              ["reader", false]
            ]
          )
          const reader = yield* Db.reader
          assert.deepStrictEqual(yield* reader`SELECT 1 AS n`, [{ n: 1 }])
          const refused = yield* reader`INSERT INTO item VALUES ('x')`.pipe(DatabaseError.refine, Effect.flip)
          assert.strictEqual(refused._tag, "ReadOnlyViolation")
        }).pipe(
          Effect.provide(
            Db.layer({ writer, readers: [dead] }).pipe(Layer.provide(Logger.replace(Logger.defaultLogger, logger)))
          )
        )
        assert.isTrue(
          said.some((text) => text.includes(`127.0.0.1:${port}`) && text.includes("reads use other servers"))
        )
      })
  )

  it.scopedLive("a lazy start needs no server before the first statement", () =>
    Effect.gen(function* () {
      const port = yield* closedPort
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const error = yield* sql`SELECT 1`.pipe(DatabaseError.refine, Effect.flip)
        assert.strictEqual(reasonOf(error), "unreachable")
      }).pipe(
        Effect.provide(
          Db.layer({
            writer: Redacted.make(`postgres://me:${secret}@127.0.0.1:${port}/app`),
            startup: "lazy",
            acquireTimeout: "300 millis"
          })
        )
      )
    })
  )

  it.scopedLive("an open database is closed again if another one cannot be opened", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* freshDatabase
      const port = yield* closedPort
      const both = Layer.merge(
        Db.layer({ writer }),
        Audit.layer({
          writer: Redacted.make(`postgres://me:x@127.0.0.1:${port}/audit`),
          connectTimeout: "300 millis"
        })
      )
      const error = yield* Effect.flip(Effect.scoped(Layer.build(both)))
      assert.include(error.message, 'database "audit"')
      yield* allClosed(name, writer)
    })
  )

  it.scopedLive("layerConfig reads settings from Config, and its failure names a missing one", () =>
    Effect.gen(function* () {
      const { reader, writer } = yield* freshDatabase
      const live = Db.layerConfig({
        writer: Config.redacted("DATABASE_URL"),
        readers: Config.array(Config.redacted(), "DATABASE_READER_URLS").pipe(Config.withDefault([])),
        maxConnections: Config.integer("DATABASE_MAX").pipe(Config.withDefault(3))
      })
      const env = new Map([
        ["DATABASE_URL", Redacted.value(writer)],
        ["DATABASE_READER_URLS", Redacted.value(reader)]
      ])
      const { servers } = yield* Db.status.pipe(
        Effect.provide(live),
        Effect.withConfigProvider(ConfigProvider.fromMap(env))
      )
      assert.deepStrictEqual(
        servers.map((_) => [_.role, _.writes?.max ?? _.reads.max]),
        [
          ["writer", 3],
          ["reader", 3]
        ]
      )
      const missing = yield* Effect.flip(
        Db.status.pipe(Effect.provide(live), Effect.withConfigProvider(ConfigProvider.fromMap(new Map())))
      )
      assert.include(String(missing), "DATABASE_URL")
    })
  )

  it.scopedLive("the release of a layer closes every connection, and its client fails with DatabaseClosed", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* freshDatabase
      const client = yield* Effect.provide(
        Effect.tap(Db.writer, (sql) => sql`SELECT 1`),
        Db.layer({ writer })
      )
      const error = yield* client`SELECT 1`.pipe(DatabaseError.refine, Effect.flip)
      assert.strictEqual(error._tag, "DatabaseClosed")
      yield* allClosed(name, writer)
    })
  )

  it.scopedLive("the release of a layer waits for running work for shutdownTimeout, then cuts it off", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* freshDatabase
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(Db.layer({ writer, shutdownTimeout: "300 millis" }), scope)
      const sql = yield* Effect.provide(Db.writer, context)
      const cut = yield* Effect.fork(sql`SELECT pg_sleep(60)`.pipe(DatabaseError.refine, Effect.flip))
      const sleeping = query<{ n: number }>(
        writer,
        "SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = $1 AND query LIKE 'SELECT pg_sleep%' AND state = 'active'",
        [name]
      )
      yield* eventually(sleeping, (rows) => rows[0]?.n === 1)
      // asks the pool, because a query to the server may take longer than the statement
      const done = yield* Effect.fork(sql`SELECT pg_sleep(0.1)`)
      yield* eventually(active, (n) => n === 2).pipe(Effect.provide(context))
      yield* Scope.close(scope, Exit.void)
      yield* Fiber.join(done)
      const error = yield* Fiber.join(cut)
      assert.include(["Disconnected", "StatementTimeout"], error._tag)
      assert.strictEqual((yield* sleeping)[0]?.n, 0)
    })
  )
})
