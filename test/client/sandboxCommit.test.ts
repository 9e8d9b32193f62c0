/**
 * The end of a transaction in a sandbox does what COMMIT does: constraints, notifications and SET LOCAL.
 */
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { DatabaseError, TestDatabase, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { collide, Db, fresh, insert, type Place, run, setting } from "../support/databases.js"

/** Runs a test in a sandbox of a new database. */
const sandboxed = <A, E>(test: Effect.Effect<A, E, Db | Place | Scope.Scope>, options?: TestDatabase.SandboxOptions) =>
  Effect.provide(Effect.provide(Effect.scoped(test), TestDatabase.layer(Db, options)), fresh())

const failure = <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.flip(DatabaseError.refine(self))

const createTables = Effect.gen(function* () {
  yield* run("CREATE TABLE parent (id int PRIMARY KEY)")
  yield* run(`CREATE TABLE child (
    parent int CONSTRAINT of_parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED,
    n int CONSTRAINT of_n UNIQUE DEFERRABLE INITIALLY IMMEDIATE
  )`)
})

const addParent = run("INSERT INTO parent VALUES (1)")
const addChild = (n: number) => run(`INSERT INTO child VALUES (1, ${n})`)

const countChildren = Effect.flatMap(Db.reader, (sql) =>
  Effect.map(sql<{ n: number }>`SELECT count(*)::int AS n FROM child`, ([row]) => row?.n)
)

describe("constraints in a sandbox", () => {
  it.scopedLive("a violated deferred constraint fails the commit, and undoes the transaction alone", () =>
    sandboxed(
      Effect.gen(function* () {
        yield* createTables
        const error = yield* failure(Db.withTransaction(addChild(1)))
        assert.deepStrictEqual([error._tag, "sqlState" in error && error.sqlState], ["CommitFailed", "23503"])
        assert.strictEqual(yield* countChildren, 0)
        yield* Db.withTransaction(Effect.zipRight(addChild(1), addParent))
        assert.strictEqual(yield* countChildren, 1)
      })
    )
  )

  it.scopedLive("a violated deferred constraint fails an autocommit statement, a unit of work and a stream", () =>
    sandboxed(
      Effect.gen(function* () {
        yield* createTables
        assert.strictEqual((yield* failure(addChild(1)))._tag, "ForeignKeyViolation")
        assert.strictEqual((yield* failure(UnitOfWork.run(addChild(1))))._tag, "CommitFailed")
        const sql = yield* Db.writer
        const streamed = Stream.runDrain(sql`INSERT INTO child VALUES (1, 1) RETURNING n`.stream)
        assert.strictEqual((yield* failure(streamed))._tag, "CommitFailed")
        assert.strictEqual(yield* countChildren, 0)
      })
    )
  )

  it.scopedLive("constraints are deferred again after a commit, those that are initially immediate are not", () =>
    sandboxed(
      Effect.gen(function* () {
        yield* createTables
        for (const n of [1, 2]) {
          yield* Db.withTransaction(
            Effect.all([
              addChild(n),
              run("DELETE FROM child"),
              addChild(n),
              run("INSERT INTO parent VALUES (1) ON CONFLICT DO NOTHING")
            ])
          )
          yield* run("DELETE FROM child")
        }
        yield* run("DELETE FROM parent")
        // with the constraint immediate, the first statement would fail
        yield* Db.withTransaction(Effect.zipRight(addChild(1), addParent))
        let isStopped = false
        const twice = Effect.ensuring(
          addChild(1),
          Effect.sync(() => {
            isStopped = true
          })
        )
        const error = yield* failure(
          Db.withTransaction(Effect.zipRight(twice, Effect.die("the statement has not failed")))
        )
        assert.deepStrictEqual([error._tag, isStopped], ["UniqueViolation", true])
        const deferred = Effect.all([run("SET CONSTRAINTS ALL DEFERRED"), addChild(1)])
        assert.strictEqual((yield* failure(Db.withTransaction(deferred)))._tag, "CommitFailed")
        assert.strictEqual((yield* failure(Db.withTransaction(addChild(1))))._tag, "UniqueViolation")
      })
    )
  )

  it.scopedLive("constraints of equal names and a role without rights do not disturb a commit", () =>
    sandboxed(
      Effect.gen(function* () {
        yield* createTables
        // the server would refuse to defer the second one, and the third one is immediate at first
        yield* run("CREATE TABLE b (parent int CONSTRAINT of_parent REFERENCES parent)")
        yield* run("CREATE TABLE c (id int CONSTRAINT twin UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        yield* run("CREATE TABLE d (id int CONSTRAINT twin2 UNIQUE DEFERRABLE INITIALLY IMMEDIATE)")
        yield* run("ALTER TABLE d RENAME CONSTRAINT twin2 TO other")
        yield* run("CREATE SCHEMA hidden; CREATE TABLE hidden.e (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        yield* run("CREATE ROLE sandbox_tenant; GRANT INSERT ON item TO sandbox_tenant")
        yield* Db.withTransaction(
          Effect.zipRight(run("SET LOCAL ROLE sandbox_tenant"), run("INSERT INTO item (id, name) VALUES (1, 'tenant')"))
        )
        const sql = yield* Db.writer
        const [row] = yield* sql<{ role: string }>`SELECT current_setting('role') AS role`
        assert.strictEqual(row?.role, "none")
        assert.strictEqual((yield* failure(Db.withTransaction(addChild(1))))._tag, "ForeignKeyViolation")
      })
    )
  )

  it.scopedLive("the work of a deferred trigger is kept", () =>
    sandboxed(
      Effect.gen(function* () {
        yield* createTables
        yield* run(`CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN INSERT INTO item (name) VALUES ('logged'); RETURN NULL; END $$`)
        yield* run(`CREATE CONSTRAINT TRIGGER log AFTER INSERT ON parent DEFERRABLE INITIALLY DEFERRED
          FOR EACH ROW EXECUTE FUNCTION log()`)
        const logged = Effect.flatMap(Db.reader, (sql) => Effect.map(sql`SELECT FROM item`, (rows) => rows.length))
        const before = Effect.zipRight(
          addParent,
          Effect.flatMap(Db.writer, (sql) => sql`SELECT FROM item`)
        )
        assert.deepStrictEqual(yield* Db.withTransaction(before), [])
        assert.strictEqual(yield* logged, 1)
      })
    )
  )

  it.scopedLive(
    "an aborted transaction is rolled back at its commit, and work of its own inside of another waits for that",
    () =>
      sandboxed(
        Effect.gen(function* () {
          yield* createTables
          const aborted = Effect.zipRight(addChild(1), Effect.ignore(run("SELECT 1 / 0")))
          assert.strictEqual((yield* failure(Db.withTransaction(aborted)))._tag, "RolledBackAtCommit")
          const inner = Db.withTransaction(insert("inner"), { propagation: "requiresNew" })
          yield* Db.withTransaction(Effect.all([addChild(1), inner, Db.independent(insert("other")), addParent]))
          assert.strictEqual(yield* countChildren, 1)
        })
      )
  )
})

describe("settings in a sandbox", () => {
  const local = run("SET LOCAL lock_timeout = '7s'")

  it.scopedLive("the values of SET LOCAL end with their transaction, also after a rollback to a savepoint", () =>
    sandboxed(
      Effect.gen(function* () {
        const before = yield* setting("lock_timeout")
        const inside = yield* Db.withTransaction(Effect.all([local, setting("lock_timeout")]))
        assert.strictEqual(inside[1], "7s")
        assert.strictEqual(yield* setting("lock_timeout"), before)
        const undone = Effect.ignore(Db.withTransaction(Effect.zipRight(local, Effect.fail("no"))))
        const twice = Effect.all([undone, local, run("SET LOCAL lock_timeout TO '8s'"), setting("lock_timeout")])
        assert.strictEqual((yield* Db.withTransaction(twice))[3], "8s")
        assert.strictEqual(yield* setting("lock_timeout"), before)
        yield* local
        assert.strictEqual(yield* setting("lock_timeout"), before)
        yield* UnitOfWork.run(local)
        assert.strictEqual(yield* setting("lock_timeout"), before)
      })
    )
  )

  it.scopedLive(
    "a variable of the program and a time zone end with their transaction, a SET of the session stays",
    () =>
      sandboxed(
        Effect.gen(function* () {
          const sql = yield* Db.writer
          const variable = "app.tenant"
          const value = Effect.map(
            sql<{ value: string }>`SELECT coalesce(current_setting('app.tenant', true), '') AS value`,
            ([row]) => row?.value
          )
          const set = (text: string) => sql`SELECT set_config(${variable}, ${text}, ${true}), 'a ''quoted'' text'`
          const written = sql`SELECT set_config('App.Tenant', 'c', true)`
          const seen = yield* Db.withTransaction(Effect.all([set("a"), value, set("b"), value, written, value]))
          assert.deepStrictEqual([seen[1], seen[3], seen[5]], ["a", "b", "c"])
          assert.strictEqual(yield* value, "")
          const zone = yield* setting("timezone")
          yield* Db.withTransaction(run("SET LOCAL TIME ZONE 'Asia/Tokyo'"))
          assert.strictEqual(yield* setting("timezone"), zone)
          yield* Db.withTransaction(
            Effect.zipRight(
              run("SET LOCAL nonsense.x = 1"),
              Effect.ignore(Db.withTransaction(run("SET LOCAL nonsense = 1")))
            )
          )
          yield* Db.withTransaction(run("SELECT set_config('app.tenant', 'kept', false)"))
          assert.strictEqual(yield* value, "kept")
        })
      )
  )
})

describe("independent work in a sandbox", () => {
  const inner = Db.withTransaction(insert("inner"), { propagation: "requiresNew" })
  const other = Db.independent(insert("other"))

  it.scopedLive("independent work stays usable while the transactions around it are committed", () =>
    sandboxed(
      Effect.gen(function* () {
        yield* Db.withTransaction(Effect.all([insert("a"), inner, other, Db.withTransaction(insert("b"))]))
        yield* Effect.ignore(Db.withTransaction(Effect.zipRight(insert("c"), Effect.fail("no"))))
        // reads and undone work are no loss
        const read = Db.independent(run("SELECT 1"))
        const undone = Db.withTransaction(Effect.zipRight(insert("d"), Effect.fail("no")), {
          propagation: "requiresNew"
        })
        yield* Effect.ignore(
          Db.withTransaction(Effect.all([insert("e"), read, Effect.ignore(undone), Effect.fail("no")]))
        )
        const newRead = Db.withTransaction(run("SELECT 1"), { propagation: "requiresNew" })
        yield* Effect.ignore(Db.withTransaction(Effect.all([insert("g"), newRead, Effect.fail("no")])))
        yield* insert("f")
      })
    )
  )

  it.scopedLive("a transaction around undone independent work is refused as well", () =>
    sandboxed(
      Effect.gen(function* () {
        const undone = Effect.ignore(Db.withTransaction(Effect.all([insert("b"), inner, Effect.fail("no")])))
        const error = yield* failure(Db.withTransaction(Effect.all([insert("a"), undone, insert("c")])))
        assert.include(error.message, "use TestDatabase.layerTemplate for this test")
      })
    )
  )

  it.scopedLive("a conflict is no reason to retry a later transaction", () =>
    sandboxed(
      Effect.gen(function* () {
        yield* Effect.ignore(Db.withTransaction(collide))
        let attempts = 0
        const twice = Effect.suspend(() =>
          Effect.zipRight(
            Effect.sync(() => attempts++),
            Effect.zipRight(insert("a"), insert("a"))
          )
        )
        assert.strictEqual((yield* failure(Db.withTransaction(twice, { retry: true })))._tag, "UniqueViolation")
        assert.strictEqual(attempts, 1)
      })
    )
  )

  for (const [name, work] of [
    ["a new transaction", inner],
    ["an independent statement", other],
    ["a new unit of work", UnitOfWork.runNew(insert("unit"))]
  ] as const) {
    it.scopedLive(`a sandbox that has undone ${name} with the transaction around it refuses further statements`, () =>
      sandboxed(
        Effect.gen(function* () {
          const nested = Db.withTransaction(Effect.zipRight(insert("nested"), work))
          const error = yield* Effect.flip(
            Db.withTransaction(Effect.all([insert("a"), nested, Effect.fail("no" as const)]))
          )
          assert.strictEqual(error, "no")
          for (const one of [insert("b"), Db.withTransaction(insert("c"))])
            assert.include((yield* failure(one)).message, "use TestDatabase.layerTemplate for this test")
        })
      )
    )
  }
})

describe("the isolation of a sandbox", () => {
  const serializable = Db.withTransaction(run("SHOW transaction_isolation"), { isolation: "serializable" })

  it.scopedLive("a transaction with a higher isolation than the sandbox is refused, and the sandbox stays usable", () =>
    sandboxed(
      Effect.gen(function* () {
        const error = yield* failure(serializable)
        assert.include(error.message, 'TestDatabase.layer(Db, { isolation: "serializable" })')
        const unit = yield* failure(UnitOfWork.run(insert("a"), { transaction: { isolation: "repeatable read" } }))
        assert.include(unit.message, 'isolation: "repeatable read"')
        const sql = yield* Db.writer
        const byHand = Effect.scoped(
          Effect.flatMap(sql.reserve, (reserved) =>
            Effect.zipRight(
              reserved.executeRaw("BEGIN ISOLATION LEVEL SERIALIZABLE", []),
              reserved.executeRaw("SELECT 1", [])
            )
          )
        )
        assert.include((yield* failure(byHand)).message, 'isolation: "serializable"')
        yield* insert("a")
      })
    )
  )

  it.scopedLive("a sandbox with a higher isolation runs transactions of it, and those of a lower one", () =>
    sandboxed(
      Effect.gen(function* () {
        const [row] = yield* serializable
        assert.deepStrictEqual(row, { transaction_isolation: "serializable" })
        yield* Db.withTransaction(insert("a"), { isolation: "repeatable read" })
        yield* Db.withTransaction(insert("b"))
      }),
      { isolation: "serializable" }
    )
  )
})

describe("notifications in a sandbox", () => {
  /** Collects the payloads of a channel until `last` arrives; the effect inside awaits that. */
  const collect = (channel: string) =>
    Effect.gen(function* () {
      const ready = yield* Deferred.make<void>()
      const fiber = yield* Db.listen(channel).pipe(
        Stream.tap((notification) =>
          notification._tag === "Listening" ? Deferred.succeed(ready, undefined) : Effect.void
        ),
        Stream.filter((notification) => notification._tag === "Message"),
        Stream.map(({ payload }) => payload),
        Stream.takeUntil((payload) => payload === "last"),
        Stream.runCollect,
        Effect.forkScoped
      )
      yield* Deferred.await(ready)
      return Effect.map(fiber.await, (exit) => (exit._tag === "Success" ? [...exit.value] : assert.fail("failed")))
    })

  it.scopedLive("a notification is delivered at the end of its transaction, once, and not if that is undone", () =>
    sandboxed(
      Effect.gen(function* () {
        const payloads = yield* collect("app")
        const sql = yield* Db.writer
        const log: Array<string> = []
        yield* Db.withTransaction(
          Effect.all([
            Db.notify("app", "first"),
            Db.withTransaction(Effect.all([Db.notify("app", "nested"), Db.notify("app", "first")])),
            Effect.ignore(Db.withTransaction(Effect.zipRight(Db.notify("app", "undone"), Effect.fail("no")))),
            sql`NOTIFY app, 'it''s'`,
            sql`SELECT pg_notify('app', 'commented') AS sent -- a comment`,
            sql.notify("App", "another channel"),
            Effect.sync(() => log.push("sent"))
          ])
        )
        yield* Effect.ignore(Db.withTransaction(Effect.zipRight(Db.notify("app", "never"), Effect.fail("no"))))
        yield* UnitOfWork.run(sql`SELECT pg_notify('app', ${"of a unit"})`)
        yield* sql`NOTIFY "app"`
        yield* Db.notify("app", "last")
        assert.deepStrictEqual(yield* payloads, ["first", "nested", "it's", "commented", "of a unit", "", "last"])
      })
    )
  )

  it.scopedLive("a notification arrives before the hooks of its transaction run, and in no other sandbox", () =>
    Effect.gen(function* () {
      const live = yield* Effect.context<Db>()
      const payloads = yield* Effect.provide(collect("app"), live)
      yield* Effect.gen(function* () {
        const own = yield* collect("app")
        yield* Db.withTransaction(Effect.zipRight(Db.afterCommit(own), Db.notify("app", "last")))
        assert.deepStrictEqual(yield* own, ["last"])
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer(Db)))
      yield* Effect.provide(Db.notify("app", "real"), live)
      yield* Effect.provide(Db.notify("app", "last"), live)
      assert.deepStrictEqual(yield* payloads, ["real", "last"])
    }).pipe(Effect.provide(fresh()))
  )
})
