import { Console } from "node:console"
import * as fs from "node:fs"
import * as path from "node:path"
import { Writable } from "node:stream"
import { inspect } from "node:util"
import type { PgClient } from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Context from "effect/Context"
import * as DefaultServices from "effect/DefaultServices"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import { type Database, DatabaseConfig, DatabaseError, RetryPolicy } from "effect-db"
import { describe } from "vitest"
import { Audit, Db } from "../support/databases.js"
import { emptyFolder } from "../support/directory.js"
import { eventually } from "../support/eventually.js"
import { taggedFailure } from "../support/failures.js"
import { fill, given, holder, open, session, users } from "../support/providedCredentials.js"
import { makeProxy } from "../support/proxy.js"
import type { Role } from "../support/roles.js"
import { freshDatabase, query, terminateBackends } from "../support/server.js"

/** Listens on a channel, sends a notification until it arrives, and returns it. */
const hearHello = (sql: PgClient, admin: Redacted.Redacted<string>) =>
  Effect.gen(function* () {
    const heard = yield* Effect.fork(Stream.runHead(sql.listen("news")))
    const say = Effect.zipRight(query(admin, "SELECT pg_notify('news', 'hello')"), Fiber.poll(heard))
    yield* eventually(say, Option.isSome)
    return yield* Fiber.join(heard)
  })

class Refused extends Error {
  readonly _tag = "Refused"
}

const refused = new Refused("the vault is sealed")

/** The ways in which a provider fails, each with the cause in the error that the caller receives. */
const faults: ReadonlyArray<readonly [string, Effect.Effect<DatabaseConfig.Credentials, unknown>, unknown]> = [
  ["fails", Effect.fail(refused), refused],
  ["fails after a while", Effect.zipRight(Effect.yieldNow(), Effect.fail(refused)), refused],
  ["dies", Effect.die(refused), refused],
  [
    "throws",
    Effect.suspend(() => {
      throw refused
    }),
    refused
  ],
  ["is interrupted", Effect.interrupt, undefined],
  ["hangs", Effect.never, undefined],
  ["hangs and cannot be interrupted", Effect.uninterruptible(Effect.never), undefined],
  // the value that a program passes may differ from its type
  ["gives nothing", Effect.succeed(undefined as never), undefined],
  ["gives a password that is not redacted", Effect.succeed({ username: "me", password: "s3cr3t" as never }), undefined]
]

describe("credentials from a provider", () => {
  it.scopedLive("credentials are requested once for each new connection, user and password together", () =>
    Effect.gen(function* () {
      const { a, b, provider, writer } = yield* given
      const { sql } = yield* open({ writer, credentials: provider.credentials })
      assert.strictEqual(provider.asked, 0)
      const [one, two, three] = yield* fill(sql, 3)
      assert.strictEqual(provider.asked, 3)
      assert.strictEqual(new Set([one, two, three].map((held) => held?.[0].pid)).size, 3)
      yield* fill(sql, 3)
      assert.strictEqual(provider.asked, 3)
      provider.use(b)
      const first = yield* session(sql)
      assert.strictEqual(first.user, a.name)
      assert.strictEqual(provider.asked, 3)
      const held = yield* Effect.all([holder(sql), holder(sql), holder(sql), holder(sql)])
      const seen = yield* Effect.all(held)
      assert.deepStrictEqual(
        seen.map(([{ user }]) => user),
        [a.name, a.name, a.name, b.name]
      )
      assert.strictEqual(provider.asked, 4)
    })
  )

  it.scopedLive("credentials that the server refuses are requested once more, and the caller receives no error", () =>
    Effect.gen(function* () {
      const { a, admin, b, provider, writer } = yield* given
      const { facts, sql } = yield* open({ writer, credentials: provider.credentials })
      const right = a.credentials
      const outdated = Effect.succeed({ username: a.name, password: Redacted.make("of yesterday") })
      const notAllowed = Effect.succeed(b.credentials)
      yield* query(admin, `ALTER ROLE ${b.name} NOLOGIN`)
      // SQLSTATE 28P01, a wrong password, and 28000, a role that may not log in
      for (const [i, wrong] of [outdated, notAllowed].entries()) {
        provider.answer = Effect.suspend(() => {
          provider.answer = Effect.succeed(right)
          return wrong
        })
        const release = yield* holder(sql)
        assert.strictEqual(provider.asked, 2 * (i + 1))
        const busy = yield* release
        assert.strictEqual(busy[0].user, a.name)
        yield* query(admin, "SELECT pg_terminate_backend($1, 10000)", [busy[0].pid])
      }
      assert.isEmpty(facts.filter((fact) => fact._tag === "ConnectFailed"))
    })
  )

  it.scopedLive("credentials that are refused twice fail with ConnectFailed, and are not requested a third time", () =>
    Effect.gen(function* () {
      const { a, provider, writer } = yield* given
      const { figures, sql } = yield* open({ writer, credentials: provider.credentials })
      provider.answer = Effect.succeed({ username: a.name, password: Redacted.make("of yesterday") })
      const error = yield* taggedFailure("ConnectFailed", sql`SELECT 1`)
      assert.strictEqual(error.reason, "authentication")
      assert.strictEqual(provider.asked, 2)
      provider.use(a)
      assert.strictEqual((yield* session(sql)).user, a.name)
      assert.strictEqual((yield* figures).total, 1)
    })
  )

  it.scopedLive("fixed credentials that the server refuses are tried once", () =>
    Effect.gen(function* () {
      const { a, admin } = yield* given
      const proxy = yield* makeProxy(admin)
      const { hostname, pathname, port } = new URL(Redacted.value(proxy.url))
      const { sql } = yield* open({
        writer: {
          host: hostname,
          port: Number(port),
          database: pathname.slice(1),
          username: a.name,
          password: Redacted.make("wrong")
        },
        // no room for another connect in place of one that is late
        maxConnections: 1
      })
      assert.strictEqual((yield* taggedFailure("ConnectFailed", sql`SELECT 1`)).reason, "authentication")
      assert.strictEqual(proxy.accepted, 1)
    })
  )

  for (const [fault, answer, cause] of faults) {
    it.scopedLive(`a caller waits for a connection in use if the provider ${fault}`, () =>
      Effect.gen(function* () {
        const { provider, writer } = yield* given
        const { figures, heard, sql } = yield* open({
          writer,
          credentials: provider.credentials,
          connectTimeout: "300 millis"
        })
        const release = yield* holder(sql)
        provider.answer = answer
        const waiting = yield* Effect.fork(session(sql))
        yield* heard("ConnectFailed")
        assert.strictEqual((yield* figures).waiting, 1)
        const [{ pid }] = yield* release
        assert.strictEqual((yield* Fiber.join(waiting)).pid, pid)
      })
    )

    it.scopedLive(`a caller gets ConnectFailed if the provider ${fault} and no connection is left`, () =>
      Effect.gen(function* () {
        const { a, name, provider, writer } = yield* given
        const { figures, sql } = yield* open({
          writer,
          credentials: provider.credentials,
          connectTimeout: "300 millis"
        })
        const { pid } = yield* session(sql)
        provider.answer = answer
        yield* terminateBackends(name)
        const once = sql`SELECT 1`.pipe(RetryPolicy.with(RetryPolicy.never))
        // connectTimeout, and a second more
        const error = yield* taggedFailure("ConnectFailed", Effect.timeout(once, "1300 millis"))
        assert.strictEqual(error.reason, "credentials")
        const told = error.cause instanceof Error ? error.cause.cause : undefined
        if (cause !== undefined) assert.strictEqual(Redacted.isRedacted(told) && Redacted.value(told), cause)
        assert.notInclude(error.message, refused.message)
        provider.use(a)
        assert.notStrictEqual((yield* session(sql)).pid, pid)
        // a connect whose provider hangs is not awaited, so it may still be under way
        yield* eventually(figures, ({ connecting }) => connecting === 0)
        assert.deepStrictEqual(yield* figures, { active: 0, connecting: 0, idle: 1, total: 1, waiting: 0 })

        const eager = Db.layer({
          writer,
          credentials: answer,
          connectTimeout: "300 millis"
        })
        const atStart = yield* taggedFailure(
          "ConnectFailed",
          Effect.timeout(Effect.scoped(Layer.build(eager)), "1300 millis")
        )
        assert.strictEqual(atStart.reason, "credentials")
      })
    )
  }

  it.scopedLive("the message of a provider's failure appears in no rendering of errors and in no log", () =>
    Effect.gen(function* () {
      const { provider, writer } = yield* given
      const secret = "hunter2hunter2"
      const said: Array<string> = []
      // prints values as a program may, with all their fields
      const printed = (...all: ReadonlyArray<unknown>) => {
        new Console(new Writable({ write: (chunk, _, done) => done(void said.push(String(chunk))) })).log(...all)
        for (const one of all)
          said.push(JSON.stringify(one) ?? "", String(one), inspect(one, { depth: 99, showHidden: true }))
      }
      const logger = Logger.make(({ cause, message }) =>
        printed(Cause.pretty(cause, { renderErrorCause: true }), message, cause)
      )
      const work = Effect.gen(function* () {
        const { sql } = yield* open({ writer, credentials: provider.credentials, echo: "Trace" })
        const answers = [
          Effect.fail(new Error(`the password ${secret} is too old`)),
          Effect.die(secret),
          Effect.fail({ secret })
        ]
        for (const answer of answers) {
          provider.answer = answer
          const cause = yield* Effect.flip(Effect.sandbox(sql`SELECT 1`.pipe(RetryPolicy.with(RetryPolicy.never))))
          yield* Effect.logError("no", cause)
          const error = yield* taggedFailure("ConnectFailed", Effect.failCause(cause))
          printed(Cause.pretty(cause, { renderErrorCause: true }), cause, error, error.cause)
          assert.isTrue(error.cause instanceof Error && Redacted.isRedacted(error.cause.cause))
        }
        // lets the provider's fiber end, because its failure might be logged then
        yield* Effect.yieldNow()
      })
      yield* work.pipe(
        Effect.provide(Logger.replace(Logger.defaultLogger, logger)),
        Logger.withMinimumLogLevel(LogLevel.All)
      )
      assert.isAbove(said.filter((text) => text.includes("the provider of credentials failed")).length, 3)
      assert.deepStrictEqual(
        said.filter((text) => text.includes(secret)),
        []
      )
    })
  )

  it.scopedLive("a provider that hangs is interrupted after its caller is interrupted and the layer is released", () =>
    Effect.gen(function* () {
      const { provider, writer } = yield* given
      const stopped = yield* Deferred.make<void>()
      provider.answer = Effect.onInterrupt(Effect.never, () => Deferred.succeed(stopped, undefined))
      yield* Effect.scoped(
        Effect.gen(function* () {
          const { sql } = yield* open({ writer, credentials: provider.credentials, connectTimeout: "1 hour" })
          const fiber = yield* Effect.fork(sql`SELECT 1`)
          yield* eventually(
            Effect.sync(() => provider.asked),
            (n) => n === 1
          )
          yield* Fiber.interrupt(fiber)
        })
      )
      yield* Deferred.await(stopped)
    })
  )

  it.scopedLive("a provider logs, traces and uses services as the rest of the program does", () =>
    Effect.gen(function* () {
      const { a, writer } = yield* given
      class Vault extends Context.Tag("test/Vault")<
        Vault,
        { readonly read: Effect.Effect<DatabaseConfig.Credentials> }
      >() {}
      const said: Array<unknown> = []
      const spans: Array<string> = []
      const native = Context.get(DefaultServices.liveServices, Tracer.Tracer)
      const tracer = Tracer.make({
        span: (...span) => {
          spans.push(span[0])
          return native.span(...span)
        },
        context: native.context
      })
      const live = Layer.unwrapEffect(
        Effect.map(Vault, ({ read }) =>
          Db.layer({ writer, credentials: Effect.withSpan(Effect.zipRight(Effect.log("asked"), read), "read") })
        )
      ).pipe(
        Layer.provide(Layer.succeed(Vault, { read: Effect.succeed(a.credentials) })),
        Layer.provide(Layer.setTracer(tracer)),
        Layer.provide(
          Logger.replace(
            Logger.defaultLogger,
            Logger.make(({ message }) => void said.push(message))
          )
        )
      )
      const sql = yield* Effect.provide(Db.writer, yield* Layer.build(live))
      assert.strictEqual((yield* session(sql)).user, a.name)
      assert.deepStrictEqual(said, [["asked"]])
      assert.deepStrictEqual(spans, ["read", "sql.execute"])
    })
  )

  it.scopedLive("a provider may be a Config, which is read again for each connection", () =>
    Effect.gen(function* () {
      const { a, b, name, writer } = yield* given
      const use = ({ credentials: { password, username } }: Role) => {
        process.env.EFFECT_DB_TEST_ROLE = username
        process.env.EFFECT_DB_TEST_PASSWORD = password === undefined ? "" : Redacted.value(password)
      }
      yield* Effect.addFinalizer(() =>
        Effect.sync(() => {
          delete process.env.EFFECT_DB_TEST_ROLE
          delete process.env.EFFECT_DB_TEST_PASSWORD
        })
      )
      const credentials = Config.all({
        username: Config.string("EFFECT_DB_TEST_ROLE"),
        password: Config.redacted("EFFECT_DB_TEST_PASSWORD")
      })
      const { sql } = yield* open({ writer, credentials })
      const missing = yield* taggedFailure("ConnectFailed", sql`SELECT 1`.pipe(RetryPolicy.with(RetryPolicy.never)))
      assert.strictEqual(missing.reason, "credentials")
      use(a)
      assert.strictEqual((yield* session(sql)).user, a.name)
      use(b)
      yield* terminateBackends(name)
      assert.strictEqual((yield* session(sql)).user, b.name)
    })
  )

  it.scopedLive("layerConfig takes a provider", () =>
    Effect.gen(function* () {
      const { a, provider, writer } = yield* given
      const live = Db.layerConfig({
        writer: Config.redacted("DATABASE_URL"),
        credentials: Config.succeed(provider.credentials),
        maxConnections: Config.succeed(2)
      })
      const context = yield* Effect.withConfigProvider(
        Layer.build(live),
        ConfigProvider.fromMap(new Map([["DATABASE_URL", Redacted.value(writer)]]))
      )
      assert.strictEqual((yield* session(yield* Effect.provide(Db.writer, context))).user, a.name)
      assert.strictEqual(provider.asked, 1)
    })
  )

  it.scopedLive("a provider may read from another database, even if its own was opened in a transaction there", () =>
    Effect.gen(function* () {
      const { a, admin, b, name, writer } = yield* given
      const secrets = yield* freshDatabase
      yield* query(secrets.writer, "CREATE TABLE secret (username text, password text)")
      const store = ({ credentials: { password, username } }: Role) =>
        query(secrets.writer, "INSERT INTO secret VALUES ($1, $2)", [username, password && Redacted.value(password)])
      yield* store(a)
      const audit = yield* Layer.build(Audit.layer({ writer: secrets.writer }))
      const credentials = Effect.gen(function* () {
        const sql = yield* Audit.writer
        const rows = yield* sql<{ username: string; password: string }>`SELECT username, password FROM secret`
        const { password, username } = rows.at(-1) ?? assert.fail("no secret")
        return { username, password: Redacted.make(password) }
      }).pipe(Effect.provide(audit))
      // the transaction has ended when the first connection is made
      const { sql } = yield* Effect.provide(Audit.withTransaction(open({ writer, credentials })), audit)
      assert.strictEqual((yield* session(sql)).user, a.name)
      yield* query(secrets.writer, "DELETE FROM secret")
      yield* store(b)
      yield* terminateBackends(name)
      assert.strictEqual((yield* session(sql)).user, b.name)
      assert.deepStrictEqual(yield* users(admin, name), [b.name])
    })
  )

  it.scopedLive("the listening connection requests credentials as well", () =>
    Effect.gen(function* () {
      const { admin, provider, writer } = yield* given
      const { sql } = yield* open({ writer, credentials: provider.credentials })
      assert.deepStrictEqual(yield* hearHello(sql, admin), Option.some("hello"))
      assert.strictEqual(provider.asked, 1)
    })
  )

  it.scopedLive("a provider that fails at its first call does not fail the listeners", () =>
    Effect.gen(function* () {
      const { a, admin, provider, writer } = yield* given
      const { sql } = yield* open({ writer, credentials: provider.credentials })
      provider.answer = Effect.suspend(() => {
        provider.use(a)
        return Effect.fail(refused)
      })
      assert.deepStrictEqual(yield* hearHello(sql, admin), Option.some("hello"))
      assert.strictEqual(provider.asked, 2)
    })
  )

  it.scopedLive("an interrupted statement of a session with provided credentials is cancelled on the server", () =>
    Effect.gen(function* () {
      const { a, admin, b, name, provider, writer } = yield* given
      const { sql } = yield* open({ writer, credentials: provider.credentials })
      // this query itself matches, too
      const sleeping = query(
        admin,
        "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND state = 'active' AND query LIKE '%pg_sleep(60)%'",
        [name]
      )
      const fiber = yield* Effect.fork(sql`SELECT pg_sleep(60)`)
      yield* eventually(sleeping, (rows) => rows.length === 2)
      // the provider returns other credentials from now on
      provider.use(b)
      yield* Fiber.interrupt(fiber)
      yield* eventually(sleeping, (rows) => rows.length === 1)
      // the connection is kept until new credentials are requested
      assert.strictEqual((yield* session(sql)).user, a.name)
    })
  )

  it("credentials beside a password file are refused", () => {
    const options = { writer: Redacted.make("postgres://localhost/app"), credentials: Effect.never, passwordFile: "/x" }
    const error = Either.getOrElse(Either.flip(DatabaseConfig.make("app", options)), () => assert.fail("accepted"))
    assert.strictEqual(error.setting, "passwordFile")
  })
})

describe("secrets", () => {
  it.scopedLive("no password is in any error, log, observation, status, setting or service", () =>
    Effect.gen(function* () {
      const { a, admin, b, name, provider, writer } = yield* given
      const folder = yield* emptyFolder
      const passwordFile = path.join(folder, "password")
      const inFile = "f1le-s3cr3t"
      fs.writeFileSync(passwordFile, inFile)
      const wrong = Redacted.make("wr0ng-s3cr3t")
      const withUrl = new URL(Redacted.value(writer))
      withUrl.username = a.name
      withUrl.password = "ur1-s3cr3t"
      const { hostname, port } = withUrl
      const server = { host: hostname, port: Number(port), database: name, username: a.name }
      const secrets = ["s3cr3t", Redacted.value(admin).split(":")[2]?.split("@")[0] ?? assert.fail("no password")]
      const said: Array<string> = []
      const attempt = (text: () => string | undefined) => {
        try {
          said.push(text() ?? "")
        } catch {
          // a value with a cycle has no JSON
        }
      }
      const say = (...all: ReadonlyArray<unknown>) => {
        for (const one of all) {
          const isError = one instanceof Error
          attempt(() => String(one))
          attempt(() => JSON.stringify(one))
          attempt(() => inspect(one, { depth: Number.POSITIVE_INFINITY, showHidden: isError }))
          if (isError) attempt(() => one.stack)
        }
      }
      const logger = Logger.make(({ annotations, cause, message, spans }) => say(message, cause, annotations, spans))
      const logged = Logger.replace(Logger.defaultLogger, logger)
      const cases: ReadonlyArray<Database.Options> = [
        { writer, credentials: provider.credentials },
        { writer, credentials: Effect.succeed({ username: a.name, password: wrong }) },
        { writer: Redacted.make(withUrl.href), readers: [Redacted.make(withUrl.href)] },
        { writer: { ...server, password: wrong } },
        { writer: server, passwordFile },
        { writer: { ...server, passwordFile } },
        { writer, credentials: Effect.sync(() => ({ username: a.name, password: "s3cr3t" as never })) },
        { writer: Redacted.make("postgres://me:s3cr3t@"), credentials: provider.credentials },
        { writer: { ...server, password: wrong, passwordFile } }
      ]
      for (const options of cases) {
        const config = DatabaseConfig.make("app", options)
        // a provider that fails is called again until acquireTimeout
        const impatient = { ...options, acquireTimeout: "2 seconds" } as const
        say(options, config, Either.isRight(config) ? config.right : config.left)
        if (Either.isLeft(config)) continue
        yield* Effect.gen(function* () {
          const { context, facts, heard, sql } = yield* open(impatient)
          provider.use(a)
          say(
            sql,
            sql.config,
            yield* Effect.exit(sql`SELECT 1`),
            yield* Effect.exit(DatabaseError.refine(sql`SELECT 1`))
          )
          const exit = yield* Effect.exit(sql.reserve)
          say(exit, Exit.isFailure(exit) ? Cause.pretty(exit.cause) : "")
          if (options.credentials === provider.credentials) {
            const held = yield* holder(sql)
            provider.use(b)
            yield* session(sql)
            yield* heard("CredentialsRotated")
            yield* held
          }
          say(yield* Effect.provide(Db.status, context), facts, context, Context.get(context, Db))
          say(yield* Effect.exit(Effect.scoped(Layer.build(Db.layer(options)))))
        }).pipe(Effect.scoped, Effect.provide(logged))
      }
      assert.isAbove(said.length, 50)
      for (const { credentials } of [a, b]) {
        if (credentials.password !== undefined) secrets.push(Redacted.value(credentials.password))
      }
      for (const text of said) for (const secret of secrets) assert.notInclude(text, secret)
    })
  )
})
