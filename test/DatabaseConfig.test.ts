import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Either from "effect/Either"
import * as LogLevel from "effect/LogLevel"
import * as Redacted from "effect/Redacted"
import { type Database, DatabaseConfig } from "effect-db"
import { describe } from "vitest"

const make = (options: Database.Options) => Either.getOrThrow(DatabaseConfig.make("app", options))

const at = (url: string) => make({ writer: Redacted.make(url) }).writer

describe("DatabaseConfig", () => {
  it("reads URLs", () => {
    const { password, ...rest } = at("postgres://me:p%40ss@db.example.com:6543/my%2Fdb?application_name=x")
    assert.deepStrictEqual(rest, {
      name: "db.example.com:6543",
      host: "db.example.com",
      port: 6543,
      database: "my/db",
      username: "me",
      passwordFile: undefined,
      ssl: true
    })
    assert.strictEqual(password && Redacted.value(password), "p@ss")
    assert.strictEqual(at("postgresql://me@localhost/app").port, 5432)
    assert.strictEqual(at("postgres://me@[::1]:5433/app").host, "::1")
    assert.strictEqual(at("postgres://me@%2Fvar%2Frun%2Fpostgresql/app").host, "/var/run/postgresql")
    assert.strictEqual(at("postgres://me@localhost/app?host=/tmp").name, "/tmp")
  })

  it("verifies TLS wherever a host is not loopback or a socket, unless the URL says otherwise in so many words", () => {
    for (const host of ["localhost", "127.0.0.1", "127.1.2.3", "[::1]", "%2Ftmp"]) {
      assert.strictEqual(at(`postgres://me@${host}/app`).ssl, false, host)
    }
    for (const host of ["db", "10.0.0.1", "127.evil.example", "localhost.example"]) {
      assert.strictEqual(at(`postgres://me@${host}/app`).ssl, true, host)
    }
    assert.strictEqual(at("postgres://me@db/app?sslmode=disable").ssl, false)
    assert.strictEqual(at("postgres://me@db/app?sslmode=require").ssl, true)
    assert.strictEqual(at("postgres://me@localhost/app?sslmode=verify-full").ssl, true)
    assert.deepStrictEqual(at("postgres://me@db/app?sslmode=no-verify").ssl, { rejectUnauthorized: false })
  })

  it("has the defaults that the README states", () => {
    const { echo, listenHeartbeat, pool, readerRetryDelay, readers, session, shutdownTimeout, startup } = make({
      writer: { host: "localhost", database: "app", username: "me" }
    })
    assert.deepStrictEqual(pool, {
      maxConnections: 10,
      minConnections: 0,
      acquireTimeout: 30_000,
      connectTimeout: 5000,
      idleTimeout: 300_000,
      maxLifetime: 1_800_000,
      validateAfterIdle: 1000,
      order: "lifo",
      strategy: "pooled",
      maxOverflow: 0,
      queueTarget: 50,
      leakThreshold: Number.POSITIVE_INFINITY
    })
    assert.deepStrictEqual(session, {
      statementTimeout: undefined,
      lockTimeout: undefined,
      idleInTransactionTimeout: 60_000,
      applicationName: "effect-db",
      keepAlive: 30_000,
      preparedStatements: 256,
      types: undefined
    })
    assert.deepStrictEqual([readers, startup, shutdownTimeout, readerRetryDelay], [[], "verify", 5000, 5000])
    assert.strictEqual(listenHeartbeat, 30_000)
    assert.strictEqual(echo, LogLevel.None)
  })

  it("echo is a switch or a level; another word is refused", () => {
    const writer = Redacted.make("postgres://me@localhost/app")
    const echo = (given: Database.Options["echo"]) => make({ writer, echo: given }).echo
    assert.deepStrictEqual([false, true, "Warning" as const, "None" as const].map(echo), [
      LogLevel.None,
      LogLevel.All,
      LogLevel.Warning,
      LogLevel.None
    ])
    // what a program without types may pass
    const refused = DatabaseConfig.make("app", { writer, echo: "warn" as "Warning" })
    assert.isTrue(Either.isLeft(refused) && refused.left.setting === "echo" && refused.left.given === '"warn"')
  })

  it("takes a keepAlive that the system can keep, or none", () => {
    const writer = { host: "localhost", database: "app", username: "me" }
    assert.strictEqual(make({ writer, keepAlive: "2 minutes" }).session.keepAlive, 120_000)
    assert.strictEqual(make({ writer, keepAlive: false }).session.keepAlive, undefined)
    for (const keepAlive of [0, "999 millis", "10 hours", Duration.infinity] as const) {
      const refused = DatabaseConfig.make("app", { writer, keepAlive })
      assert.isTrue(Either.isLeft(refused) && refused.left.setting === "keepAlive", String(keepAlive))
    }
  })
})
