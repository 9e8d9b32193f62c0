import { assert, it } from "@effect/vitest"
import * as Config from "effect/Config"
import * as ConfigError from "effect/ConfigError"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import * as LogLevel from "effect/LogLevel"
import * as Redacted from "effect/Redacted"
import { type Database, DatabaseConfig } from "effect-db"
import { describe } from "vitest"
import { Db } from "../support/databases.js"

const make = (options: Database.Options) => Either.getOrThrow(DatabaseConfig.make("app", options))

const at = (url: string) => make({ writer: Redacted.make(url) }).writer

describe("DatabaseConfig", () => {
  it("DatabaseConfig reads the host, port, database, user and password of a URL", () => {
    const { database, host, name, password, passwordFile, port, ssl, username } = at(
      "postgres://me:p%40ss@db.example.com:6543/my%2Fdb?application_name=x"
    )
    assert.deepStrictEqual([name, host, port], ["db.example.com:6543", "db.example.com", 6543])
    assert.deepStrictEqual([database, username, passwordFile, ssl], ["my/db", "me", undefined, true])
    assert.strictEqual(password && Redacted.value(password), "p@ss")
    assert.strictEqual(at("postgresql://me@localhost/app").port, 5432)
    assert.strictEqual(at("postgres://me@[::1]:5433/app").host, "::1")
    assert.strictEqual(at("postgres://me@%2Fvar%2Frun%2Fpostgresql/app").host, "/var/run/postgresql")
    assert.strictEqual(at("postgres://me@localhost/app?host=/tmp").name, "/tmp")
  })

  it("TLS is verified when a host is neither loopback nor a socket, unless the URL states otherwise", () => {
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

  it("the defaults are those that examples/guides/settings.md states", () => {
    const { echo, listenHeartbeat, pool, readerRetryDelay, readers, session, shutdownTimeout, startup } = make({
      writer: { host: "localhost", database: "app", username: "me" }
    })
    assert.deepStrictEqual(pool, {
      maxConnections: 10,
      idleExit: false,
      minConnections: 0,
      acquireTimeout: 30_000,
      maxOutageWaiters: 1000,
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
      mode: "session",
      statementTimeout: undefined,
      lockTimeout: undefined,
      idleInTransactionTimeout: 60_000,
      applicationName: "effect-db",
      keepAlive: 30_000,
      preparedStatements: 256,
      limits: {
        maxRowBytes: 268_435_456,
        maxNoticeBytes: 67_108_864,
        maxStartupBytes: 1_048_576,
        maxScramIterations: 1_000_000
      },
      types: undefined
    })
    assert.deepStrictEqual([readers, startup, shutdownTimeout, readerRetryDelay], [[], "verify", 5000, 5000])
    assert.strictEqual(listenHeartbeat, 30_000)
    assert.strictEqual(echo, LogLevel.None)
  })

  it("each host of a cluster may be the writer, and is a reader that takes standbys only", () => {
    const url = Redacted.make("postgres://me:pw@a,b:6000,[::1]/app?connect_timeout=3&application_name=x")
    const { cluster, options, readers, writer } = make({ hosts: { url, ssl: false } })
    assert.deepStrictEqual([writer.name, writer.target], ["a:5432,b:6000,[::1]:5432", "read-write"])
    assert.deepStrictEqual(
      readers.map(({ connectTimeout, database, hosts, name, own, target, username }) => ({
        ...{ name, target, database, username, connectTimeout, own, hosts: hosts.length }
      })),
      ["a:5432", "b:6000", "[::1]:5432"].map((name) => ({
        ...{ name, target: "standby" as const, database: "app", username: "me", connectTimeout: 3000, hosts: 1 },
        own: { applicationName: "x" }
      }))
    )
    assert.deepStrictEqual([cluster?.discover, cluster?.discoverInterval], [undefined, 30_000])
    assert.deepStrictEqual(Object.keys(options).includes("writer"), false)
  })

  it("a discovered host gets the TLS that the settings require for it", () => {
    const endpointOf = (url: string, host: string) =>
      make({ hosts: Redacted.make(url), discover: Effect.succeed([{ host }]) }).cluster?.endpointOf({
        ...{ name: host, host, address: undefined, port: 5432 }
      }).ssl
    const url = "postgres://me:pw@/app"
    assert.deepStrictEqual([endpointOf(url, "db"), endpointOf(url, "127.0.0.1")], [true, false])
    assert.isFalse(endpointOf(`${url}?sslmode=disable`, "db"))
    assert.throws(() => endpointOf(`${url}?sslmode=prefer`, "db"))
    assert.throws(() => endpointOf(`${url}?channel_binding=require`, "127.0.0.1"))
  })

  it("echo takes a boolean or a log level, and another word is refused", () => {
    const writer = Redacted.make("postgres://me@localhost/app")
    const echo = (given: Database.Options["echo"]) => make({ writer, echo: given }).echo
    assert.deepStrictEqual([false, true, "Warning" as const, "None" as const].map(echo), [
      LogLevel.None,
      LogLevel.All,
      LogLevel.Warning,
      LogLevel.None
    ])
    // values that a program without types may pass
    const refused = DatabaseConfig.make("app", { writer, echo: "warn" as "Warning" })
    assert.isTrue(Either.isLeft(refused) && refused.left.setting === "echo" && refused.left.given === '"warn"')
  })

  it("keepAlive takes false or a duration that the system supports, and no other", () => {
    const writer = { host: "localhost", database: "app", username: "me" }
    assert.strictEqual(make({ writer, keepAlive: "2 minutes" }).session.keepAlive, 120_000)
    assert.strictEqual(make({ writer, keepAlive: false }).session.keepAlive, undefined)
    for (const keepAlive of [0, "999 millis", "10 hours", Duration.infinity] as const) {
      const refused = DatabaseConfig.make("app", { writer, keepAlive })
      assert.isTrue(Either.isLeft(refused) && refused.left.setting === "keepAlive", String(keepAlive))
    }
  })

  describe("messages about wrong settings", () => {
    const secret = Redacted.make("postgres://me:secret@localhost/app")
    const server = { host: "localhost", database: "app", username: "me" }

    // values that a program without types, or a cast, may pass
    const bad: ReadonlyArray<readonly [setting: string, given: string, options: Record<string, unknown>]> = [
      ...["maxConnections", "minConnections", "maxOverflow", "preparedStatements"].flatMap((setting) =>
        [-1, 1.5, Number.NaN, Number.POSITIVE_INFINITY].map(
          (value) => [setting, String(value), { [setting]: value }] as const
        )
      ),
      ["maxConnections", "0", { maxConnections: 0 }],
      ["maxConnections", "10", { maxConnections: "10" }],
      ["minConnections", "11", { minConnections: 11 }],
      ["minConnections", "3", { minConnections: 3, maxConnections: 2 }],
      ["minConnections", "1", { minConnections: 1, strategy: "none" }],
      ["minConnections", "2", { minConnections: 2, strategy: "single" }],
      ["maxConnections", "3", { maxConnections: 3, strategy: "single" }],
      ["maxConnections", "2", { maxOverflow: 1, strategy: "assertSingle" }],
      ["strategy", "unknown", { strategy: "singleton" }],
      ["order", "unknown", { order: "random" }],
      ["resetOnReturn", "unknown", { resetOnReturn: "rollback" }],
      ["startup", "unknown", { startup: "later" }],
      ...[
        "acquireTimeout",
        "connectTimeout",
        "idleTimeout",
        "maxLifetime",
        "validateAfterIdle",
        "queueTarget",
        "leakThreshold",
        "statementTimeout",
        "lockTimeout",
        "idleInTransactionTimeout",
        "shutdownTimeout",
        "readerRetryDelay"
      ].flatMap((setting) =>
        [-1, Number.NaN, Number.NEGATIVE_INFINITY, "-5 seconds", "soon", true, [-1, 0]].map(
          (value) => [setting, String(value), { [setting]: value }] as const
        )
      ),
      ...["queueTarget", "leakThreshold", "connectTimeout", "maxLifetime"].map(
        (setting) => [setting, "0", { [setting]: 0 }] as const
      ),
      ...["acquireTimeout", "connectTimeout", "shutdownTimeout"].map(
        (setting) => [setting, "infinite", { [setting]: Number.POSITIVE_INFINITY }] as const
      ),
      ["passwordFile", "empty", { passwordFile: "" }],
      ["passwordFile", "text with a NUL character", { passwordFile: "/run/\0" }],
      ["writer.passwordFile", "empty", { writer: { ...server, passwordFile: "" } }],
      [
        "writer.passwordFile",
        "given beside a password",
        { writer: { ...server, password: Redacted.make("secret"), passwordFile: "/run/secrets/app" } }
      ],
      ["passwordFile", "given beside credentials", { passwordFile: "/run/secrets/app", credentials: Effect.never }],
      ["credentials", "no effect", { credentials: { username: "me", password: Redacted.make("secret") } }],
      ["onConnect", "no effect", { onConnect: () => Effect.void }],
      ["onCheckout", "no effect", { onCheckout: "SELECT 1" }],
      ["resetOnReturn", "no effect", { resetOnReturn: () => Effect.void }],
      ["applicationName", "empty", { applicationName: "" }],
      ["writer", "neither a redacted URL nor a server in parts", { writer: "postgres://me:secret@localhost/app" }],
      ["writer", "missing", { writer: undefined }],
      ["hosts", "given beside writer", { hosts: secret }],
      ["hosts", "given beside readers", { writer: undefined, readers: [], hosts: secret }],
      ["hosts", "neither a redacted URL nor a server in parts", { writer: undefined, hosts: "a,b" }],
      ["hosts", "a:5432 twice", { writer: undefined, hosts: { ...server, host: ["a", "b", "a"] } }],
      ["hosts.host", "missing", { writer: undefined, hosts: { ...server, host: [] } }],
      [
        "hosts.targetSessionAttrs",
        "any for a cluster, whose roles are discovered",
        { writer: undefined, hosts: { ...server, targetSessionAttrs: "any" } }
      ],
      [
        "hosts.socket",
        "a stream, which has no hosts",
        { writer: undefined, hosts: { socket: Effect.never, database: "app", username: "me" } }
      ],
      ["discover", "given without hosts", { discover: Effect.succeed([]) }],
      ["discoverInterval", "given without hosts", { discoverInterval: "1 minute" }],
      ["discover", "no effect", { writer: undefined, hosts: secret, discover: () => Effect.succeed([]) }],
      ["discoverInterval", "0", { writer: undefined, hosts: secret, discoverInterval: 0 }],
      [
        "discover",
        "given behind a transaction pooler",
        { writer: undefined, hosts: secret, mode: "transactionPooler", discover: Effect.succeed([]) }
      ],
      ["writer.host", "missing", { writer: { ...server, host: undefined } }],
      ["readers", "no list", { readers: secret }],
      ["readers[1].database", "no text", { readers: [secret, { ...server, database: 3 }] }]
    ]
    for (const [setting, given, options] of bad) {
      const shown = JSON.stringify(options, (_, value: unknown) => (typeof value === "number" ? String(value) : value))
      it(`the setting ${setting} is refused as ${given}: ${shown}`, () => {
        // the type would refuse these
        const made = DatabaseConfig.make("app", { writer: secret, ...options } as Database.Options)
        const error = Either.isLeft(made) ? made.left : assert.fail("it was taken")
        assert.deepStrictEqual([error.setting, error.given], [setting, given])
        assert.include(error.message, `database "app": setting "${setting}" is ${given}; expected `)
        assert.notInclude(error.message, "secret@")
      })
    }
  })

  it("a layer with wrong settings from Config fails with the setting, not with a defect", async () => {
    const layer = (settings: ReadonlyArray<readonly [string, string]>) =>
      Db.layerConfig({
        writer: Config.redacted("URL"),
        maxConnections: Config.integer("MAX").pipe(Config.withDefault(undefined)),
        minConnections: Config.integer("MIN").pipe(Config.withDefault(0)),
        strategy: Config.literal(
          "pooled",
          "none",
          "single",
          "assertSingle"
        )("STRATEGY").pipe(Config.withDefault("pooled" as const)),
        queueTarget: Config.duration("QUEUE_TARGET").pipe(Config.withDefault(Duration.millis(50))),
        passwordFile: Config.string("PASSWORD_FILE").pipe(Config.withDefault(undefined)),
        startup: Config.succeed("lazy" as const)
      }).pipe(
        Layer.provide(
          Layer.setConfigProvider(
            ConfigProvider.fromMap(new Map([["URL", "postgres://me@localhost/app"], ...settings]))
          )
        )
      )
    const failure = (...settings: ReadonlyArray<readonly [string, string]>) =>
      Effect.runPromise(Effect.flip(Effect.scoped(Layer.build(layer(settings)))))
    for (const [setting, ...settings] of [
      ["maxConnections", ["MAX", "-3"]],
      ["minConnections", ["MIN", "11"]],
      ["maxConnections", ["MAX", "3"], ["STRATEGY", "single"]],
      ["queueTarget", ["QUEUE_TARGET", "0 millis"]],
      ["passwordFile", ["PASSWORD_FILE", ""]]
    ] as ReadonlyArray<readonly [string, ...ReadonlyArray<readonly [string, string]>]>) {
      const error = await failure(...settings)
      assert.isTrue("setting" in error && error.setting === setting, String(error))
    }
    assert.isTrue(ConfigError.isConfigError(await failure(["STRATEGY", "singleton"])))
    assert.isTrue(ConfigError.isConfigError(await failure(["MAX", "1.5"])))
    await Effect.runPromise(Effect.scoped(Layer.build(layer([["STRATEGY", "single"]]))))
  })

  it("a statementTimeout becomes a whole number of milliseconds that the server accepts", () => {
    const limits = (statementTimeout: Duration.DurationInput) =>
      make({ writer: Redacted.make("postgres://me@localhost/app"), statementTimeout }).session.statementTimeout
    assert.deepStrictEqual(
      ["7 seconds", 0, 0.2, "60 days", Duration.infinity].map((_) => limits(_ as "7 seconds")),
      [
        7000, 0,
        // rounded up, because 0 would be no limit
        1, 2_147_483_647, 0
      ]
    )
  })

  it("the settings of each strategy are accepted", () => {
    const limits = (options: Partial<Database.Options>) => {
      const { maxConnections, maxOverflow, minConnections, strategy } = make({
        writer: Redacted.make("postgres://me@localhost/app"),
        ...options
      }).pool
      return { maxConnections, maxOverflow, minConnections, strategy }
    }
    assert.deepStrictEqual(limits({ strategy: "single", minConnections: 1 }), {
      maxConnections: 1,
      maxOverflow: 0,
      minConnections: 1,
      strategy: "single"
    })
    assert.deepStrictEqual(limits({ strategy: "none", maxConnections: 3 }), {
      maxConnections: 3,
      maxOverflow: 0,
      minConnections: 0,
      strategy: "none"
    })
    assert.deepStrictEqual(limits({ maxConnections: 5, maxOverflow: 10, minConnections: 5 }), {
      maxConnections: 5,
      maxOverflow: 10,
      minConnections: 5,
      strategy: "pooled"
    })
  })

  it("a transaction pooler is recognised by the mode, or by any URL of the database, and nothing is prepared then", () => {
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
    // the mode has precedence
    assert.deepStrictEqual(session({ writer: pooled, mode: "session" }), ["session", 256])
    assert.deepStrictEqual(session({ writer: Redacted.make("postgres://me@localhost/app?pgbouncer=false") }), [
      "session",
      256
    ])
    const unclear = DatabaseConfig.make("app", { writer: Redacted.make("postgres://me@localhost/app?pgbouncer=1") })
    assert.strictEqual(Either.getOrThrow(Either.flip(unclear)).setting, "writer (pgbouncer)")
  })
})
