/** The settings that the driver receives: complete, copied, and none from elsewhere. */
import * as fs from "node:fs"
import * as path from "node:path"
import { inspect } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { type Database, DatabaseConfig } from "effect-db"
import * as EmbeddedPostgres from "effect-db/EmbeddedPostgres"
import pg from "pg"
import { describe } from "vitest"
import { encodeParameter } from "../../src/internal/protocol/parameterEncoder.js"
import { Db } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { freshDatabase, query } from "../support/server.js"
import { makeIdentity, makeTlsGate } from "../support/tlsGate.js"

/** Puts variables into the environment until the scope ends. */
const environment = (variables: Readonly<Record<string, string>>): Effect.Effect<void, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const before = Object.keys(variables).map((name) => [name, process.env[name]] as const)
      Object.assign(process.env, variables)
      return before
    }),
    (before) =>
      Effect.sync(() => {
        for (const [name, value] of before) {
          if (value === undefined) delete process.env[name]
          else process.env[name] = value
        }
      })
  ).pipe(Effect.asVoid)

/** Returns the server that a URL names, and its password. */
const parts = (url: Redacted.Redacted<string>) => {
  const { hostname, password, pathname, port, username } = new URL(Redacted.value(url))
  const server = { host: hostname, port: Number(port), database: pathname.slice(1), username }
  return { server, password: decodeURIComponent(password) }
}

/** Creates a database behind a TLS gate; returns a client's certificate, and options without `ssl`. */
const gated = (passphrase?: string) =>
  Effect.gen(function* () {
    const { writer } = yield* freshDatabase
    const client = makeIdentity("client", passphrase)
    const gate = yield* makeTlsGate(writer, [client])
    const { password, server } = parts(writer)
    const options = { ...server, host: "localhost", port: gate.port, password: Redacted.make(password) }
    return { client, gate, options, password }
  })

const answer = (options: Database.Options) =>
  Effect.provide(
    Effect.flatMap(
      Db.writer,
      (sql) => sql`SELECT current_setting('application_name') AS name, current_setting('search_path') AS path`
    ),
    Db.layer(options)
  )

/** Returns the reason for which a database cannot be opened. */
const reason = (options: Database.Options) =>
  Effect.map(Effect.flip(Effect.scoped(Layer.build(Db.layer(options)))), (error) =>
    error._tag === "ConnectFailed" ? error.reason : error._tag
  )

describe("the environment", () => {
  it.scopedLive("the environment gives a connection neither host, user, database, options nor TLS", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      yield* environment({
        PGHOST: "nowhere.invalid",
        PGPORT: "1",
        PGUSER: "nobody",
        PGDATABASE: "nothing",
        PGPASSWORD: "wrong",
        PGOPTIONS: "-c search_path=elsewhere",
        PGAPPNAME: "another",
        PGCLIENTENCODING: "latin1",
        PGSSLMODE: "require",
        PGSSLNEGOTIATION: "direct",
        PGREPLICATION: "database",
        PGBINARY: "1",
        PGCONNECT_TIMEOUT: "1",
        NODE_TLS_REJECT_UNAUTHORIZED: "1"
      })
      assert.deepStrictEqual(yield* answer({ writer, mode: "transactionPooler" }), [
        { name: "effect-db", path: '"$user", public' }
      ])
      assert.deepStrictEqual(yield* answer({ writer }), [{ name: "effect-db", path: '"$user", public' }])
    })
  )

  it.scopedLive("a connection without a password takes none from PGPASSWORD or a password file", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const { password, server } = parts(writer)
      const passfile = path.join(directory, "passfile")
      fs.writeFileSync(passfile, `*:*:*:*:${password}\n`, { mode: 0o600 })
      yield* Effect.addFinalizer(() => Effect.sync(() => fs.rmSync(passfile)))
      yield* environment({ PGPASSWORD: password, PGPASSFILE: passfile })
      assert.strictEqual(yield* reason({ writer: server }), "authentication")
      assert.strictEqual(yield* reason({ writer: { ...server, password: Redacted.make("") } }), "authentication")
    })
  )

  it.scopedLive("an empty user name is not replaced by PGUSER", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const { password, server } = parts(writer)
      yield* environment({ PGUSER: server.username, USER: server.username })
      const credentials = Effect.succeed({ username: "", password: Redacted.make(password) })
      assert.strictEqual(yield* reason({ writer: server, credentials }), "credentials")
    })
  )

  it.scopedLive("the internal sessions of an embedded server take nothing from the environment", () =>
    Effect.gen(function* () {
      yield* environment({ PGSSLNEGOTIATION: "direct", PGREPLICATION: "database", PGOPTIONS: "-c nonsense=1" })
      const { primary } = yield* EmbeddedPostgres.make({ directory, databases: ["app"] })
      assert.lengthOf(yield* answer({ writer: primary.url("app") }), 1)
    })
  )

  it.scopedLive("NODE_TLS_REJECT_UNAUTHORIZED does not turn off the verification of a certificate", () =>
    Effect.gen(function* () {
      const { client, options } = yield* gated()
      yield* environment({ NODE_TLS_REJECT_UNAUTHORIZED: "0" })
      assert.strictEqual(yield* reason({ writer: { ...options, ssl: { ...client } } }), "tls")
      assert.strictEqual(yield* reason({ writer: { ...options, ssl: true } }), "tls")
    })
  )

  it.scopedLive("a connection takes nothing from the driver's own defaults", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const strange = {
        statement_timeout: 1,
        lock_timeout: 1,
        query_timeout: 1,
        options: "-c work_mem=64kB",
        parseInputDatesAsUTC: true,
        binary: true
      }
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          const before = { ...pg.defaults }
          Object.assign(pg.defaults, strange)
          return before
        }),
        (before) => Effect.sync(() => Object.assign(pg.defaults, { options: undefined }, before))
      )
      yield* environment({ TZ: "Asia/Kolkata" })
      const date = new Date("2026-01-02T03:04:05.006Z")
      class Own {
        toPostgres = () => date
      }
      const settings = Effect.flatMap(
        Db.writer,
        (sql) => sql`SELECT current_setting('statement_timeout') AS statement, current_setting('work_mem') AS memory
          FROM pg_sleep(0.05)`
      )
      for (const mode of ["session", "transactionPooler"] as const) {
        assert.deepStrictEqual(yield* Effect.provide(settings, Db.layer({ writer, mode })), [
          { statement: "0", memory: "4MB" }
        ])
        const dates = Effect.flatMap(
          Db.writer,
          (sql) =>
            sql`SELECT ${date}::text AS one, ${[[date]]}::text[] AS many, ${new Own()}::text AS own, ${[new Own()]}::text[] AS owns`
        )
        const text = "2026-01-02T08:34:05.006+05:30"
        assert.deepStrictEqual(yield* Effect.provide(dates, Db.layer({ writer, mode })), [
          { one: text, many: [[text]], own: text, owns: [text] }
        ])
      }
    })
  )
})

describe("a parameter", () => {
  it.scoped("a date is written as node-postgres writes it by default, in several time zones and years", () =>
    Effect.gen(function* () {
      // the published type lacks `utils`
      const { utils } = pg as unknown as { readonly utils: { readonly prepareValue: (value: unknown) => unknown } }
      const years = [-44, 0, 1, 99, 1883, 1969, 1999, 2026, 9999, 12_345]
      for (const zone of ["UTC", "America/St_Johns", "Asia/Kolkata", "Europe/Amsterdam", "Pacific/Auckland"]) {
        yield* environment({ TZ: zone })
        for (const year of years) {
          for (const month of [0, 6]) {
            const date = new Date(Date.UTC(2000, month, 2, 3, 4, 5, 6))
            date.setUTCFullYear(year)
            assert.strictEqual(encodeParameter(date), utils.prepareValue(date))
          }
        }
      }
      assert.throws(() => encodeParameter([new Date(Number.NaN)]), "invalid")
    })
  )
})

describe("a server with impossible connection settings", () => {
  it.scopedLive("invalid TLS options fail with ConnectFailed and the reason tls", () =>
    Effect.gen(function* () {
      const { client, gate, options } = yield* gated()
      const senseless: ReadonlyArray<object> = [
        { ca: gate.server.cert, cert: client.cert, key: "no key at all" },
        { ca: gate.server.cert, cert: "no certificate", key: client.key },
        { ca: gate.server.cert, ciphers: "none such" },
        { ca: gate.server.cert, minVersion: "TLSv9" },
        { ca: 1 }
      ]
      for (const ssl of senseless) assert.strictEqual(yield* reason({ writer: { ...options, ssl } }), "tls")
    })
  )

  it.scopedLive("an ssl setting that is neither a boolean nor an object is refused", () =>
    Effect.gen(function* () {
      const { options } = yield* gated()
      for (const ssl of ["require", 1, "true", "no-verify"]) {
        const refusal = yield* reason({ writer: { ...options, ssl: ssl as never } })
        assert.include(["ConfigInvalid", "tls"], refusal, String(ssl))
      }
    })
  )

  it.scopedLive("an impossible address fails with ConnectFailed and the reason unreachable", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const { password, server } = parts(writer)
      for (const host of [`/${"long".repeat(100)}`, "spaces in it", `${"a".repeat(300)}.example`]) {
        const options = { ...server, host, ssl: false, password: Redacted.make(password) }
        assert.strictEqual(yield* reason({ writer: options, connectTimeout: "500 millis" }), "unreachable", host)
      }
    })
  )
})

describe("TLS options", () => {
  it.scopedLive("TLS options may be frozen and used again, and are never changed", () =>
    Effect.gen(function* () {
      const { client, gate, options } = yield* gated("open sesame")
      const ssl = { ca: gate.server.cert, ...client, passphrase: "open sesame" }
      const before = Object.getOwnPropertyDescriptors(ssl)
      yield* answer({ writer: { ...options, ssl } })
      assert.deepStrictEqual(Object.getOwnPropertyDescriptors(ssl), before)
      yield* answer({ writer: { ...options, ssl: Object.freeze({ ...ssl }) } })
      // as the driver leaves the object after another pool of the program has used it
      yield* answer({ writer: { ...options, ssl: Object.defineProperty({ ...ssl }, "key", { enumerable: false }) } })
      assert.deepStrictEqual([...new Set(gate.clients.map(({ name }) => name))], ["client"])
    })
  )

  it.scopedLive("a change of TLS options after the database was opened changes nothing", () =>
    Effect.gen(function* () {
      const { client, gate, options } = yield* gated()
      const ssl: { ca: string; cert: string; key: string } = { ca: gate.server.cert, ...client }
      yield* Effect.gen(function* () {
        ssl.key = "gone"
        const sql = yield* Db.writer
        assert.deepStrictEqual(yield* sql`SELECT 1 AS n`, [{ n: 1 }])
      }).pipe(Effect.provide(Db.layer({ writer: { ...options, ssl }, startup: "lazy" })))
    })
  )

  it.scopedLive("a configuration, a client, its config, service and status show no key, passphrase or password", () =>
    Effect.gen(function* () {
      const { client, gate, options, password } = yield* gated("open sesame")
      const ssl = { ca: gate.server.cert, ...client, passphrase: "open sesame" }
      const secret = { ...options, ssl }
      const line = client.key.split("\n")[1] ?? ""
      const hidden = (what: string, value: object) => {
        const shown = inspect(value, { depth: 30 })
        for (const text of shown.includes("[Circular") ? [shown] : [shown, JSON.stringify(value)]) {
          assert.notInclude(text, line, what)
          assert.notInclude(text, "open sesame", what)
          assert.notInclude(text, password, what)
        }
      }
      hidden("configuration", Either.getOrThrow(DatabaseConfig.make("app", { writer: secret, readers: [secret] })))
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        yield* sql`SELECT 1`
        hidden("config", sql.config)
        hidden("client", sql)
        hidden("service", yield* Db)
        hidden("status", yield* Db.status)
        // the secrets are there, so another client can be created from the config
        const copied = sql.config.ssl
        assert.strictEqual(typeof copied === "object" && copied.key, client.key)
        assert.strictEqual(typeof copied === "object" && copied.passphrase, "open sesame")
      }).pipe(Effect.provide(Db.layer({ writer: secret })))
    })
  )
})

describe("a role whose password takes many iterations", () => {
  it.scopedLive("a role with 150,000 SCRAM iterations logs in, unless the settings allow fewer", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* freshDatabase
      const { server } = parts(writer)
      const role = `${name}_role`
      yield* Effect.acquireRelease(
        query(writer, `SET scram_iterations = 150000; CREATE ROLE ${role} LOGIN PASSWORD 'secret'`),
        () => query(writer, `DROP ROLE ${role}`)
      )
      const own = { ...server, username: role, password: Redacted.make("secret") }
      yield* answer({ writer: own })
      const refused = yield* Effect.flip(
        Effect.scoped(Layer.build(Db.layer({ writer: own, maxScramIterations: 149_999 })))
      )
      assert.strictEqual(refused._tag === "ConnectFailed" && refused.reason, "authentication")
      assert.include(refused.message, "150000")
      assert.include(refused.message, "maxScramIterations")
    })
  )
})
