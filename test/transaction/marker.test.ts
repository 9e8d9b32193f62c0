/**
 * The proof of an outcome by a marker: the table and its rights, the rows, and the proof on servers
 * that are away, restarted or replaced.
 */
import * as Migrator from "@effect/sql/Migrator"
import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { Consistency, type Database, Migrations, TestDatabase, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { asUnknown, createAdd, endAfterRestart, endOf, outcomeOf, unknownIn, writes } from "../support/commitProof.js"
import { Audit, Db, idle, insert, run } from "../support/databases.js"
import { make } from "../support/embedded.js"
import { eventually } from "../support/eventually.js"
import { failure } from "../support/failures.js"
import { freshItemsThroughProxy, itemsThroughProxy } from "../support/proxied.js"
import { answers, sends } from "../support/proxy.js"
import { freshRole, loggedIn, type Role } from "../support/roles.js"
import { freshDatabase, query, untilIs } from "../support/server.js"

const marker = { outcome: "marker" } as const

const given = (options: Partial<Database.Options> = {}) => freshItemsThroughProxy({ ...marker, ...options })

/** The number of markers, and of fences. */
const rowsIn = (url: Redacted.Redacted<string>) =>
  Effect.map(
    query<{ markers: number; fences: number }>(
      url,
      "SELECT count(*) FILTER (WHERE NOT is_fence)::int AS markers, count(*) FILTER (WHERE is_fence)::int AS fences FROM effect_db.outcome"
    ),
    ([row]) => row ?? assert.fail("no row")
  )

/** A role that may write the table `item`, and nothing else. */
const limitedRole = (url: Redacted.Redacted<string>) =>
  Effect.gen(function* () {
    yield* query(url, "CREATE TABLE IF NOT EXISTS item (name text)")
    const role = yield* freshRole(url)
    yield* query(url, `GRANT ALL ON item TO ${role.name}`)
    return role
  })

const grants = (role: Role) => [
  `GRANT USAGE ON SCHEMA effect_db TO ${role.name}`,
  `GRANT SELECT, INSERT, UPDATE, DELETE ON effect_db.outcome TO ${role.name}`
]

const build = (writer: Redacted.Redacted<string>, options: Partial<Database.Options> = {}) =>
  Layer.build(Db.layer({ writer, ...marker, ...options }))

/** Runs an effect while another session holds the lock of the creation in an open transaction. */
const duringCreation =
  (writer: Redacted.Redacted<string>) =>
  <A, E, R>(self: Effect.Effect<A, E, R>) =>
    Effect.zipRight(
      Effect.flatMap(Audit.writer, (sql) => sql`SELECT pg_advisory_xact_lock(7306920148392116584)`),
      self
    ).pipe(Audit.withTransaction(), Effect.provide(Audit.layer({ writer })))

/** Waits until no session waits for an advisory lock. */
const noneWaits = (url: Redacted.Redacted<string>) =>
  eventually(
    query<{ is: number }>(
      url,
      "SELECT count(*)::int AS is FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"
    ),
    ([row]) => row?.is === 0
  )

describe("the table of markers", () => {
  for (const startup of ["verify", "lazy"] as const) {
    it.scopedLive(
      `the table of markers is created once by processes that start at the same time, with startup ${startup}`,
      () =>
        Effect.gen(function* () {
          const { writer } = yield* freshDatabase
          yield* query(writer, "CREATE TABLE item (name text)")
          const names = ["a", "b", "c", "d", "e", "f"]
          yield* Effect.forEach(
            names,
            (name) =>
              Effect.scoped(
                Effect.flatMap(build(writer, { startup }), (context) =>
                  Effect.provide(Db.withTransaction(insert(name)), context)
                )
              ),
            { concurrency: "unbounded" }
          )
          assert.deepStrictEqual(yield* rowsIn(writer), { markers: 6, fences: 0 })
        })
    )

    it.scopedLive(`a user without rights gets ConnectFailed with the grants, with startup ${startup}`, () =>
      Effect.gen(function* () {
        const { writer } = yield* freshDatabase
        const role = yield* limitedRole(writer)
        const url = loggedIn(writer, role)
        const use = (options: Partial<Database.Options> = {}) =>
          Effect.scoped(
            Effect.flatMap(build(url, { startup, ...options }), (context) =>
              Effect.provide(Db.withTransaction(insert("a")), context)
            )
          )
        const refusal = (options?: Partial<Database.Options>) =>
          Effect.map(failure(use(options)), (error) => {
            assert.strictEqual(error._tag === "ConnectFailed" && error.reason, "outcomeTable")
            return error.message
          })
        assert.match(yield* refusal(), /cannot be created: permission denied .* Migrations\.outcomeTable/)
        assert.match(yield* refusal({ outcomeTable: "exists" }), /does not exist: create it with Migrations/)
        const owner = yield* build(writer, { outcome: "status" })
        const loader = Migrator.fromRecord({ "1_outcome": Migrations.outcomeTable })
        yield* Effect.provide(Migrations.run(Db, { loader }), owner)
        assert.match(yield* refusal({ outcomeTable: "exists" }), /may not use the table .* GRANT USAGE ON SCHEMA/)
        for (const grant of grants(role)) yield* query(writer, grant)
        yield* use({ outcomeTable: "exists" })
        assert.deepStrictEqual(yield* rowsIn(writer), { markers: 1, fences: 0 })
      })
    )
  }

  it.scopedLive(
    "a table of markers that is dropped fails a COMMIT with advice, and is created again for the next transaction",
    () =>
      Effect.gen(function* () {
        const { context, stored, writer } = yield* given()
        yield* Effect.provide(Db.withTransaction(insert("a")), context)
        yield* query(writer, "DROP SCHEMA effect_db CASCADE")
        const error = yield* Effect.provide(failure(Db.withTransaction(insert("b"))), context)
        assert.strictEqual(error._tag, "CommitFailed")
        assert.include(error.message, "Migrations.outcomeTable")
        yield* Effect.provide(Db.withTransaction(insert("c")), context)
        assert.deepStrictEqual(yield* stored, ["a", "c"])
        yield* Effect.provide(idle, context)
      })
  )

  for (const [which, isDropped] of [
    ["the first transactions", false],
    ["the transactions after a refused marker", true]
  ] as const) {
    it.scopedLive(`${which} wait for a lock on the table until acquireTimeout, and leave no session that waits`, () =>
      Effect.gen(function* () {
        const { context, stored, writer } = yield* given({ startup: "lazy", acquireTimeout: "2 seconds" })
        if (isDropped) {
          yield* Effect.provide(Db.withTransaction(insert("a")), context)
          yield* query(writer, "DROP SCHEMA effect_db CASCADE")
          yield* Effect.provide(failure(Db.withTransaction(insert("b"))), context)
        }
        yield* Effect.gen(function* () {
          const errors = yield* Effect.forEach(["c", "d", "e"], (name) => failure(Db.withTransaction(insert(name))), {
            concurrency: "unbounded"
          }).pipe(
            Effect.provide(context),
            UnitOfWork.outside,
            Effect.disconnect,
            Effect.timeoutFail({ duration: "20 seconds", onTimeout: () => new Error("the transactions still wait") })
          )
          for (const error of errors) {
            assert.strictEqual(error._tag === "ConnectFailed" && error.reason, "unresponsive")
            assert.include(error.message, "effect_db.outcome was not checked in time: another session may hold a lock")
          }
          yield* noneWaits(writer)
        }).pipe(duringCreation(writer))
        yield* Effect.provide(Db.withTransaction(insert("f")), context)
        assert.deepStrictEqual(yield* stored, isDropped ? ["a", "f"] : ["f"])
        yield* Effect.provide(idle, context)
      })
    )
  }

  it.scopedLive("a start that waits for a lock on the table fails, and leaves no session that waits", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      yield* Effect.gen(function* () {
        const error = yield* Effect.flip(Effect.scoped(build(writer, { connectTimeout: "2 seconds" })))
        assert.strictEqual(error._tag === "ConnectFailed" && error.reason, "unresponsive")
        yield* noneWaits(writer)
      }).pipe(duringCreation(writer))
    })
  )

  it.scopedLive(
    "a role that a transaction sets needs USAGE on the schema of the markers alone, and a COMMIT without it says so",
    () =>
      Effect.gen(function* () {
        const { context, stored, writer } = yield* given()
        const role = yield* limitedRole(writer)
        const work = (name: string) =>
          Db.withTransaction(Effect.zipRight(run(`SET LOCAL ROLE ${role.name}`), insert(name)))
        const error = yield* Effect.provide(failure(work("a")), context)
        assert.strictEqual(error._tag === "CommitFailed" && error.sqlState, "42501")
        assert.include(error.message, "GRANT USAGE ON SCHEMA effect_db to each role that transactions set")
        yield* query(writer, `GRANT USAGE ON SCHEMA effect_db TO ${role.name}`)
        yield* Effect.provide(work("b"), context)
        assert.deepStrictEqual(yield* stored, ["b"])
      })
  )

  it.scopedLive("markers older than the retention are deleted, and no others", () =>
    Effect.gen(function* () {
      const { context, writer } = yield* given({ outcomeRetention: "1 hour", startup: "lazy" })
      const [oldId, newId] = ["00000000-0000-7000-8000-000000000001", "ffffffff-0000-7000-8000-000000000001"]
      yield* Effect.scoped(Effect.asVoid(build(writer)))
      yield* query(
        writer,
        `INSERT INTO effect_db.outcome (id, at) VALUES ('${oldId}', now() - interval '2 hours'), ('${newId}', now() - interval '10 minutes')`
      )
      yield* Effect.provide(Db.withTransaction(insert("a")), context)
      yield* Effect.provide(idle, context)
      const left = yield* query(writer, "SELECT id FROM effect_db.outcome ORDER BY at")
      assert.lengthOf(left, 2)
      assert.deepStrictEqual(left[0], { id: newId })
    })
  )

  it.scopedLive("old markers and keys are deleted in batches, until none is left", () =>
    Effect.gen(function* () {
      const { context, writer } = yield* given({ outcomeRetention: "1 hour", startup: "lazy" })
      yield* Effect.scoped(Effect.asVoid(build(writer)))
      const old = (prefix: string, fingerprint: string, count: number) =>
        query(
          writer,
          `INSERT INTO effect_db.outcome (id, fingerprint, at)
            SELECT ('${prefix}-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, ${fingerprint}, now() - interval '2 hours'
            FROM generate_series(1, ${count}) n`
        )
      // the ids of keys have no time, so they are not below those of old markers
      yield* old("00000000", "NULL", 12_000)
      yield* old("ffffffff", "'request'", 6000)
      const left = Effect.map(
        query<{ is: number }>(
          writer,
          "SELECT count(*)::int AS is FROM effect_db.outcome WHERE at < now() - interval '1 hour'"
        ),
        ([row]) => row?.is
      )
      const transaction = Effect.provide(Db.withTransaction(insert("a")), context)
      yield* transaction
      yield* Effect.provide(idle, context)
      assert.strictEqual(yield* left, 8000)
      // without more old rows, the next deletion would come after half a minute at least
      yield* eventually(Effect.zipRight(transaction, left), (count) => count === 0)
    })
  )

  it.scopedLive("a deletion of old markers that the server refuses is reported, and fails no transaction", () =>
    Effect.gen(function* () {
      const { context, stored, writer } = yield* given({ startup: "lazy" })
      yield* Effect.scoped(Effect.asVoid(build(writer)))
      yield* query(
        writer,
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'kept for the audit'; END $$"
      )
      yield* query(
        writer,
        "CREATE TRIGGER keep BEFORE DELETE ON effect_db.outcome FOR EACH STATEMENT EXECUTE FUNCTION keep()"
      )
      const reported = yield* Effect.fork(
        Stream.runHead(Stream.filter(Db.observations, ({ _tag }) => _tag === "OutcomesNotDeleted")).pipe(
          Effect.provide(context)
        )
      )
      // subscribes before the transaction
      yield* Effect.yieldNow()
      yield* Effect.provide(Db.withTransaction(insert("a")), context)
      const fact = Option.getOrThrow(yield* Fiber.join(reported))
      assert.include("message" in fact ? fact.message : "", "kept for the audit")
      yield* Effect.provide(idle, context)
      assert.deepStrictEqual(yield* stored, ["a"])
    })
  )

  it.scopedLive("an old marker that is locked is left, and delays no transaction", () =>
    Effect.gen(function* () {
      const { context, writer } = yield* given({ startup: "lazy", maxConnections: 1 })
      yield* Effect.scoped(Effect.asVoid(build(writer)))
      yield* query(
        writer,
        "INSERT INTO effect_db.outcome (id, at) SELECT ('00000000-0000-7000-8000-00000000000' || n)::uuid, now() - interval '2 days' FROM generate_series(1, 2) n"
      )
      yield* Effect.scoped(
        Effect.gen(function* () {
          const holder = Context.pick(Audit)(yield* Layer.build(Audit.layer({ writer })))
          yield* Effect.gen(function* () {
            yield* Effect.flatMap(
              Audit.writer,
              (sql) => sql`SELECT 1 FROM effect_db.outcome WHERE id::text LIKE '%1' FOR UPDATE`
            )
            yield* Effect.provide(Db.withTransaction(insert("a")), context)
            yield* Effect.provide(Db.withTransaction(insert("b")), context)
          }).pipe(Audit.withTransaction(), Effect.provide(holder))
        })
      )
      const old = yield* query(writer, "SELECT id FROM effect_db.outcome WHERE at < now() - interval '1 day'")
      assert.deepStrictEqual(old, [{ id: "00000000-0000-7000-8000-000000000001" }])
    })
  )

  it.effect("a retention that is not longer than the proof is refused", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(
        Layer.build(Db.layer({ writer: Redacted.make("postgres://u:p@localhost/d"), outcomeRetention: "5 seconds" }))
      )
      assert.strictEqual(error._tag === "ConfigInvalid" && error.setting, "outcomeRetention")
    }).pipe(Effect.scoped)
  )
})

describe("the marker of a transaction", () => {
  const all: typeof writes = [
    ...writes,
    ["a row lock", Effect.zipRight(insert("a"), run("SELECT * FROM item FOR UPDATE"))],
    [
      "a search path",
      Effect.zipRight(run("SET LOCAL search_path = pg_temp"), run("INSERT INTO public.item VALUES ('a')"))
    ],
    ["a text that drops all prepared statements", Effect.zipRight(run("DEALLOCATE ALL"), insert("a"))]
  ]
  for (const mode of ["session", "transactionPooler"] as const) {
    for (const [name, write] of all) {
      it.scopedLive(`a marker proves a COMMIT without an answer if the write was ${name}, in the mode ${mode}`, () =>
        Effect.gen(function* () {
          const { context, proxy, stored, writer } = yield* given({ mode, maxConnections: 1 })
          yield* query(writer, createAdd)
          yield* proxy.when(answers("COMMIT"), "cut")
          yield* Effect.provide(Db.withTransaction(write), context)
          yield* proxy.when(sends("COMMIT"), "cut")
          const error = yield* Effect.provide(failure(Db.withTransaction(write)), context)
          assert.strictEqual(outcomeOf(error), "undone")
          assert.deepStrictEqual(yield* stored, ["a"])
          assert.deepStrictEqual(yield* rowsIn(writer), { markers: 1, fences: 1 })
          yield* Effect.provide(idle, context)
        })
      )
    }
  }

  for (const isolation of ["read committed", "repeatable read", "serializable"] as const) {
    it.scopedLive(`a marker is stored in a ${isolation} transaction, and also with a token of the COMMIT`, () =>
      Effect.gen(function* () {
        const { context, proxy, stored, writer } = yield* given()
        const work = (name: string) => Db.withTransaction(insert(name), { isolation })
        yield* Effect.provide(work("a"), context)
        yield* proxy.when(answers("COMMIT"), "cut")
        yield* Effect.provide(work("b"), context)
        const session = Consistency.makeSession()
        yield* Consistency.withSession(work("c"), session).pipe(Effect.provide(context))
        yield* Consistency.withSession(work("d"), session).pipe(Effect.provide(context))
        assert.include(Consistency.encodeSession(session), "app")
        assert.deepStrictEqual(yield* stored, ["a", "b", "c", "d"])
        assert.deepStrictEqual(yield* rowsIn(writer), { markers: 4, fences: 0 })
      })
    )
  }

  it.scopedLive("a marker costs no round trip", () =>
    Effect.gen(function* () {
      const trips = (options: Partial<Database.Options>) =>
        Effect.gen(function* () {
          const { context, proxy } = yield* given({ maxConnections: 1, ...options })
          const once = Effect.provide(Db.withTransaction(insert("a")), context)
          yield* once
          yield* Effect.provide(idle, context)
          const before = proxy.roundTrips
          yield* once
          return proxy.roundTrips - before
        })
      assert.strictEqual(yield* trips({}), yield* trips({ outcome: "unknown" }))
    })
  )

  it.scopedLive("a marker survives sessions that are reset after each use", () =>
    Effect.gen(function* () {
      const { context, writer } = yield* given({ maxConnections: 1, resetOnReturn: "discardAll" })
      for (const name of ["a", "b", "c"]) yield* Effect.provide(Db.withTransaction(insert(name)), context)
      assert.deepStrictEqual(yield* rowsIn(writer), { markers: 3, fences: 0 })
    })
  )

  it.scopedLive("a transaction that stores nothing leaves no marker", () =>
    Effect.gen(function* () {
      const { context, writer } = yield* given()
      yield* Effect.gen(function* () {
        yield* Db.withTransaction(Effect.void)
        yield* Db.withTransaction(run("SELECT count(*) FROM item"))
        yield* Db.withTransaction(run("SELECT count(*) FROM item"), { access: "read only" })
        yield* Db.withTransaction(Effect.zipRight(run("SET TRANSACTION READ ONLY"), run("SELECT count(*) FROM item")))
        const reader = yield* Db.reader
        yield* reader.withTransaction(reader`SELECT count(*) FROM item`)
        yield* Effect.ignore(Db.withTransaction(Effect.zipRight(insert("a"), Effect.fail("x"))))
        yield* insert("autocommit")
        yield* Effect.provide(Db.withTransaction(insert("sandbox")), TestDatabase.layer(Db))
      }).pipe(Effect.provide(context))
      assert.deepStrictEqual(yield* rowsIn(writer), { markers: 0, fences: 0 })
    })
  )

  it.scopedLive("a marker is stored for a transaction that only notifies, so that it notifies once", () =>
    Effect.gen(function* () {
      const { context, proxy, writer } = yield* given()
      yield* proxy.when(answers("COMMIT"), "cut")
      yield* Effect.provide(Db.withTransaction(run("SELECT pg_notify('news', 'x')"), { retry: true }), context)
      assert.deepStrictEqual(yield* rowsIn(writer), { markers: 1, fences: 0 })
    })
  )

  it.scopedLive("a marker is undone with a COMMIT that a deferred constraint refuses", () =>
    Effect.gen(function* () {
      const { context, writer } = yield* given()
      yield* query(writer, "CREATE TABLE once (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
      const error = yield* Effect.provide(failure(Db.withTransaction(run("INSERT INTO once VALUES (1), (1)"))), context)
      assert.strictEqual(error._tag === "CommitFailed" && error.sqlState, "23505")
      assert.deepStrictEqual(yield* rowsIn(writer), { markers: 0, fences: 0 })
    })
  )

  it.scopedLive("each database of a unit of work has a marker of its own", () =>
    Effect.gen(function* () {
      const { context, writer } = yield* given()
      const { writer: other } = yield* freshDatabase
      yield* query(other, "CREATE TABLE event (name text)")
      const audit = Context.pick(Audit)(yield* Layer.build(Audit.layer({ writer: other, ...marker })))
      yield* UnitOfWork.run(
        Effect.zipRight(
          insert("a"),
          Effect.flatMap(Audit.writer, (sql) => sql`INSERT INTO event VALUES ('a')`)
        )
      ).pipe(Effect.provide(Context.merge(context, audit)))
      assert.deepStrictEqual(yield* rowsIn(writer), { markers: 1, fences: 0 })
      assert.deepStrictEqual(yield* rowsIn(other), { markers: 1, fences: 0 })
    })
  )
})

describe("the proof by a marker", () => {
  it.scopedLive("a COMMIT that arrives after the proof that it is undone stores nothing", () =>
    Effect.gen(function* () {
      const { context, proxy, stored, writer } = yield* given({ resolveWithin: "20 seconds" })
      // warms the prepared statement, so that a text with COMMIT is the first message after it
      yield* Effect.provide(Db.withTransaction(insert("a")), context)
      const held = yield* proxy.when(
        ({ bytes, from }) => from === "client" && bytes.includes("effect_db_marker"),
        "freeze"
      )
      const fiber = yield* Effect.fork(Effect.provide(Db.withTransaction(insert("late")), context))
      yield* held
      const exit = yield* Fiber.interrupt(fiber)
      assert.strictEqual(yield* unknownIn(exit).resolve, "undone")
      yield* proxy.thaw
      yield* untilIs(
        writer,
        "SELECT count(*)::int AS is FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND datname = current_database()",
        0
      )
      assert.deepStrictEqual(yield* stored, ["a"])
      assert.deepStrictEqual(yield* rowsIn(writer), { markers: 1, fences: 1 })
    })
  )

  it.scopedLive("a COMMIT that its fence refuses is undone, and no violation of the program", () =>
    Effect.gen(function* () {
      const { context, stored, writer } = yield* given()
      yield* query(
        writer,
        `CREATE FUNCTION collide() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          INSERT INTO effect_db.outcome (id, is_fence) VALUES (NEW.id, true); RETURN NEW; END $$`
      )
      yield* query(
        writer,
        "CREATE TRIGGER collide BEFORE INSERT ON effect_db.outcome FOR EACH ROW WHEN (NOT NEW.is_fence) EXECUTE FUNCTION collide()"
      )
      const error = yield* Effect.provide(failure(Db.withTransaction(insert("a"))), context)
      assert.strictEqual(error._tag, "Disconnected")
      assert.strictEqual(outcomeOf(error), "undone")
      assert.deepStrictEqual(yield* stored, [])
      yield* Effect.provide(idle, context)
    })
  )

  it.scopedLive("the proof by a marker waits for a COMMIT in progress, whose end decides", () =>
    Effect.gen(function* () {
      const { context, proxy, stored, writer } = yield* given({ resolveWithin: "20 seconds" })
      yield* query(
        writer,
        `CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          PERFORM pg_advisory_xact_lock(1); IF NEW.name = 'refused' THEN RAISE 'refused'; END IF; RETURN NULL; END $$`
      )
      yield* query(
        writer,
        "CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold()"
      )
      const waiting = "SELECT count(*)::int AS is FROM pg_stat_activity WHERE wait_event = 'transactionid'"
      for (const [name, outcome] of [
        ["kept", "stored"],
        ["refused", "undone"]
      ] as const) {
        const holder = Context.pick(Audit)(yield* Layer.build(Audit.layer({ writer })))
        const joined = yield* Effect.gen(function* () {
          yield* Effect.flatMap(Audit.writer, (sql) => sql`SELECT pg_advisory_xact_lock(1)`)
          const fiber = yield* Effect.fork(
            UnitOfWork.outside(endOf(Effect.provide(Db.withTransaction(insert(name)), context)))
          )
          yield* untilIs(writer, "SELECT count(*)::int AS is FROM pg_stat_activity WHERE wait_event = 'advisory'", 1)
          yield* proxy.cut
          yield* untilIs(writer, waiting, 1)
          return fiber
        }).pipe(Audit.withTransaction(), Effect.provide(holder))
        assert.strictEqual(yield* Fiber.join(joined), outcome)
      }
      assert.deepStrictEqual(yield* stored, ["kept"])
    })
  )

  it.scopedLive("a marker proves a COMMIT whose backend is ended while it waits for a synchronous standby", () =>
    Effect.gen(function* () {
      const { primary } = yield* make()
      const url = primary.url()
      const { context, proxy, stored } = yield* itemsThroughProxy(url, { ...marker, resolveWithin: "20 seconds" })
      const standby = (command: string, value: string) =>
        query(url, command).pipe(
          Effect.zipRight(query(url, "SELECT pg_reload_conf()")),
          Effect.zipRight(
            eventually(
              query(url, "SELECT current_setting('synchronous_standby_names') AS is"),
              ([row]) => row?.is === value
            )
          )
        )
      const waits = (count: number) =>
        eventually(
          query(url, "SELECT count(*)::int AS is FROM pg_stat_activity WHERE wait_event = 'SyncRep'"),
          ([row]) => row?.is === count
        )
      yield* standby("ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "nobody")
      // the connection is lost while COMMIT waits, which the server does not notice
      const first = yield* Effect.fork(Effect.provide(Db.withTransaction(insert("a")), context))
      yield* waits(1)
      yield* proxy.cut
      const second = yield* Effect.fork(Effect.provide(Db.withTransaction(insert("b")), context))
      yield* waits(2)
      yield* query(
        url,
        `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'
          ORDER BY backend_start DESC LIMIT 1`
      )
      yield* Fiber.join(second)
      assert.strictEqual((yield* Fiber.poll(first))._tag, "None")
      yield* standby("ALTER SYSTEM RESET synchronous_standby_names", "")
      yield* Fiber.join(first)
      assert.deepStrictEqual(yield* stored, ["a", "b"])
      assert.deepStrictEqual(yield* rowsIn(url), { markers: 2, fences: 0 })
    })
  )

  it.scopedLive("an outcome that a marker has not proved in time can be resolved later", () =>
    Effect.gen(function* () {
      const { context, proxy, stored } = yield* given({ resolveWithin: "100 millis" })
      const log: Array<string> = []
      const hooks = Effect.zipRight(
        Db.afterUnknown(Effect.sync(() => void log.push("unknown"))),
        Db.afterCommit(Effect.sync(() => void log.push("committed")))
      )
      for (const [name, point, outcome] of [
        ["a", answers("COMMIT"), "committed"],
        ["b", sends("COMMIT"), "undone"]
      ] as const) {
        const cut = yield* proxy.when(point, "cut")
        const [error] = yield* Effect.all(
          [
            Effect.provide(failure(Db.withTransaction(Effect.zipRight(hooks, insert(name)))), context),
            Effect.zipRight(cut, proxy.refuse)
          ],
          { concurrency: 2 }
        )
        const unknown = asUnknown(error)
        assert.match(unknown.marker ?? "", /^[0-9a-f]{8}-[0-9a-f]{4}-7/)
        yield* proxy.accept
        assert.strictEqual(yield* Effect.retry(unknown.resolve, { times: 50 }), outcome)
        assert.strictEqual(yield* Effect.retry(unknown.resolve, { times: 50 }), outcome)
      }
      assert.deepStrictEqual(log, ["unknown", "unknown"])
      assert.deepStrictEqual(yield* stored, ["a"])
    })
  )

  it.scopedLive("a fence whose own answer was lost still says that the transaction is undone", () =>
    Effect.gen(function* () {
      const { context, proxy, stored, writer } = yield* given({ resolveWithin: "20 seconds" })
      yield* proxy.when(sends("COMMIT"), "cut")
      let fences = 0
      yield* proxy.when((message) => {
        if (sends("is_fence) VALUES")(message)) fences++
        return false
      }, "pass")
      // the answer to the COMMIT of the fence
      yield* proxy.when(answers("COMMIT"), "cut")
      const error = yield* Effect.provide(failure(Db.withTransaction(insert("a"))), context)
      assert.strictEqual(outcomeOf(error), "undone")
      assert.strictEqual(fences, 2)
      assert.deepStrictEqual(yield* stored, [])
      assert.deepStrictEqual(yield* rowsIn(writer), { markers: 0, fences: 1 })
    })
  )

  it.scopedLive("an interruption during the proof by a marker ends with CommitOutcomeUnknown", () =>
    Effect.gen(function* () {
      const { context, proxy } = yield* given()
      const cut = yield* proxy.when(answers("COMMIT"), "cut")
      const fiber = yield* Effect.fork(Effect.provide(Db.withTransaction(insert("a")), context))
      yield* cut
      yield* proxy.freeze
      const exit = yield* Fiber.interrupt(fiber)
      assert.strictEqual(unknownIn(exit).database, "app")
      yield* proxy.thaw
    })
  )

  for (const stop of ["kill", "stop"] as const) {
    it.scopedLive(`a marker proves the outcome after the server was ended by ${stop}`, () =>
      Effect.gen(function* () {
        const { primary } = yield* make({ settings: { wal_writer_delay: "10s", autovacuum: false } })
        const db = yield* itemsThroughProxy(primary.url(), { ...marker, resolveWithin: "20 seconds" })
        assert.strictEqual(yield* endAfterRestart(db, primary, stop, "a", answers("COMMIT")), "stored")
        assert.strictEqual(yield* endAfterRestart(db, primary, stop, "b", sends("COMMIT")), "undone")
        assert.deepStrictEqual(yield* db.stored, ["a"])
      })
    )
  }

  it.scopedLive("a COMMIT that a promoted standby has is stored, one that it lacks is undone", () =>
    Effect.gen(function* () {
      const { primary, replicas, awaitReplicas } = yield* make({ replicas: 1 })
      const replica = replicas[0] ?? assert.fail("there is no replica")
      const { context, proxy } = yield* itemsThroughProxy(primary.url(), { ...marker, resolveWithin: "20 seconds" })
      const attempt = (name: string) => Effect.fork(endOf(Effect.provide(Db.withTransaction(insert(name)), context)))
      const first = yield* proxy.when(answers("COMMIT"), "freeze")
      const kept = yield* attempt("kept")
      yield* first
      yield* awaitReplicas
      yield* replica.stop
      const second = yield* proxy.when(answers("COMMIT"), "freeze")
      const lost = yield* attempt("lost")
      yield* second
      yield* primary.kill
      yield* replica.start
      yield* replica.promote
      const url = replica.url()
      // the new primary gives the id of the lost transaction to others
      for (let i = 0; i < 10; i++) yield* query(url, "INSERT INTO item VALUES ('other')")
      yield* proxy.retarget(url)
      yield* proxy.cut
      assert.strictEqual(yield* Fiber.join(kept), "stored")
      assert.strictEqual(yield* Fiber.join(lost), "undone")
      const rows = yield* query(url, "SELECT name FROM item WHERE name <> 'other'")
      assert.deepStrictEqual(rows, [{ name: "kept" }])
    })
  )
})
