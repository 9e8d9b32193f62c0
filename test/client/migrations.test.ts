import * as Migrator from "@effect/sql/Migrator"
import { SqlClient } from "@effect/sql/SqlClient"
import { assert, describe, expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import { type Database, DatabaseError, Migrations, Tenant, TestDatabase } from "effect-db"
import { behindBouncer, hasBouncer, makeBouncer } from "../support/bouncer.js"
import { startChild } from "../support/child.js"
import { Audit, Db, fresh, look, Place } from "../support/databases.js"
import { freshRole, loggedIn } from "../support/roles.js"
import { at, freshDatabase, inThisDatabase, query } from "../support/server.js"

const statement = (text: string) => Effect.flatMap(SqlClient, (sql) => sql.unsafe(text))

const loaderOf = (migrations: Readonly<Record<string, string>>) =>
  Migrator.fromRecord(Object.fromEntries(Object.entries(migrations).map(([name, text]) => [name, statement(text)])))

const ran = "CREATE TABLE ran (n int)"
const add = (n: number) => `INSERT INTO ran VALUES (${n})`

/** The rows that the migrations have written, in the order of the writes. */
const written = Effect.map(look<{ n: number }>("SELECT n FROM ran ORDER BY ctid"), (rows) => rows.map(({ n }) => n))

const isThere = (table: string) =>
  Effect.map(look<{ there: boolean }>(`SELECT to_regclass('${table}') IS NOT NULL AS there`), ([row]) => row?.there)

const failure = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(self), (error) =>
    error instanceof Migrations.MigrationFailed ? error : assert.fail(`not MigrationFailed: ${error}`)
  )

const unsettled = fresh()

/** The time limit of tests that start processes, which takes seconds on a busy machine. */
const timeout = 120_000

describe("migrations", () => {
  it.scopedLive(
    "migrations are applied once each by five processes that begin at the same time, and each process succeeds",
    () =>
      Effect.gen(function* () {
        const { writer } = yield* freshDatabase
        const children = yield* Effect.replicateEffect(startChild("migrate", [], writer), 5)
        for (const { line } of children) expect(yield* line).toBe("ready")
        for (const { tell } of children) yield* tell
        const ended = yield* Effect.forEach(children, (child) => child.ended, { concurrency: "unbounded" })
        expect(ended.map(({ code, stderr }) => [code, stderr])).toEqual(children.map(() => [0, ""]))
        const applied = ended.map(({ lines }) => lines.at(-1)).sort()
        expect(applied).toEqual(['[[1,"ran"],[2,"first"],[3,"second"]]', "[]", "[]", "[]", "[]"])
        expect(yield* query(writer, "SELECT id FROM ran ORDER BY id")).toEqual([{ id: 2 }, { id: 3 }])
      }),
    timeout
  )

  it.scopedLive(
    "migrations are rolled back when their process is killed, and the next process applies them all",
    () =>
      Effect.gen(function* () {
        const { writer } = yield* freshDatabase
        const holder = yield* startChild("migrate", ["hold"], writer)
        expect(yield* holder.line).toBe("holds")
        const next = yield* startChild("migrate", [], writer)
        expect(yield* next.line).toBe("ready")
        yield* next.tell
        yield* holder.signal("SIGKILL")
        const { code, lines, stderr } = yield* next.ended
        expect([code, stderr, lines.at(-1)]).toEqual([0, "", '[[1,"ran"],[2,"first"],[3,"second"]]'])
      }),
    timeout
  )

  it.scopedLive(
    "migrations that another run blocks wait for a bounded time, and the log names its server process",
    () =>
      Effect.gen(function* () {
        const held = yield* Deferred.make<void>()
        const holds = Migrator.fromRecord({
          "1_holds": Effect.zipRight(Deferred.succeed(held, undefined), Effect.never)
        })
        const lines: Array<string> = []
        const log = Logger.replace(
          Logger.defaultLogger,
          Logger.make(({ message }) => void lines.push([message].flat().join(" ")))
        )
        const holder = yield* Effect.fork(Migrations.run(Db, { loader: holds }))
        yield* Deferred.await(held)
        const error = yield* failure(
          Migrations.run(Db, { loader: loaderOf({ "1_ran": ran }), lockTimeout: "300 millis" }).pipe(
            Effect.provide(log)
          )
        )
        yield* Fiber.interrupt(holder)
        expect(error.reason).toBe("locked")
        expect(error.message).toMatch(/^database "app" at \S+:\d+: process \d+ \(effect-db\) held the lock .* 300ms - /)
        expect(lines).toEqual([
          expect.stringMatching(
            /^database "app" at \S+: process \d+ \(effect-db\) is migrating this database; waiting for up to 300ms$/
          )
        ])
      }).pipe(Effect.provide(unsettled))
  )

  it.scopedLive("migrations that fail are named with the server's error, and their whole run is rolled back", () =>
    Effect.gen(function* () {
      const error = yield* failure(
        Migrations.run(Db, { loader: loaderOf({ "1_ran": ran, "2_wrong": "INSERT INTO nowhere VALUES (1)" }) })
      )
      expect([error.reason, error.migrations]).toEqual(["failed", ["2_wrong"]])
      expect(error.message).toMatch(
        /^database "app" at \S+:\d+: Migration "2_wrong" failed, and nothing of this run is stored: relation "nowhere" does not exist \(42P01\)\n/
      )
      expect(error.message.match(/database "app"/g)).toHaveLength(1)
      expect(error.message).toMatch(/\^$/)
      expect(yield* isThere("ran")).toBe(false)
      expect(yield* isThere("effect_sql_migrations")).toBe(false)
    }).pipe(Effect.provide(unsettled))
  )

  it.scopedLive("migrations with a lower id than an applied one fail and are named, and nothing is applied", () =>
    Effect.gen(function* () {
      yield* Migrations.run(Db, { loader: loaderOf({ "1_ran": ran, "3_three": add(3) }) })
      const late = loaderOf({ "1_ran": ran, "2_two": add(2), "3_three": add(3), "4_four": add(4) })
      const error = yield* failure(Migrations.run(Db, { loader: late }))
      expect([error.reason, error.migrations]).toEqual(["outOfOrder", ["2_two"]])
      expect(error.message).toContain("2_two has a lower id than 3_three, which is applied")
      expect(yield* written).toEqual([3])
    }).pipe(Effect.provide(unsettled))
  )

  it.scopedLive(
    "migrations with a lower id than an applied one are applied in the order of ids if outOfOrder allows it",
    () =>
      Effect.gen(function* () {
        yield* Migrations.run(Db, { loader: loaderOf({ "1_ran": ran, "3_three": add(3) }) })
        const listed = "SELECT migration_id AS id, name, created_at FROM effect_sql_migrations ORDER BY 1"
        const before = yield* look<{ id: number }>(listed)
        const late = loaderOf({ "4_four": add(4), "3_three": add(3), "2_two": add(2), "1_ran": ran })
        expect(yield* Migrations.run(Db, { loader: late, outOfOrder: "apply" })).toEqual([
          [2, "two"],
          [4, "four"]
        ])
        expect(yield* written).toEqual([3, 2, 4])
        const after = yield* look<{ id: number }>(listed)
        expect(after.map(({ id }) => id)).toEqual([1, 2, 3, 4])
        expect(after.filter(({ id }) => id % 2 === 1)).toEqual(before)
        expect(yield* Migrations.run(Db, { loader: late })).toEqual([])
      }).pipe(Effect.provide(unsettled))
  )

  it.scopedLive(
    "migrations that could never run are named: two with the same id, another name under an applied id, ids below 1",
    () =>
      Effect.gen(function* () {
        yield* Migrations.run(Db, { loader: loaderOf({ "1_ran": ran }) })
        const tried = (migrations: Readonly<Record<string, string>>) =>
          Effect.map(failure(Migrations.run(Db, { loader: loaderOf(migrations) })), ({ migrations, reason }) => [
            reason,
            ...migrations
          ])
        expect(yield* tried({ "1_ran": ran, "2_a": add(1), "2_b": add(2) })).toEqual(["duplicates", "2_a", "2_b"])
        expect(yield* tried({ "1_other": ran })).toEqual(["renamed", "1_other", "1_ran"])
        expect(yield* tried({ "0_zero": add(0), "1_ran": ran })).toEqual(["outOfOrder", "0_zero"])
        expect(yield* written).toEqual([])
      }).pipe(Effect.provide(unsettled))
  )

  it.scopedLive("migrations that cannot be loaded are named", () =>
    Effect.gen(function* () {
      const loader = Migrator.fromGlob({ "./migrations/1_gone.ts": () => Promise.reject(new Error("no such file")) })
      const error = yield* failure(Migrations.run(Db, { loader }))
      expect([error.reason, error.migrations]).toEqual(["import", ["1_gone"]])
      expect(error.message).toContain("no such file")
    }).pipe(Effect.provide(unsettled))
  )

  it.scopedLive("migrations and the Migrator of @effect/sql each continue after what the other has applied", () =>
    Effect.gen(function* () {
      const plain = (loader: Migrator.Loader) => Effect.provide(Migrator.make({})({ loader }), Db.layerSqlClient)
      yield* plain(loaderOf({ "1_ran": ran }))
      yield* Migrations.run(Db, { loader: loaderOf({ "1_ran": ran, "2_two": add(2) }) })
      yield* plain(loaderOf({ "1_ran": ran, "2_two": add(2), "3_three": add(3) }))
      expect(yield* written).toEqual([2, 3])
    }).pipe(Effect.provide(unsettled))
  )

  it.scopedLive("migrations are applied when their layer is built, before the statements of the program", () =>
    Effect.gen(function* () {
      const place = yield* Place
      const DbLive = Migrations.layer(Db, { loader: loaderOf({ "1_ran": ran, "2_two": add(2) }) }).pipe(
        Layer.provideMerge(Db.layer({ writer: place.writer }))
      )
      const rows = Effect.flatMap(Db.writer, (sql) => sql`SELECT n FROM ran`)
      expect(yield* Effect.provide(rows, DbLive)).toEqual([{ n: 2 }])
    }).pipe(Effect.provide(unsettled))
  )

  it.scopedLive("migrations have a statementTimeout of their own, and ignore that of the database", () =>
    Effect.gen(function* () {
      yield* Migrations.run(Db, { loader: loaderOf({ "1_slow": "SELECT pg_sleep(0.4)", "2_ran": ran }) })
      expect(yield* isThere("ran")).toBe(true)
      const limited = Migrations.run(Db, {
        loader: loaderOf({ "1_slow": "SELECT pg_sleep(0.4)", "2_ran": ran, "3_slow": "SELECT pg_sleep(10)" }),
        statementTimeout: "100 millis"
      })
      expect((yield* failure(limited)).migrations).toEqual(["3_slow"])
    }).pipe(Effect.provide(fresh({ statementTimeout: "200 millis" })))
  )

  it.scopedLive("migrations fail if the user may not insert into their table, unless all of them are applied", () =>
    Effect.gen(function* () {
      const place = yield* Place
      const role = yield* freshRole(place.writer)
      yield* Migrations.run(Db, { loader: loaderOf({ "1_ran": ran }) })
      yield* look(`GRANT SELECT, UPDATE, DELETE, TRUNCATE ON effect_sql_migrations TO ${role.name}`)
      const asGuest = (migrations: Readonly<Record<string, string>>) =>
        Effect.provide(
          Migrations.run(Db, { loader: loaderOf(migrations) }),
          Db.layer({ writer: loggedIn(place.writer, role) })
        )
      expect(yield* asGuest({ "1_ran": ran })).toEqual([])
      const error = yield* failure(asGuest({ "1_ran": ran, "2_two": "SELECT 1" }))
      expect([error.reason, error.migrations]).toEqual(["failed", ["2_two"]])
    }).pipe(Effect.scoped, Effect.provide(unsettled))
  )

  it.scopedLive("migrations whose table has a name that the Migrator would not find again are refused", () =>
    Effect.gen(function* () {
      for (const table of ["App", "a-b", "", "a.b.c", 'x" (id int); --']) {
        const error = yield* Effect.flip(Migrations.run(Db, { loader: loaderOf({ "1_ran": ran }), table }))
        expect([error._tag, error.message.includes(JSON.stringify(table))]).toEqual(["ConfigInvalid", true])
      }
      yield* look("CREATE SCHEMA house")
      for (let i = 0; i < 2; i++) {
        yield* Migrations.run(Db, { loader: loaderOf({ "1_ran": ran }), table: "house.done" })
      }
      expect(yield* isThere("house.done")).toBe(true)
    }).pipe(Effect.provide(unsettled))
  )

  it.scopedLive("migrations run in a sandbox, and are rolled back with it", () =>
    Effect.gen(function* () {
      yield* Effect.scoped(
        Effect.gen(function* () {
          const sandbox = yield* Layer.build(TestDatabase.layer(Db))
          const migrate = Migrations.run(Db, { loader: loaderOf({ "1_ran": ran, "2_two": add(2) }) })
          expect(yield* Effect.provide(migrate, sandbox)).toHaveLength(2)
          const rows = Effect.flatMap(Db.writer, (sql) => sql`SELECT n FROM ran`)
          expect(yield* Effect.provide(rows, sandbox)).toEqual([{ n: 2 }])
        })
      )
      expect(yield* isThere("ran")).toBe(false)
    }).pipe(Effect.provide(unsettled))
  )
})

describe("migrations of tenants", () => {
  it.scopedLive("migrations of tenants that run at the same time are applied once in each schema", () =>
    Effect.gen(function* () {
      const tenants = ["one", "two", 'Three "3"']
      const loader = loaderOf({ "1_ran": ran, "2_two": add(2) })
      const createSchema = (tenant: string) =>
        Effect.flatMap(Db.writer, (sql) => sql`CREATE SCHEMA IF NOT EXISTS ${sql(tenant)}`).pipe(
          DatabaseError.refine,
          Effect.catchTag("UniqueViolation", () => Effect.void)
        )
      const migrate = (tenant: string) =>
        Effect.zipRight(createSchema(tenant), Migrations.run(Db, { loader }).pipe(Tenant.withTenant(tenant)))
      const twice = [...tenants, ...tenants]
      const applied = yield* Effect.forEach(twice, migrate, { concurrency: "unbounded" })
      expect(applied.flat()).toHaveLength(2 * tenants.length)
      for (const tenant of tenants) {
        const schema = `"${tenant.replaceAll('"', '""')}"`
        expect(yield* look(`SELECT n FROM ${schema}.ran`)).toEqual([{ n: 2 }])
        expect(yield* isThere(`${schema}.effect_sql_migrations`)).toBe(true)
      }
      expect(yield* isThere("ran")).toBe(false)
    }).pipe(Effect.provide(unsettled))
  )
})

/** The layer of two new databases, and an effect that checks each of them for the table `ran`. */
const two = Effect.gen(function* () {
  const [app, audit] = [yield* freshDatabase, yield* freshDatabase]
  const layer = Layer.merge(Db.layer({ writer: app.writer }), Audit.layer({ writer: audit.writer }))
  const hasTable = (database: typeof app) =>
    Effect.map(
      query<{ there: boolean }>(database.writer, "SELECT to_regclass('ran') IS NOT NULL AS there"),
      ([row]) => row?.there
    )
  return { layer, there: Effect.all([hasTable(app), hasTable(audit)]) }
})

describe("migrations of several databases", () => {
  it.scopedLive("migrations of several databases are stored together or not at all", () =>
    Effect.gen(function* () {
      const { layer, there } = yield* two
      const migrate = (audit: Readonly<Record<string, string>>) =>
        Migrations.runAll([
          Migrations.on(Db, { loader: loaderOf({ "1_ran": ran }) }),
          Migrations.on(Audit, { loader: loaderOf(audit) })
        ]).pipe(Effect.provide(layer))
      const error = yield* failure(migrate({ "1_ran": ran, "2_wrong": "nonsense" }))
      expect([error.database, error.migrations]).toEqual(["audit", ["2_wrong"]])
      expect(yield* there).toEqual([false, false])
      expect([...(yield* migrate({ "1_ran": ran }))]).toEqual([
        ["app", [[1, "ran"]]],
        ["audit", [[1, "ran"]]]
      ])
      expect(yield* there).toEqual([true, true])
    })
  )

  it.scopedLive(
    "migrations of several databases do not deadlock when concurrent runs list the databases in different orders",
    () =>
      Effect.gen(function* () {
        const { layer } = yield* two
        const app = Migrations.on(Db, { loader: loaderOf({ "1_ran": ran }) })
        const audit = Migrations.on(Audit, { loader: loaderOf({ "1_ran": ran }) })
        const both = [Migrations.runAll([app, audit]), Migrations.runAll([audit, app])]
        const applied = yield* Effect.provide(Effect.all([...both, ...both], { concurrency: "unbounded" }), layer)
        expect(applied.flatMap((one) => [...one.values()].flat())).toHaveLength(2)
      })
  )
})

describe.skipIf(!hasBouncer)(behindBouncer, () => {
  it.scopedLive("migrations behind a pooler are applied once each by runs at the same time, and leave no lock", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const { url } = yield* makeBouncer(writer)
      const loader = loaderOf({ "1_ran": ran, "2_two": add(2), "3_three": add(3) })
      const options: Database.Options = {
        writer: at(Redacted.value(url), new URL(Redacted.value(writer)).pathname.slice(1)),
        mode: "transactionPooler"
      }
      const one = Effect.provide(Migrations.run(Db, { loader }), Layer.fresh(Db.layer(options)))
      const applied = yield* Effect.all([one, one, one], { concurrency: "unbounded" })
      expect(applied.flat()).toHaveLength(3)
      expect(yield* query(writer, "SELECT n FROM ran ORDER BY n")).toEqual([{ n: 2 }, { n: 3 }])
      expect(yield* query(writer, `SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND ${inThisDatabase}`)).toEqual(
        []
      )
    })
  )
})
