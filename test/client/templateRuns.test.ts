/** Runs of `TestDatabase.layerTemplate`: what they leave, keep, prepare and refuse. */
import { randomBytes } from "node:crypto"
import { SqlClient } from "@effect/sql/SqlClient"
import { assert, it } from "@effect/vitest"
import { PGlite } from "@electric-sql/pglite"
import * as Console from "effect/Console"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { TestDatabase } from "effect-db"
import { describe, inject } from "vitest"
import { administer } from "../support/adminSession.js"
import { startChild } from "../support/child.js"
import { Audit, Db, fresh, insert, Place } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { databaseFrom, freshDatabase, terminateBackends } from "../support/server.js"

const current = Effect.flatMap(Db.writer, (sql) =>
  Effect.map(sql<{ name: string }>`SELECT current_database() AS name`, ([row]) => row?.name ?? "")
)

const migrate = Effect.flatMap(Db.writer, (sql) => sql`CREATE TABLE item (name text UNIQUE)`)

/** Runs a statement on the server that all tests share. */
const onServer = <Row extends Record<string, unknown>>(sql: string, params: ReadonlyArray<unknown> = []) =>
  Effect.suspend(() => administer<Row>(inject("postgres").writer, sql, params))

const exists = (name: string) =>
  Effect.map(onServer("SELECT 1 FROM pg_database WHERE datname = $1", [name]), (rows) => rows.length === 1)

/** Returns the databases of the run to which a database belongs. */
const ofRun = (name: string) =>
  Effect.map(
    onServer<{ name: string }>("SELECT datname AS name FROM pg_database WHERE starts_with(datname, $1) ORDER BY 1", [
      name.slice(0, 27)
    ]),
    (rows) => rows.map((row) => row.name)
  )

/** Begins a run, which drops what others have left, and ends it. */
const nextRun = Effect.provide(current, TestDatabase.layerTemplate(Db, { migrate })).pipe(
  Effect.provide(fresh({ readers: [] }))
)

/** Starts a program that uses copies of a template, and returns the name of its database. */
const startRun = (mode: "idle" | "busy" | "migrating") =>
  Effect.gen(function* () {
    const { writer } = yield* freshDatabase
    const child = yield* startChild("templateRun", [mode, randomBytes(8).toString("hex")], writer)
    const name = (yield* child.line) ?? ""
    assert.match(name, /^effect_db_[0-9a-f]{16}_\d+$/)
    return { child, name, home: writer }
  })

describe("a run of TestDatabase.layerTemplate", () => {
  for (const mode of ["idle", "migrating"] as const) {
    it.scopedLive(`the next run drops all that a run has left that was killed while it was ${mode}`, () =>
      Effect.gen(function* () {
        const { child, name } = yield* startRun(mode)
        // two copies are prepared ahead
        if (mode === "idle") yield* eventually(ofRun(name), (found) => found.length === 3)
        yield* nextRun
        assert.isTrue(yield* exists(name))
        yield* child.signal("SIGKILL")
        yield* child.ended
        yield* nextRun
        assert.deepStrictEqual(yield* ofRun(name), [])
      })
    )
  }

  it.scopedLive("the next run drops a database whose session is still busy after its run was killed", () =>
    Effect.gen(function* () {
      const { child, name } = yield* startRun("busy")
      const busy = "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND query LIKE '%pg_sleep%' AND state = 'active'"
      yield* eventually(onServer(busy, [name]), (rows) => rows.length === 1)
      yield* child.signal("SIGKILL")
      yield* child.ended
      assert.strictEqual((yield* onServer(busy, [name])).length, 1)
      yield* nextRun
      assert.deepStrictEqual(yield* ofRun(name), [])
    })
  )

  it.scopedLive("a run whose connections were lost keeps its databases, because it takes its lock again", () =>
    Effect.gen(function* () {
      const place = yield* Place
      yield* Effect.gen(function* () {
        const name = yield* current
        const run = BigInt.asIntN(64, BigInt(`0x${name.slice(10, 26)}`))
        const holders = Effect.map(
          onServer<{ pid: number }>(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND (classid::bigint << 32 | objid::bigint) = $1::bigint",
            [String(run)]
          ),
          (rows) => rows.map(({ pid }) => pid)
        )
        const before = yield* holders
        assert.isAbove(before.length, 0)
        yield* terminateBackends(place.name)
        yield* eventually(holders, (now) => now.length > 0 && !now.some((pid) => before.includes(pid)))
        yield* nextRun
        yield* insert("a")
        assert.isTrue(yield* exists(name))
      }).pipe(Effect.provide(TestDatabase.layerTemplate(Db, { migrate })))
    }).pipe(Effect.provide(fresh({ readers: [] })))
  )

  it.scopedLive("a run that has neither its lock nor sessions for a moment keeps its databases", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const id = randomBytes(8).toString("hex")
      const name = `effect_db_${id}_1`
      const key = BigInt.asIntN(64, BigInt(`0x${id}`))
      yield* Effect.gen(function* () {
        const session = yield* Effect.flatMap(Audit.writer, (sql) => sql.reserve)
        const execute = (text: string) => session.executeUnprepared(text, [], undefined)
        yield* execute(`SELECT pg_advisory_lock_shared(${key})`)
        yield* Effect.acquireRelease(execute(`CREATE DATABASE ${name}`), () =>
          onServer(`DROP DATABASE IF EXISTS ${name}`)
        )
        // the hash is the first work after the next run has looked for left databases
        const hash = Effect.zipRight(execute(`SELECT pg_advisory_lock_shared(${key})`), Effect.fail("enough"))
        const next = Effect.zipRight(
          execute(`SELECT pg_advisory_unlock_shared(${key})`),
          Effect.provide(current, TestDatabase.layerTemplate(Db, { migrate, hash }))
        )
        assert.strictEqual(yield* Effect.flip(Effect.provide(next, fresh({ readers: [] }))), "enough")
        assert.isTrue(yield* exists(name))
        yield* execute(`SELECT pg_advisory_unlock_shared(${key})`)
        yield* nextRun
        assert.isFalse(yield* exists(name))
      }).pipe(Effect.scoped, Effect.provide(Audit.layer({ writer })))
    })
  )

  it.scopedLive("templates and kept databases are dropped when they are old", () =>
    Effect.gen(function* () {
      const hour = 3600
      const left = (name: string, mark: string, age: number) =>
        Effect.acquireRelease(
          Effect.gen(function* () {
            yield* onServer(`CREATE DATABASE ${name}`)
            const now = Math.floor(Date.now() / 1000)
            yield* onServer(`COMMENT ON DATABASE ${name} IS 'effect-db: ${mark} at ${now - age}'`)
            return name
          }),
          () => onServer(`DROP DATABASE IF EXISTS ${name}`)
        )
      const template = () => `effect_db_template_${randomBytes(12).toString("hex")}`
      const clone = () => `effect_db_${randomBytes(8).toString("hex")}_1`
      const old = [yield* left(template(), "used", 24 * 8 * hour), yield* left(clone(), "kept", 25 * hour)]
      const recent = [yield* left(template(), "used", 24 * 6 * hour), yield* left(clone(), "kept", 23 * hour)]
      yield* nextRun
      assert.deepStrictEqual(yield* Effect.forEach([...old, ...recent], exists), [false, false, true, true])
    })
  )

  it.scopedLive("copies that are prepared ahead are used by the next builds, and are new databases for each", () =>
    Effect.gen(function* () {
      const DbTest = TestDatabase.layerTemplate(Db, { migrate, warm: 2 })
      const test = Effect.provide(Effect.zipLeft(current, insert("a")), DbTest)
      const first = yield* test
      const used = new Set([first])
      // a build finds a copy that was there before it
      const build = Effect.gen(function* () {
        const before = yield* ofRun(first)
        const name = yield* test
        assert.isFalse(used.has(name))
        used.add(name)
        return before.includes(name)
      })
      yield* eventually(build, (isPrepared) => isPrepared)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a copy that is prepared ahead and cannot be opened is dropped at once", () =>
    Effect.gen(function* () {
      const refused = yield* Deferred.make<string>()
      const onConnect = Effect.gen(function* () {
        const sql = yield* SqlClient
        const [row] = yield* sql<{ name: string }>`SELECT current_database() AS name`
        // the template is the first database of the run, the copy of the build is the second
        if (row?.name.startsWith("effect_db_") !== true || !row.name.endsWith("_3")) return
        yield* Deferred.succeed(refused, row.name)
        yield* sql`SELECT 1 / 0`
      })
      yield* Effect.gen(function* () {
        const own = yield* current
        const name = yield* Deferred.await(refused)
        yield* eventually(ofRun(own), (found) => !found.includes(name))
      }).pipe(
        Effect.provide(TestDatabase.layerTemplate(Db, { migrate, warm: 1 })),
        Effect.provide(fresh({ readers: [], onConnect }))
      )
    })
  )

  it.scopedLive("a database with a prepared transaction is dropped as well", () =>
    Effect.gen(function* () {
      const gid = `left-${randomBytes(4).toString("hex")}`
      const test = Effect.gen(function* () {
        const session = yield* Effect.flatMap(Db.writer, (sql) => sql.reserve)
        for (const text of ["BEGIN", "INSERT INTO item VALUES ('a')", `PREPARE TRANSACTION '${gid}'`]) {
          yield* session.executeUnprepared(text, [], undefined)
        }
        return yield* current
      })
      const name = yield* Effect.provide(Effect.scoped(test), TestDatabase.layerTemplate(Db, { migrate }))
      assert.isFalse(yield* exists(name))
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a failed test keeps its database and prints its URL without the password", () =>
    Effect.gen(function* () {
      const place = yield* Place
      const printed: Array<string> = []
      const real = yield* Effect.console
      const recorded: Console.Console = {
        ...real,
        error: (...args) => Effect.sync(() => void printed.push(args.join(" ")))
      }
      const DbTest = TestDatabase.layerTemplate(Db, { migrate, keepOnFailure: true })
      let name = ""
      const failing = Effect.gen(function* () {
        name = yield* current
        yield* insert("evidence")
        return yield* Effect.fail("assertion")
      }).pipe(Effect.provide(DbTest), Console.withConsole(recorded))
      assert.strictEqual(yield* Effect.flip(failing), "assertion")
      yield* Effect.addFinalizer(() => onServer(`DROP DATABASE IF EXISTS ${name}`))
      const { hostname, password, port, username } = new URL(Redacted.value(place.writer))
      assert.strictEqual(printed.length, 1)
      assert.include(printed[0], `postgres://${username}@${hostname}:${port}/${name}`)
      assert.notInclude(printed[0] ?? "", password)
      return name
    }).pipe(
      Effect.provide(fresh()),
      // the end of the open database does not drop it either, and neither does the next run
      Effect.tap((name) => Effect.zipRight(nextRun, Effect.map(exists(name), assert.isTrue)))
    )
  )

  it.scopedLive("a test that succeeds or is interrupted keeps no database", () =>
    Effect.gen(function* () {
      const DbTest = TestDatabase.layerTemplate(Db, { migrate, keepOnFailure: true })
      const succeeded = yield* Effect.provide(current, DbTest)
      const reached = yield* Deferred.make<string>()
      const hanging = Effect.zipRight(
        Effect.flatMap(current, (name) => Deferred.succeed(reached, name)),
        Effect.never
      )
      const fiber = yield* Effect.fork(Effect.provide(hanging, DbTest))
      const interrupted = yield* Deferred.await(reached)
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual([yield* exists(succeeded), yield* exists(interrupted)], [false, false])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a user without CREATEDB is refused, with the command that helps", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const user = `limited_${randomBytes(4).toString("hex")}`
      yield* Effect.acquireRelease(onServer(`CREATE ROLE ${user} LOGIN PASSWORD 'secret'`), () =>
        onServer(`DROP ROLE ${user}`)
      )
      const url = new URL(Redacted.value(writer))
      url.username = user
      url.password = "secret"
      const error = yield* current.pipe(
        Effect.provide(TestDatabase.layerTemplate(Db, { migrate })),
        Effect.provide(Db.layer({ writer: Redacted.make(url.href) })),
        Effect.flip
      )
      assert.strictEqual(error._tag, "ConfigInvalid")
      assert.include(String(error.message), `ALTER ROLE "${user}" CREATEDB`)
    })
  )

  it.scopedLive("a user who is no superuser needs no other privilege than CREATEDB", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const user = `creator_${randomBytes(4).toString("hex")}`
      yield* Effect.acquireRelease(onServer(`CREATE ROLE ${user} LOGIN CREATEDB PASSWORD 'secret'`), () =>
        Effect.gen(function* () {
          const owned = "SELECT datname AS name FROM pg_database WHERE pg_get_userbyid(datdba) = $1"
          for (const { name } of yield* onServer<{ name: string }>(owned, [user]))
            yield* onServer(`DROP DATABASE ${name}`)
          yield* onServer(`DROP ROLE ${user}`)
        })
      )
      const url = new URL(Redacted.value(writer))
      url.username = user
      url.password = "secret"
      const test = Effect.zipRight(insert("a"), current).pipe(
        Effect.provide(TestDatabase.layerTemplate(Db, { migrate, hash: "1", warm: 1 }))
      )
      const names = yield* Effect.all([test, test]).pipe(Effect.provide(Db.layer({ writer: Redacted.make(url.href) })))
      assert.deepStrictEqual(yield* Effect.forEach(names, exists), [false, false])
    })
  )

  it.scopedLive("a transaction pooler and options that are not valid are refused", () =>
    Effect.gen(function* () {
      const { writer } = yield* databaseFrom("template1")
      const messageOf = (options: object, settings: object = {}) =>
        current.pipe(
          // the cast: a program without types may pass any options
          Effect.provide(TestDatabase.layerTemplate(Db, { migrate, ...options } as { migrate: typeof migrate })),
          Effect.provide(Db.layer({ writer, ...settings })),
          Effect.flip,
          Effect.map((error) => `${error._tag} ${error.message}`)
        )
      assert.match(yield* messageOf({}, { mode: "transactionPooler" }), /^ConfigInvalid .*"session"/)
      assert.match(yield* messageOf({ warm: -1 }), /^ConfigInvalid .*"warm" is -1/)
      assert.match(yield* messageOf({ hash: 1 }), /^ConfigInvalid .*"hash" is 1/)
      assert.match(
        yield* messageOf({ seeds: migrate }),
        /^ConfigInvalid .*"seeds" is an unknown setting; expected "seed"/
      )
      assert.match(
        yield* messageOf({ hash: TestDatabase.hashFiles("no/such/file") }),
        /^ConfigInvalid .*no\/such\/file/
      )
    })
  )

  it.scopedLive(
    "a PGlite is refused before the migration, because it has one database",
    () =>
      Effect.gen(function* () {
        let migrations = 0
        const error = yield* current.pipe(
          Effect.provide(TestDatabase.layerTemplate(Db, { migrate: Effect.sync(() => migrations++) })),
          Effect.provide(TestDatabase.layerPglite(Db, { pglite: Effect.promise(() => PGlite.create()) })),
          Effect.flip
        )
        assert.match(`${error._tag} ${error.message}`, /^ConfigInvalid .*"postgres".*TestDatabase\.layer over it/)
        assert.strictEqual(migrations, 0)
      }),
    60_000
  )

  it.scopedLive("the hash of files changes with their names and contents", () =>
    Effect.gen(function* () {
      const hash = (...paths: ReadonlyArray<string>) => TestDatabase.hashFiles(...paths)
      assert.strictEqual(yield* hash("test/client"), yield* hash("test/client"))
      assert.notStrictEqual(yield* hash("test/client"), yield* hash("test/edge"))
      assert.notStrictEqual(yield* hash("tsconfig.json"), yield* hash("package.json"))
      assert.notStrictEqual(yield* hash("tsconfig.json", "package.json"), yield* hash("package.json", "tsconfig.json"))
    })
  )
})
