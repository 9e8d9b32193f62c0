/**
 * Settings from libpq's environment, its service and password files, and from `Config` beside plain values.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import { assert, it } from "@effect/vitest"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { DatabaseConfig, DatabaseError } from "effect-db"
import { describe } from "vitest"
import { findPassword } from "../../src/internal/config/passfile.js"
import { parseService } from "../../src/internal/config/serviceFile.js"
import { Db } from "../support/databases.js"
import { emptyFolder } from "../support/directory.js"
import { freshDatabase } from "../support/server.js"

const provider = (variables: Readonly<Record<string, string>>) =>
  ConfigProvider.fromMap(new Map(Object.entries(variables)))

/** Reads the settings of an environment, over which a connection string has precedence. */
const read = (variables: Readonly<Record<string, string>>, prefix = "", url?: string) =>
  Effect.map(
    Effect.withConfigProvider(
      DatabaseConfig.fromEnv(prefix, url === undefined ? undefined : Redacted.make(url)),
      provider(variables)
    ),
    (writer) => Either.getOrThrow(DatabaseConfig.make("app", { writer })).writer
  )

const files = Effect.map(emptyFolder, (folder) => ({
  folder,
  write: (name: string, text: string, mode = 0o600) => {
    const file = path.join(folder, name)
    fs.writeFileSync(file, text)
    fs.chmodSync(file, mode)
    return file
  }
}))

/** Returns the variables with which psql would open a database. */
const variablesOf = (url: Redacted.Redacted<string>) => {
  const { hostname, password, pathname, port, username } = new URL(Redacted.value(url))
  return {
    PGHOST: hostname,
    PGPORT: port,
    PGDATABASE: pathname.slice(1),
    PGUSER: username,
    PGPASSWORD: decodeURIComponent(password)
  }
}

const name = Effect.flatMap(
  Db.writer,
  (sql) => sql<{ name: string; app: string }>`
  SELECT current_database() AS name, current_setting('application_name') AS app`
)

describe("the environment as a configuration", () => {
  it.effect("the environment gives the parameters of a server in variables with a prefix", () =>
    Effect.gen(function* () {
      const variables = {
        A_PGHOST: "a,b",
        A_PGPORT: "1,2",
        A_PGDATABASE: "app",
        A_PGUSER: "me",
        A_PGPASSWORD: "it's \\ secret",
        A_PGAPPNAME: "name",
        A_PGSSLMODE: "require",
        A_PGSSLROOTCERT: "/ca",
        A_PGCONNECT_TIMEOUT: "3",
        A_PGTARGETSESSIONATTRS: "primary",
        A_PGOPTIONS: "-c search_path=x",
        PGHOST: "elsewhere",
        A_PGSSLCERT: ""
      }
      const { database, hosts, password, target, tlsFiles, own, connectTimeout } = yield* read(variables, "A_")
      assert.deepStrictEqual(
        hosts.map(({ name }) => name),
        ["a:1", "b:2"]
      )
      assert.strictEqual(password && Redacted.value(password), "it's \\ secret")
      assert.deepStrictEqual([database, target, tlsFiles?.sslrootcert], ["app", "primary", "/ca"])
      assert.deepStrictEqual(own, { applicationName: "name", startupOptions: "-c search_path=x" })
      assert.strictEqual(connectTimeout, 6000)
    })
  )

  it.scoped("a service file overrides the environment, and a connection string overrides both", () =>
    Effect.gen(function* () {
      const { folder, write } = yield* files
      const file = write(
        "service.conf",
        "# services\n[one]\nhost=of.service\nport=1\nuser=of_service\nport=9\n\n[two]\nhost=other\n"
      )
      const environment = {
        PGHOST: "of.environment",
        PGUSER: "of_environment",
        PGPORT: "3",
        PGDATABASE: "of_environment"
      }
      const named = { ...environment, PGSERVICE: "one", PGSERVICEFILE: file }
      const shown = Effect.map(({ database, name, username }: DatabaseConfig.ServerConfig) => [
        name,
        username,
        database
      ])
      assert.deepStrictEqual(yield* shown(read(named)), ["of.service:1", "of_service", "of_environment"])
      assert.deepStrictEqual(yield* shown(read(named, "", "postgres://of.url/of_url")), [
        "of.url:1",
        "of_service",
        "of_url"
      ])
      // a connection string may name the service itself
      assert.deepStrictEqual(yield* shown(read({ ...named, PGSERVICE: "one" }, "", "service=two port=7")), [
        "other:7",
        "of_environment",
        "of_environment"
      ])
      // without PGSERVICEFILE, the files in the home folder and in the system's folder are read
      write(".pg_service.conf", "[mine]\nhost=home\n")
      write("pg_service.conf", "[theirs]\nhost=system\n")
      const places = { ...environment, HOME: folder, PGSYSCONFDIR: folder }
      assert.strictEqual((yield* read({ ...places, PGSERVICE: "mine" })).host, "home")
      assert.strictEqual((yield* read({ ...places, PGSERVICE: "theirs" })).host, "system")
      for (const [variables, says] of [
        [{ ...places, PGSERVICE: "none" }, "service is not defined"],
        [{ ...environment, PGSERVICE: "one" }, "service is not defined"],
        [{ ...named, PGSERVICEFILE: write("typo.conf", "[one]\nhsot=x\n") }, "host"],
        [{ ...named, PGSERVICEFILE: write("broken.conf", "[one]\npassword s3cret\n") }, "parameter=value"]
      ] as const) {
        const error = String(yield* Effect.flip(read(variables)))
        assert.include(error, says)
        assert.notInclude(error, "s3cret")
      }
    })
  )

  it.scopedLive("layerEnv opens a database from the environment, with options beside it", () =>
    Effect.gen(function* () {
      const place = yield* freshDatabase
      const variables = variablesOf(place.writer)
      const prefixed = Object.fromEntries(Object.entries(variables).map(([key, value]) => [`X_${key}`, value]))
      for (const [layer, all] of [
        [Db.layerEnv(), variables],
        [Db.layerEnv("X_", { applicationName: "option", maxConnections: Config.integer("MAX") }), prefixed]
      ] as const) {
        const [row] = yield* Effect.provide(
          name,
          Layer.provide(layer, Layer.setConfigProvider(provider({ ...all, MAX: "2" })))
        )
        assert.strictEqual(row?.name, place.name)
      }
      const missing = yield* Effect.flip(
        Effect.scoped(Layer.build(Layer.provide(Db.layerEnv(), Layer.setConfigProvider(provider({})))))
      )
      assert.isTrue(missing._tag === "ConfigInvalid" && missing.setting === "writer (host)")
    })
  )

  it.scopedLive("a password file that the environment names is read for each new connection", () =>
    Effect.gen(function* () {
      const place = yield* freshDatabase
      const { PGPASSWORD, ...variables } = variablesOf(place.writer)
      const { folder, write } = yield* files
      const line = `${variables.PGHOST}:${variables.PGPORT}:*:${variables.PGUSER}:`
      write(".pgpass", `# one line each\nother:*:*:*:no\n${line}${PGPASSWORD}\n`)
      const open = (more: Readonly<Record<string, string>>, strategy: "none" | "pooled" = "pooled") =>
        Layer.provide(
          Db.layerEnv("", { strategy, connectTimeout: "2 seconds" }),
          Layer.setConfigProvider(provider({ ...variables, ...more }))
        )
      assert.strictEqual((yield* Effect.provide(name, open({ HOME: folder })))[0]?.name, place.name)
      const elsewhere = write("passwords", `${line}${PGPASSWORD}`)
      yield* Effect.gen(function* () {
        yield* name
        fs.writeFileSync(elsewhere, `${line}wrong`)
        assert.isTrue((yield* Effect.exit(name))._tag === "Failure")
        fs.writeFileSync(elsewhere, `${line}${PGPASSWORD}`)
        yield* name
      }).pipe(Effect.provide(open({ PGPASSFILE: elsewhere }, "none")))
      const refused = (more: Readonly<Record<string, string>>) =>
        Effect.map(Effect.flip(Effect.scoped(Layer.build(open(more)))), (error) =>
          error._tag === "ConnectFailed" ? `${error.reason} ${error.message}` : error._tag
        )
      assert.include(yield* refused({}), "it asks for a password, and none was given")
      assert.include(yield* refused({ PGPASSFILE: path.join(folder, "nowhere") }), "none was given")
      assert.include(
        yield* refused({ PGPASSFILE: write("open", `${line}${PGPASSWORD}`, 0o644) }),
        "other users may read it: restrict its permissions (chmod 0600)"
      )
    })
  )

  it.scopedLive("a password file that other users may read fails a statement without a retry", () =>
    Effect.gen(function* () {
      const { write } = yield* files
      const { writer } = yield* freshDatabase
      const url = new URL(Redacted.value(writer))
      url.password = ""
      url.searchParams.set("passfile", write("open", "*:*:*:*:secret\n", 0o644))
      const context = yield* Layer.build(
        Db.layer({ writer: Redacted.make(url.href), startup: "lazy", acquireTimeout: "20 seconds" })
      )
      const statement = Effect.provide(
        Effect.flatMap(Db.writer, (sql) => sql`SELECT 1`),
        context
      )
      const error = yield* Effect.flip(DatabaseError.refine(Effect.timeout(statement, "3 seconds")))
      assert(error._tag === "ConnectFailed", String(error))
      assert.deepStrictEqual([error.reason, error.permanent], ["credentials", true])
    })
  )

  it.scopedLive(
    "a plain layer reads the password file of its connection string, not the environment, and refuses a service",
    () =>
      Effect.gen(function* () {
        const place = yield* freshDatabase
        const { PGPASSWORD, ...variables } = variablesOf(place.writer)
        const { write } = yield* files
        const passfile = write("passwords", `*:*:*:*:${PGPASSWORD}`)
        const { PGDATABASE, PGHOST, PGPORT, PGUSER } = variables
        const text = `host=${PGHOST} port=${PGPORT} dbname=${PGDATABASE} user=${PGUSER}`
        const open = (text: string) => Effect.provide(name, Db.layer({ writer: Redacted.make(text) }))
        assert.strictEqual((yield* open(`${text} passfile=${passfile}`))[0]?.name, place.name)
        const given = { PGPASSWORD: PGPASSWORD ?? "", PGPASSFILE: passfile }
        yield* Effect.acquireRelease(
          Effect.sync(() => {
            const before = { ...process.env }
            Object.assign(process.env, given)
            return before
          }),
          (before) =>
            Effect.sync(() => {
              process.env = before
            })
        )
        const bare = Layer.provide(Db.layer({ writer: Redacted.make(text) }), Layer.setConfigProvider(provider(given)))
        const error = yield* Effect.flip(Effect.scoped(Layer.build(bare)))
        assert(error._tag === "ConnectFailed", String(error))
        assert.include(error.message, "it asks for a password, and none was given")
        const refused = DatabaseConfig.make("app", { writer: Redacted.make(`${text} service=one`) })
        assert.strictEqual(Either.getOrThrow(Either.flip(refused)).setting, "writer (service)")
      })
  )
})

describe("a password file", () => {
  const text = [
    "# comment:1:app:me:no",
    "broken line",
    "a:5432:app:me:first",
    "a:*:*:*:second",
    "b\\:c:1:d\\\\e:me:with\\:colon\\\\and more:of it",
    "localhost:5432:*:me:socket"
  ].join("\n")
  const find = (host: string, port = 5432, database = "app", username = "me") =>
    findPassword(text, { host, port, database, username })

  it("a password file gives the first line that matches, with * for any and \\ before : and \\", () => {
    assert.strictEqual(find("a"), "first")
    assert.strictEqual(find("a", 1), "second")
    assert.strictEqual(find("b:c", 1, "d\\e"), "with:colon\\and more:of it")
    assert.strictEqual(find("comment", 1), undefined)
    assert.strictEqual(find("z"), undefined)
  })

  it("a password file matches libpq's own socket folders as localhost", () => {
    assert.strictEqual(find("/var/run/postgresql"), "socket")
    assert.strictEqual(find("/tmp"), "socket")
    assert.strictEqual(find("/elsewhere"), undefined)
  })
})

describe("a service file", () => {
  it("a section of a service file ends where the next begins, and the first of two with a name counts", () => {
    const text = " # x\n[a]\n host=h \n\nport=1\n[b]\nhost=i\n[a]\nhost=j\n"
    assert.deepStrictEqual(parseService(text, "a"), [
      ["host", "h"],
      ["port", "1"]
    ])
    assert.deepStrictEqual(parseService(text, "b"), [["host", "i"]])
    assert.strictEqual(parseService(text, "c"), undefined)
  })
})

describe("layerConfig", () => {
  it.scopedLive("layerConfig accepts plain values beside Configs, in the parts of a server as well", () =>
    Effect.gen(function* () {
      const place = yield* freshDatabase
      const variables = variablesOf(place.writer)
      const layer = Db.layerConfig({
        writer: {
          host: Config.string("PGHOST"),
          port: Config.integer("PGPORT"),
          database: place.name,
          username: Config.string("PGUSER"),
          password: Config.redacted("PGPASSWORD"),
          ssl: Config.boolean("TLS")
        },
        readers: [Config.redacted("READER")],
        startup: "lazy",
        applicationName: Config.string("NAME").pipe(Config.withDefault(undefined)),
        maxConnections: 2
      })
      const all = { ...variables, READER: Redacted.value(place.reader), TLS: "false" }
      const [row] = yield* Effect.provide(name, Layer.provide(layer, Layer.setConfigProvider(provider(all))))
      assert.deepStrictEqual(row, { name: place.name, app: "effect-db" })
    })
  )

  it.effect("layerConfig accepts a URL and a certificate from Config in one writer", () =>
    Effect.gen(function* () {
      const layer = Db.layerConfig({
        writer: { url: Config.redacted("URL"), ssl: { ca: Config.string("CA"), rejectUnauthorized: true } },
        startup: "lazy"
      })
      const variables = { URL: "postgres://me:s3cret@db.example.com/app", CA: "certificate" }
      const { ssl } = yield* Effect.provide(
        Effect.map(Db.writer, (sql) => sql.config),
        Layer.provide(layer, Layer.setConfigProvider(provider(variables)))
      )
      assert.deepStrictEqual(ssl, { ca: "certificate", rejectUnauthorized: true })
    })
  )

  it.scopedLive("layerConfig accepts a cluster from Config", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const layer = Db.layerConfig({ hosts: Config.redacted("URL"), discoverInterval: "1 minute", discover: undefined })
      const variables = { URL: Redacted.value(writer) }
      const read = Effect.flatMap(Db.reader, (sql) => sql<{ n: number }>`SELECT 1 AS n`)
      const rows = yield* Effect.provide(read, Layer.provide(layer, Layer.setConfigProvider(provider(variables))))
      assert.deepStrictEqual(rows, [{ n: 1 }])
    })
  )

  it.scopedLive("layerConfig takes an empty variable for readers as no readers", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const layer = Db.layerConfig({
        writer,
        readers: Config.array(Config.redacted(), "DATABASE_READER_URLS"),
        startup: "lazy"
      })
      for (const readers of ["", " "]) {
        const { servers } = yield* Effect.provide(
          Db.status,
          Layer.provide(layer, Layer.setConfigProvider(provider({ DATABASE_READER_URLS: readers })))
        )
        assert.strictEqual(servers.length, 1)
      }
    })
  )
})
