/** The server of a whole run of tests. */
import * as fs from "node:fs"
import * as path from "node:path"
import { assert, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { TestDatabase } from "effect-db"
import { describe, inject } from "vitest"
import { memoryDirectory } from "../../src/internal/embedded/memoryDirectory.js"
import { administer } from "../support/adminSession.js"
import { startChild } from "../support/child.js"
import { Audit, Db, insert } from "../support/databases.js"
import { cluster } from "../support/embedded.js"
import { eventually } from "../support/eventually.js"
import { at, freshDatabase, query } from "../support/server.js"

const variable = "EFFECT_DB_TEST_SERVER"

/** Sets up a server until the end of the scope. */
const setUp = (options: TestDatabase.ServerSetupOptions) =>
  Effect.acquireRelease(
    Effect.promise(() => TestDatabase.serverSetup(options)()),
    (end) => Effect.promise(end)
  )

const migrate = Effect.flatMap(Db.writer, (sql) => sql`CREATE TABLE item (name text UNIQUE)`)
const DbTest = TestDatabase.layerTemplate(Db, { migrate })

const currentOf = <Self>(database: { readonly writer: Effect.Effect<Writer, never, Self> }) =>
  Effect.flatMap(database.writer, (sql) =>
    Effect.map(sql<{ name: string }>`SELECT current_database() AS name`, ([row]) => row?.name ?? "")
  )

type Writer = Effect.Effect.Success<typeof Db.writer>

const exists = (name: string) =>
  Effect.map(
    administer(inject("postgres").writer, "SELECT 1 FROM pg_database WHERE datname = $1", [name]),
    (rows) => rows.length === 1
  )

/** Provides the variable to an effect that builds layers. */
const withVariable = (value: string) => Effect.withConfigProvider(ConfigProvider.fromMap(new Map([[variable, value]])))

/** The published server, as a worker reads it. */
interface Published {
  readonly writer: string
  readonly databases: Readonly<Record<string, string>>
}

describe("TestDatabase.serverSetup", () => {
  it.scopedLive("an embedded server with replicas serves the run, and ends with it", () =>
    Effect.gen(function* () {
      const folder = yield* Effect.scoped(
        Effect.gen(function* () {
          yield* setUp({ replicas: 1, databases: ["app"] })
          return yield* Effect.gen(function* () {
            assert.strictEqual(yield* currentOf(Db), "app")
            const sql = yield* Db.reader
            assert.deepStrictEqual(yield* sql`SELECT pg_is_in_recovery() AS standby`, [{ standby: true }])
            yield* Effect.provide(insert("a"), DbTest)
            const [row] = yield* sql<{ folder: string }>`SHOW data_directory`.pipe(
              Effect.map((rows) => rows.map((one) => ({ folder: Object.values(one)[0] ?? "" })))
            )
            return row?.folder ?? ""
          }).pipe(Effect.provide(TestDatabase.layerServer(Db)))
        })
      )
      assert.isTrue(folder.startsWith(path.join(memoryDirectory(), "effect-db-")), folder)
      assert.isFalse(fs.existsSync(path.dirname(folder)))
      assert.isUndefined(process.env[variable])
    })
  )

  it.scopedLive("databases of a run on a given server have names of their own, and are dropped at its end", () =>
    Effect.gen(function* () {
      const { reader } = inject("postgres")
      const { name, writer } = yield* freshDatabase
      const used = yield* Effect.scoped(
        Effect.gen(function* () {
          yield* setUp({ url: writer, readers: [at(reader, name)], databases: ["app", "audit"] })
          return yield* Effect.all([currentOf(Db), currentOf(Audit), Effect.provide(currentOf(Db), DbTest)]).pipe(
            Effect.provide(Layer.merge(TestDatabase.layerServer(Db), TestDatabase.layerServer(Audit)))
          )
        })
      )
      assert.strictEqual(new Set(used).size, 3)
      for (const one of used) assert.match(one, /^effect_db_[0-9a-f]{16}_\d+$/)
      assert.deepStrictEqual(yield* Effect.forEach(used, exists), [false, false, false])
    })
  )

  it.scopedLive("a server in the variable is used in place of an embedded one", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* freshDatabase
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          process.env[variable] = Redacted.value(writer)
        }),
        () =>
          Effect.sync(() => {
            delete process.env[variable]
          })
      )
      assert.strictEqual(yield* Effect.provide(currentOf(Db), TestDatabase.layerServer(Db)), name)
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* setUp({ replicas: 1, databases: ["other"] })
          assert.strictEqual(yield* Effect.provide(currentOf(Db), TestDatabase.layerServer(Db)), name)
          const other = yield* Effect.provide(currentOf(Db), TestDatabase.layerServer(Db, { database: "other" }))
          assert.match(other, /^effect_db_/)
        })
      )
      assert.strictEqual(process.env[variable], Redacted.value(writer))
    })
  )

  it.scopedLive("a setup that fails rejects with the failure, and publishes nothing", () =>
    Effect.gen(function* () {
      const failureOf = (options: TestDatabase.ServerSetupOptions) =>
        Effect.flip(Effect.tryPromise({ try: TestDatabase.serverSetup(options), catch: String }))
      assert.include(
        yield* failureOf({ url: "postgres://me:secret@127.0.0.1:1/none", databases: ["app"] }),
        "ConnectFailed"
      )
      assert.include(yield* failureOf({ replicas: -1 }), "replicas is -1")
      assert.isUndefined(process.env[variable])
    })
  )

  it.scopedLive("an embedded server ends when the run is killed", () =>
    Effect.gen(function* () {
      const child = yield* startChild("testServer", ["embedded"], Redacted.make(""))
      const { writer }: Published = JSON.parse((yield* child.line) ?? "")
      const [row] = yield* query(Redacted.make(writer), "SHOW data_directory")
      const folder = path.dirname(String(row?.data_directory))
      assert.isTrue(fs.existsSync(folder))
      yield* child.signal("SIGKILL")
      yield* child.ended
      yield* eventually(
        Effect.sync(() => fs.existsSync(folder)),
        (there) => !there
      )
    })
  )

  it.scopedLive("the next run drops the databases on a given server that a killed run has left", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const child = yield* startChild("testServer", ["given"], writer)
      const { databases }: Published = JSON.parse((yield* child.line) ?? "")
      const name = databases.app ?? ""
      assert.isTrue(yield* exists(name))
      yield* child.signal("SIGKILL")
      yield* child.ended
      yield* Effect.scoped(setUp({ url: writer, databases: ["app"] }))
      assert.isFalse(yield* exists(name))
    })
  )
})

describe("TestDatabase.layerTemplate on replicas", () => {
  it.scopedLive("a build waits for the replicas, and fails if one of them does not replay", () =>
    Effect.gen(function* () {
      const { one, postgres, two } = yield* cluster()
      yield* Effect.gen(function* () {
        yield* Effect.provide(insert("a"), DbTest)
        yield* two.pauseReplay
        const error = yield* Effect.flip(Effect.provide(insert("a"), DbTest))
        assert.strictEqual(error._tag, "NoReplicaCaughtUp")
        yield* two.resumeReplay
        yield* Effect.provide(insert("a"), DbTest)
        // reads do without a replica that does not answer
        yield* one.stop
        yield* Effect.provide(insert("a"), DbTest)
      }).pipe(Effect.provide(Db.layer({ ...postgres.settings("postgres"), acquireTimeout: "3 seconds" })))
    })
  )
})

describe("TestDatabase.layerServer", () => {
  it.effect("the variable is read by the ConfigProvider, and may be a connection string", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* freshDatabase
      const test = Effect.provide(currentOf(Db), TestDatabase.layerServer(Db, { maxConnections: 1 }))
      assert.strictEqual(yield* withVariable(Redacted.value(writer))(test), name)
    }).pipe(Effect.scoped)
  )

  it.effect("a variable that is missing or not valid is refused, without its value", () =>
    Effect.gen(function* () {
      const refusal = Effect.flip(Effect.provide(currentOf(Db), TestDatabase.layerServer(Db)))
      const missing = yield* Effect.withConfigProvider(refusal, ConfigProvider.fromMap(new Map()))
      assert.match(missing.message, /EFFECT_DB_TEST_SERVER" is not set; expected .*serverSetup/)
      const invalid = yield* withVariable('{"writer":"postgres://me:secret@host/db"}')(refusal)
      assert.strictEqual(invalid._tag, "ConfigInvalid")
      assert.notInclude(invalid.message, "secret")
    })
  )
})
