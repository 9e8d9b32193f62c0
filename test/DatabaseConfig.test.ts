import { assert, it } from "@effect/vitest"
import * as Either from "effect/Either"
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
    const { pool, readerRetryDelay, readers, session, shutdownTimeout, startup } = make({
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
      order: "lifo"
    })
    assert.deepStrictEqual(session, {
      mode: "session",
      statementTimeout: undefined,
      lockTimeout: undefined,
      idleInTransactionTimeout: 60_000,
      applicationName: "effect-db",
      preparedStatements: 256,
      types: undefined
    })
    assert.deepStrictEqual([readers, startup, shutdownTimeout, readerRetryDelay], [[], "verify", 5000, 5000])
  })

  it("knows a transaction pooler by its setting, or by any URL of the database, and prepares nothing then", () => {
    const plain = Redacted.make("postgres://me@localhost/app")
    const pooled = Redacted.make("postgres://me@localhost/app?sslmode=disable&pgbouncer=true")
    const session = (options: Database.Options) => {
      const { mode, preparedStatements } = make(options).session
      return [mode, preparedStatements]
    }
    const none = ["transactionPooler", 0]
    assert.deepStrictEqual(session({ writer: plain, mode: "transactionPooler" }), none)
    assert.deepStrictEqual(session({ writer: pooled, preparedStatements: 9 }), none)
    assert.deepStrictEqual(session({ writer: plain, readers: [plain, pooled] }), none)
    // the setting has the last word
    assert.deepStrictEqual(session({ writer: pooled, mode: "session" }), ["session", 256])
    assert.deepStrictEqual(session({ writer: Redacted.make("postgres://me@localhost/app?pgbouncer=false") }), [
      "session",
      256
    ])
    const unclear = DatabaseConfig.make("app", { writer: Redacted.make("postgres://me@localhost/app?pgbouncer=1") })
    assert.strictEqual(Either.getOrThrow(Either.flip(unclear)).setting, "writer (pgbouncer)")
  })
})
