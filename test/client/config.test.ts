/** The config of a client, from which other libraries can connect. */
import * as fs from "node:fs"
import * as path from "node:path"
import { inspect } from "node:util"
import * as Reactivity from "@effect/experimental/Reactivity"
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { type Database, DatabaseConfig, type ServerConfig } from "effect-db"
import Pg from "pg"
import postgres from "postgres"
import { describe } from "vitest"
import { Db, fresh, Place } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { query } from "../support/server.js"
import { makeTlsServer } from "../support/tls.js"

const configOf = (options: Database.Options) =>
  Effect.map(Effect.provide(Db.writer, Db.layer({ startup: "lazy", ...options })), (sql) => sql.config)

const text = (url: Redacted.Redacted<string> | undefined) => url && Redacted.value(url)

/** Kinds of writers, and the URL with the same settings; undefined if a URL cannot hold them. */
const urls: ReadonlyArray<readonly [what: string, writer: ServerConfig.ServerInput, url: string | undefined]> = [
  ["a URL", Redacted.make("postgres://me:pw@localhost/app"), "postgres://me:pw@localhost:5432/app?sslmode=disable"],
  [
    "a keyword string",
    Redacted.make("host=db.example.com dbname=app user=me password='it\\'s a/b@c'"),
    "postgres://me:it's%20a%2Fb%40c@db.example.com:5432/app?sslmode=verify-full"
  ],
  [
    "several hosts, of which the first is taken",
    Redacted.make("postgres://me:pw@a:1,b:2/app?target_session_attrs=any&load_balance_hosts=random&connect_timeout=3"),
    "postgres://me:pw@a:1/app?sslmode=verify-full"
  ],
  [
    "a URL whose parts are overridden",
    { url: Redacted.make("postgres://me:pw@a/app?sslmode=verify-full"), ssl: false, username: "you", host: "b" },
    "postgres://you:pw@b:5432/app?sslmode=disable"
  ],
  [
    "TLS without verification",
    { url: Redacted.make("postgres://me:pw@a/app"), ssl: { rejectUnauthorized: false } },
    "postgres://me:pw@a:5432/app?sslmode=no-verify"
  ],
  [
    "files, a name and options",
    Redacted.make(
      "postgres://me@[::1]:6/app?sslmode=require&sslrootcert=/a%20b.pem&application_name=x%26y&options=-c%20a%3Db"
    ),
    "postgres://me@[::1]:6/app?sslmode=verify-full&sslrootcert=%2Fa%20b.pem&application_name=x%26y&options=-c%20a%3Db"
  ],
  [
    "a host with the address to connect to",
    Redacted.make("host=a hostaddr=10.0.0.1 dbname=app user=me sslmode=disable"),
    "postgres://me@10.0.0.1:5432/app?sslmode=disable"
  ],
  ["a socket", Redacted.make("postgres://me@%2Fvar%2Frun/app"), "postgres://me@%2Fvar%2Frun:5432/app?sslmode=disable"],
  [
    "a server in parts",
    { host: "localhost", database: "a b", username: "m:e", password: Redacted.make("%") },
    "postgres://m%3Ae:%25@localhost:5432/a%20b?sslmode=disable"
  ],
  ["a certificate as text", { url: Redacted.make("postgres://me:pw@a/app"), ssl: { ca: "certificate" } }, undefined],
  ["a certificate without its name", Redacted.make("postgres://me:pw@a/app?sslmode=verify-ca"), undefined],
  ["a socket that the program opens", { socket: Effect.never, database: "app", username: "me" }, undefined]
]

describe("the config of a client", () => {
  for (const [what, writer, url] of urls) {
    it.effect(
      `a client's config has a URL with the writer's settings, or none if a URL cannot hold them: ${what}`,
      () => Effect.map(configOf({ writer }), (config) => assert.strictEqual(text(config.url), url))
    )
  }

  it.effect("the URL of a client's config gives the same settings as the writer when it is read", () =>
    Effect.forEach(urls, ([what, writer, url]) =>
      Effect.gen(function* () {
        if (url === undefined) return
        const [given, read] = [writer, Redacted.make(url)].map(
          (server) => Either.getOrThrow(DatabaseConfig.make("app", { writer: server })).writer
        )
        assert.isDefined(given)
        assert.isDefined(read)
        const { database, password, port, tlsFiles, username } = read
        assert.deepStrictEqual(
          [database, port, tlsFiles, username, text(password)],
          [given.database, given.port, given.tlsFiles, given.username, text(given.password)],
          what
        )
        assert.deepStrictEqual(read.ssl, given.ssl, what)
      })
    )
  )

  it.effect("the config of a client that is opened from the environment has a URL", () =>
    Effect.gen(function* () {
      const variables = { PGHOST: "a,b", PGPORT: "1,2", PGUSER: "me", PGPASSWORD: "p w", PGDATABASE: "app" }
      const layer = Layer.provide(
        Db.layerEnv("", { startup: "lazy" }),
        Layer.setConfigProvider(ConfigProvider.fromMap(new Map(Object.entries(variables))))
      )
      const { config } = yield* Effect.provide(Db.writer, layer)
      assert.strictEqual(text(config.url), "postgres://me:p%20w@a:1/app?sslmode=verify-full")
    })
  )

  it.effect("a client's config shows no secret", () =>
    Effect.forEach(urls, ([, writer, url]) =>
      Effect.gen(function* () {
        const config = yield* configOf({ writer })
        const shown = `${inspect(config, { depth: 9 })}${JSON.stringify(config)}${String(config.url)}`
        const secret = /pw@|it's|%25/
        // the URL has a password that the pattern finds, unless it has none
        if (url?.includes("@") && new URL(url).password !== "") assert.match(text(config.url) ?? "", secret)
        assert.notMatch(shown, secret)
      })
    )
  )

  it.scopedLive("a client's config has the parts of the writer and the options, named as in the plain client", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* Place
      const { config } = yield* Db.writer
      assert.strictEqual(config.database, name)
      assert.strictEqual(config.host, new URL(Redacted.value(writer)).hostname)
      assert.strictEqual(config.applicationName, "mine")
      assert.strictEqual(config.maxConnections, 3)
      assert.deepStrictEqual(config.spanAttributes, { mine: "yes" })
    }).pipe(Effect.provide(fresh({ applicationName: "mine", maxConnections: 3, spanAttributes: { mine: "yes" } })))
  )

  it.scopedLive(
    "a client's config connects the plain client, node-postgres and postgres.js over TCP, TLS and a socket",
    () =>
      Effect.gen(function* () {
        const server = yield* makeTlsServer
        const password = "p@ss:/?#&=% '\\ ü"
        yield* query(server.url, `CREATE ROLE "m:e" LOGIN PASSWORD '${password.replaceAll("'", "''")}'`)
        yield* query(server.url, 'CREATE DATABASE "a&c"')
        const ca = path.join(directory, "config-ca.pem")
        yield* Effect.acquireRelease(
          Effect.sync(() => fs.writeFileSync(ca, server.certificate)),
          () => Effect.sync(() => fs.rmSync(ca))
        )
        const quoted = password.replace(/[\\']/g, "\\$&")
        const keywords = (host: string, more = "") =>
          Redacted.make(
            `host=${host} port=${server.port} dbname='a&c' user='m:e' password='${quoted}' ${more} options='-c search_path=here'`
          )
        const [inTls, plain] = [true, false].map((tls) => ({ tls, name: "a&c", user: "m:e", path: "here" }))
        const cases = [
          [keywords("127.0.0.1"), plain],
          [keywords("127.0.0.1,127.0.0.1"), plain],
          [keywords(server.sockets), plain],
          [keywords("localhost", `sslmode=verify-full sslrootcert=${ca}`), inTls],
          [{ url: keywords("localhost", "sslmode=disable"), ssl: { rejectUnauthorized: false } }, inTls],
          [{ url: keywords("localhost"), ssl: { ca: server.certificate } }, inTls]
        ] as const
        const question = `SELECT current_database() AS name, session_user AS user, current_setting('search_path') AS path,
          coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false) AS tls`
        for (const [writer, answer] of cases) {
          const config = yield* configOf({ writer })
          const [plainly] = yield* Effect.scoped(
            Effect.flatMap(PgClient.make(config), (sql) => sql.unsafe(question))
          ).pipe(Effect.provide(Reactivity.layer))
          const url = text(config.url)
          assert.deepStrictEqual(plainly, url === undefined ? { ...answer, path: '"$user", public' } : answer)
          if (url === undefined) continue
          const client = new Pg.Client({ connectionString: url })
          yield* Effect.promise(() => client.connect())
          const { rows } = yield* Effect.promise(() => client.query(question))
          yield* Effect.promise(() => client.end())
          assert.deepStrictEqual(rows[0], answer)
          // a URL of postgres.js cannot name a certificate file, TLS without verification or a
          // socket
          if (/sslrootcert|no-verify/.test(url) || url.includes(encodeURIComponent(server.sockets))) continue
          const js = postgres(url, { max: 1 })
          const [row] = yield* Effect.promise(() => js.unsafe(question))
          yield* Effect.promise(() => js.end())
          assert.deepStrictEqual<unknown>({ ...row }, answer)
        }
      }),
    { timeout: 60_000 }
  )
})
