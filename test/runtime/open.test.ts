/**
 * Databases that are opened and closed by hand: together, by several callers at once, and when one
 * cannot be opened.
 */
import * as NodeContext from "@effect/platform-node/NodeContext"
import * as SqlClient from "@effect/sql/SqlClient"
import * as PgMigrator from "@effect/sql-pg/PgMigrator"
import { assert, describe, it } from "@effect/vitest"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { Database, DatabaseRuntime } from "effect-db"
import { Audit, Db } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { tagOf } from "../support/failures.js"
import { makeProxy } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"

class Third extends Database.Service<Third>()("third") {}

/** Returns the result of a promise: `"done"`, or the tag of its failure. */
const settled = (promise: Promise<unknown>): Effect.Effect<unknown> =>
  Effect.promise(() => promise.then(() => "done", tagOf))

/**
 * Creates a runtime with three databases of one server, each behind a proxy of its own. A refused
 * connect is retried until `connectTimeout`.
 */
const fresh = (
  connectTimeout: { readonly two?: Duration.DurationInput; readonly three?: Duration.DurationInput } = {}
) =>
  Effect.gen(function* () {
    const { writer } = yield* freshDatabase
    const proxies = yield* Effect.all([makeProxy(writer), makeProxy(writer), makeProxy(writer)])
    const logged: Array<string> = []
    const logger = Logger.replace(
      Logger.defaultLogger,
      Logger.make(({ message }) => void logged.push(String(message)))
    )
    const [one, two, three] = proxies
    const layers = Layer.mergeAll(
      Db.layer({ writer: one.url, connectTimeout: "1 minute" }),
      Audit.layer({ writer: two.url, connectTimeout: connectTimeout.two ?? "1 minute" }),
      Third.layer({ writer: three.url, connectTimeout: connectTimeout.three ?? "1 minute" })
    )
    const runtime = DatabaseRuntime.make({ db: Db, audit: Audit, third: Third }, Layer.provide(layers, logger))
    yield* Effect.addFinalizer(() => Effect.promise(() => runtime.close()))
    const sessions = Effect.map(
      query<{ n: number }>(
        writer,
        "SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
      ),
      ([row]) => row?.n
    )
    return { runtime, proxies, logged, sessions }
  })

const isLogin = ({ type }: { readonly type: string }) => type === "startup"

describe("databases that are opened together", () => {
  it.scopedLive("databases that are opened together connect at the same time", () =>
    Effect.gen(function* () {
      const { proxies, runtime } = yield* fresh()
      const waiting = yield* Effect.forEach(proxies, (proxy) => proxy.when(isLogin, "freeze"))
      const opening = runtime.open()
      // each has begun before any is answered
      yield* Effect.all(waiting)
      yield* Effect.forEach(proxies, (proxy) => proxy.thaw)
      assert.strictEqual(yield* settled(opening), "done")
      const statuses = yield* Effect.promise(() =>
        Promise.all(Object.values(runtime.databases).map((database) => database.status()))
      )
      assert.deepStrictEqual(statuses.map(({ database }) => database).sort(), ["app", "audit", "third"])
    })
  )

  it.scopedLive("a database of a runtime may be selected by its name, and is the one that was given under it", () =>
    Effect.gen(function* () {
      const places = yield* Effect.all([freshDatabase, freshDatabase, freshDatabase])
      const [one, two, three] = places
      const layers = Layer.mergeAll(
        Db.layer({ writer: one.writer }),
        Audit.layer({ writer: two.writer }),
        Third.layer({ writer: three.writer })
      )
      const runtime = DatabaseRuntime.make({ db: Db, audit: Audit, third: Third }, layers)
      yield* Effect.promise(() => runtime.open())
      const names = ["db", "audit", "third"] as const
      const found = yield* Effect.promise(() =>
        runtime.unitOfWork(() =>
          Promise.all(
            names.map(async (name) => {
              const [row] = await runtime.databases[name].writer<{ name: string }>`SELECT current_database() AS name`
              return row?.name
            })
          )
        )
      )
      assert.deepStrictEqual(
        found,
        places.map(({ name }) => name)
      )
      yield* Effect.promise(() => runtime.close())
    })
  )

  it.scopedLive("each database is migrated once by its own migrations, before its first use", () =>
    Effect.gen(function* () {
      const places = yield* Effect.all({ app: freshDatabase, audit: freshDatabase })
      const migrations = (text: string) =>
        PgMigrator.layer({
          loader: PgMigrator.fromRecord({
            "1_start": Effect.flatMap(SqlClient.SqlClient, (sql) => Effect.asVoid(sql.unsafe(text)))
          })
        })
      const live = Layer.merge(
        Layer.provide(migrations("CREATE TABLE todo (title text)"), Db.layerSqlClient),
        Layer.provide(migrations("CREATE TABLE event (what text)"), Audit.layerSqlClient)
      ).pipe(
        Layer.provideMerge(
          Layer.merge(Db.layer({ writer: places.app.writer }), Audit.layer({ writer: places.audit.writer }))
        ),
        Layer.provide(NodeContext.layer)
      )
      for (const title of ["first", "second"]) {
        yield* Effect.promise(async () => {
          await using runtime = DatabaseRuntime.make({ db: Db, audit: Audit }, live)
          await runtime.open()
          const { audit, db } = runtime.databases
          await db.writer`INSERT INTO todo ${db.writer.insert({ title })}`
          await audit.writer`INSERT INTO event ${audit.writer.insert({ what: title })}`
        })
      }
      const tables = "SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
      assert.deepStrictEqual(yield* query(places.app.writer, tables), [
        { name: "effect_sql_migrations" },
        { name: "todo" }
      ])
      assert.deepStrictEqual(yield* query(places.audit.writer, tables), [
        { name: "effect_sql_migrations" },
        { name: "event" }
      ])
      assert.deepStrictEqual(yield* query(places.app.writer, "SELECT title FROM todo"), [
        { title: "first" },
        { title: "second" }
      ])
    })
  )

  it.scopedLive("a failed database closes the others and rejects the open, and each later failure is logged", () =>
    Effect.gen(function* () {
      const { logged, proxies, runtime, sessions } = yield* fresh({ two: "1 second", three: "1500 millis" })
      const [, two, three] = proxies
      yield* two.refuse
      // fails after the second, because it waits longer for its server
      const held = yield* three.when(isLogin, "freeze")
      const opening = Effect.runFork(Effect.flip(Effect.tryPromise({ try: () => runtime.open(), catch: (_) => _ })))
      yield* held
      yield* three.refuse
      yield* three.cut
      const error = yield* Fiber.join(opening)
      assert.strictEqual(tagOf(error), "ConnectFailed")
      assert.include(String(error), 'database "audit"')
      assert.strictEqual(logged.length, 1)
      assert.include(logged[0], 'database "third"')
      // the server may need a moment for the end of a session whose socket is closed
      yield* eventually(sessions, (n) => n === 0)
      assert.strictEqual(yield* sessions, 0)
      const used = Object.values(runtime.databases).map((database) => settled(database.writer`SELECT 1`.then()))
      assert.deepStrictEqual(yield* Effect.all(used), ["DatabaseClosed", "DatabaseClosed", "DatabaseClosed"])
    })
  )

  it.scopedLive("a database that does not settle delays another's failure for a moment, not for its own timeout", () =>
    Effect.gen(function* () {
      const { logged, proxies, runtime } = yield* fresh({ two: "500 millis" })
      yield* proxies[1].refuse
      yield* proxies[2].freeze
      assert.strictEqual(yield* settled(runtime.open()), "ConnectFailed")
      assert.deepStrictEqual(logged, [])
    })
  )

  it.scopedLive("pairs of open and close that race, with each other and with failures, leave nothing open", () =>
    Effect.gen(function* () {
      const { proxies, runtime, sessions } = yield* fresh({ two: "2 seconds" })
      const { db } = runtime.databases
      const pair = async () => {
        await runtime.open()
        try {
          return (await db.writer<{ n: number }>`SELECT 1 AS n`)[0]?.n
        } finally {
          await runtime.close()
        }
      }
      const five = (use: () => Promise<unknown>) =>
        Effect.all(
          [1, 2, 3, 4, 5].map(() => Effect.promise(() => use().catch(tagOf))),
          { concurrency: 5 }
        )
      assert.deepStrictEqual(yield* five(pair), [1, 1, 1, 1, 1])
      assert.strictEqual(yield* sessions, 0)

      yield* proxies[1].refuse
      assert.deepStrictEqual([...new Set(yield* five(pair))], ["ConnectFailed"])
      assert.strictEqual(yield* sessions, 0)

      // an open that waits for a failing one gets its failure, and not the success of the next
      const failing = runtime.open().catch(tagOf)
      const waiting = runtime.open().catch(tagOf)
      assert.strictEqual(yield* Effect.promise(() => failing), "ConnectFailed")
      yield* proxies[1].accept
      const again = runtime.open()
      assert.strictEqual(yield* Effect.promise(() => waiting), "ConnectFailed")
      yield* Effect.promise(() => again)
      assert.deepStrictEqual(yield* five(pair), [1, 1, 1, 1, 1])
      assert.deepStrictEqual(yield* Effect.promise(async () => await db.writer`SELECT 2 AS n`), [{ n: 2 }])
      yield* Effect.promise(() => runtime.close())
      assert.strictEqual(yield* sessions, 0)
      assert.strictEqual(yield* settled(db.writer`SELECT 1`.then()), "DatabaseClosed")
    })
  )

  it.scopedLive("a database that could not be closed properly can be opened again", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const broken = Layer.scopedDiscard(Effect.addFinalizer(() => Effect.die(new Error("a foreign bug"))))
      const runtime = DatabaseRuntime.make({ db: Db }, Layer.provideMerge(Db.layer({ writer }), broken))
      yield* Effect.promise(() => runtime.open())
      yield* Effect.promise(() => runtime.close().catch(() => {}))
      yield* Effect.promise(() => runtime.open())
      const rows = yield* Effect.promise(async () => await runtime.databases.db.writer`SELECT 1 AS n`)
      assert.deepStrictEqual(rows, [{ n: 1 }])
      yield* Effect.promise(() => runtime.close().catch(() => {}))
    })
  )

  it.scopedLive("a lazy database whose first use fails is opened by the next", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const proxy = yield* makeProxy(writer)
      const runtime = DatabaseRuntime.make({ db: Db }, Db.layer({ writer: proxy.url, connectTimeout: "2 seconds" }), {
        lazy: true
      })
      const use = () => runtime.databases.db.writer`SELECT 1`.then()
      yield* proxy.refuse
      assert.deepStrictEqual(yield* Effect.all([settled(use()), settled(use())]), ["ConnectFailed", "ConnectFailed"])
      yield* proxy.accept
      assert.deepStrictEqual(yield* Effect.all([settled(use()), settled(use())]), ["done", "done"])
      yield* Effect.promise(() => runtime.close())
    })
  )
})
