/** Units of work that end in two phases. */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { Database, EmbeddedPostgres, UnitOfWork } from "effect-db"
import { Audit, Db, idle } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { eventually } from "../support/eventually.js"
import { failure } from "../support/failures.js"
import { answers, type Message, type Proxy, sends } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"
import { both, given, move, moveOther, options, run, undoPrepared } from "../support/twoPhase.js"

class Third extends Database.Service<Third>()("third") {}

describe("a unit of work in two phases", () => {
  it.scopedLive("a unit in two phases stores the work of both databases, and leaves no prepared transaction", () =>
    Effect.gen(function* () {
      const { context, prepared, proxies, stored } = yield* given()
      let count = 0
      yield* proxies.one.when((message) => {
        if (sends("PREPARE TRANSACTION")(message)) count++
        return false
      }, "pass")
      yield* Effect.provide(run(both(1)), context)
      assert.deepStrictEqual(yield* stored, [[1], [1]])
      assert.strictEqual(yield* prepared, 0)
      assert.strictEqual(count, 1)
      // one database alone needs no second phase
      yield* Effect.provide(run(move(2)), context)
      yield* Effect.provide(UnitOfWork.run(both(3)), context)
      assert.strictEqual(count, 1)
      assert.deepStrictEqual(yield* stored, [
        [1, 2, 3],
        [1, 3]
      ])
      yield* Effect.provide(idle, context)
    })
  )

  it.scopedLive("a violated constraint on either database undoes both", () =>
    Effect.gen(function* () {
      const { context, prepared, stored } = yield* given()
      for (const work of [Effect.zipRight(move(-1), moveOther(1)), Effect.zipRight(move(1), moveOther(-1))]) {
        const failed = yield* Effect.provide(failure(run(work)), context)
        assert.strictEqual(failed._tag, "CommitFailed")
      }
      assert.deepStrictEqual(yield* stored, [[], []])
      assert.strictEqual(yield* prepared, 0)
    })
  )

  it.scopedLive("a transaction that has notified cannot be prepared, and nothing is stored", () =>
    Effect.gen(function* () {
      const { context, prepared, stored } = yield* given()
      const failed = yield* Effect.provide(failure(run(Effect.zipRight(both(1), Db.notify("news")))), context)
      assert.strictEqual(failed._tag, "CommitFailed")
      assert.match(failed.message, /cannot PREPARE a transaction that has executed LISTEN, UNLISTEN, or NOTIFY/)
      assert.deepStrictEqual(yield* stored, [[], []])
      assert.strictEqual(yield* prepared, 0)
    })
  )

  it.scopedLive("a role that the transaction has set does not keep it from its second phase", () =>
    Effect.gen(function* () {
      const { context, one, prepared, stored } = yield* given()
      yield* query(one, "DO $$ BEGIN CREATE ROLE mover; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
      yield* query(one, "GRANT ALL ON moved TO mover")
      const inRole = Effect.flatMap(Db.writer, (sql) => sql`SET LOCAL ROLE mover`)
      yield* Effect.provide(run(Effect.zipRight(inRole, both(1))), context)
      assert.deepStrictEqual(yield* stored, [[1], [1]])
      assert.strictEqual(yield* prepared, 0)
    })
  )

  it.scopedLive("a database without the option twoPhase refuses a unit in two phases, which is undone", () =>
    Effect.gen(function* () {
      const { context, stored } = yield* given({ twoPhase: false })
      const failed = yield* Effect.provide(failure(run(both(1))), context)
      assert.deepInclude(failed, { _tag: "ConfigInvalid", setting: "twoPhase" })
      assert.deepStrictEqual(yield* stored, [[], []])
    })
  )

  it.scopedLive("a unit that has a part of a transaction around it is refused", () =>
    Effect.gen(function* () {
      const { context, stored } = yield* given()
      const failed = yield* Effect.provide(failure(Db.withTransaction(run(both(1)))), context)
      assert.deepInclude(failed, { _tag: "OptionsConflict", option: "atomic" })
      assert.deepStrictEqual(yield* stored, [[], []])
    })
  )

  it.scopedLive("the option atomic of a part holds for the unit that it joins", () =>
    Effect.gen(function* () {
      const { context, proxies, stored } = yield* given()
      const seen = yield* proxies.one.when(sends("PREPARE TRANSACTION"), "pass")
      yield* Effect.provide(UnitOfWork.run(Effect.zipRight(move(1), run(moveOther(1)))), context)
      yield* seen
      assert.deepStrictEqual(yield* stored, [[1], [1]])
    })
  )

  it.scopedLive("a nested part over both databases is stored with its unit", () =>
    Effect.gen(function* () {
      const { context, prepared, stored } = yield* given()
      yield* Effect.provide(run(UnitOfWork.nested(both(1))), context)
      yield* Effect.provide(run(Effect.ignore(UnitOfWork.nested(Effect.zipRight(both(2), Effect.fail("no"))))), context)
      assert.deepStrictEqual(yield* stored, [[1], [1]])
      assert.strictEqual(yield* prepared, 0)
    })
  )

  it.scopedLive("a failed end undoes the part of the unit in the transaction around it", () =>
    Effect.gen(function* () {
      const { context, stored } = yield* given()
      const failed = yield* Effect.provide(failure(Db.withTransaction(Effect.ignore(run(both(1))))), context)
      assert.strictEqual(failed._tag, "RolledBackAtCommit")
      assert.deepStrictEqual(yield* stored, [[], []])
    })
  )

  it.scopedLive("a unit that has parts of two transactions around it is refused", () =>
    Effect.gen(function* () {
      const { context, stored } = yield* given()
      const failed = yield* Effect.provide(failure(Audit.withTransaction(Db.withTransaction(run(both(1))))), context)
      assert.deepInclude(failed, { _tag: "OptionsConflict", option: "atomic" })
      assert.deepStrictEqual(yield* stored, [[], []])
    })
  )

  it.scopedLive("the hooks of a database without work follow the outcome of the unit", () =>
    Effect.gen(function* () {
      const { context, prepared, stored } = yield* given()
      const third = yield* Layer.build(Third.layer({ writer: (yield* freshDatabase).writer, ...options }))
      const seen: Array<string> = []
      const see = (what: string) => Effect.sync(() => seen.push(what))
      const hooks = Effect.zipRight(Third.afterCommit(see("committed")), Third.afterRollback(see("rolled back")))
      const all = Context.merge(context, third)
      // refused by the PREPARE of the first database, and by the decision of the second
      for (const work of [Effect.zipRight(move(-1), moveOther(1)), Effect.zipRight(move(1), moveOther(-1))]) {
        yield* Effect.provide(failure(run(Effect.zipRight(hooks, work))), all)
        assert.deepStrictEqual(seen.splice(0), ["rolled back"])
      }
      yield* Effect.provide(run(Effect.zipRight(hooks, both(1))), all)
      assert.deepStrictEqual(seen, ["committed"])
      assert.deepStrictEqual(yield* stored, [[1], [1]])
      assert.strictEqual(yield* prepared, 0)
    })
  )

  it.scopedLive("three databases are stored as a whole", () =>
    Effect.gen(function* () {
      const { context, prepared, stored } = yield* given()
      const { writer } = yield* freshDatabase
      yield* query(writer, "CREATE TABLE moved (id int CHECK (id > 0))")
      const all = Context.merge(context, yield* Layer.build(Third.layer({ writer, ...options })))
      const moveThird = (id: number) => Effect.flatMap(Third.writer, (sql) => sql`INSERT INTO moved VALUES (${id})`)
      yield* Effect.provide(run(Effect.zipRight(both(1), moveThird(1))), all)
      yield* Effect.provide(failure(run(Effect.zipRight(both(-2), moveThird(2)))), all)
      assert.deepStrictEqual(yield* stored, [[1], [1]])
      assert.deepStrictEqual(yield* query(writer, "SELECT id FROM moved"), [{ id: 1 }])
      assert.strictEqual(yield* prepared, 0)
    })
  )

  it.scopedLive("a decision is on the disk before it is reported, also without synchronous_commit", () =>
    Effect.gen(function* () {
      const { context, two } = yield* given()
      yield* query(two, "CREATE TABLE seen (setting text)")
      yield* query(
        two,
        `CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$`
      )
      for (const setting of ["off", "local"]) {
        const set = Effect.flatMap(Audit.writer, (sql) =>
          sql.unsafe(`SELECT set_config('synchronous_commit', '${setting}', true)`)
        )
        yield* Effect.provide(run(Effect.zipRight(both(1), set)), context)
      }
      assert.deepStrictEqual(yield* query(two, "SELECT setting FROM seen"), [{ setting: "on" }, { setting: "local" }])
    })
  )

  it.scopedLive("with a lazy start, a participant without prepared transactions is ConfigInvalid", () =>
    Effect.gen(function* () {
      const { context, stored } = yield* given()
      const { primary } = yield* EmbeddedPostgres.make({ directory })
      yield* query(primary.url(), "CREATE TABLE moved (id int)")
      const lazy = yield* Layer.build(Db.layer({ writer: primary.url(), startup: "lazy", ...options }))
      const failed = yield* Effect.provide(failure(run(both(1))), Context.merge(context, lazy))
      assert.deepInclude(failed, { _tag: "ConfigInvalid", setting: "twoPhase" })
      assert.deepStrictEqual(yield* stored, [[], []])
    })
  )

  it.scopedLive("markers of decisions are kept for an hour at least", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const failed = yield* Effect.flip(Layer.build(Db.layer({ writer, ...options, outcomeRetention: "59 minutes" })))
      assert.deepInclude(failed, { _tag: "ConfigInvalid", setting: "outcomeRetention" })
      yield* Layer.build(Db.layer({ writer, ...options, outcomeRetention: "1 hour" }))
    })
  )

  it.scopedLive("a server without prepared transactions fails the start of the layer", () =>
    Effect.gen(function* () {
      const { primary } = yield* EmbeddedPostgres.make({ directory })
      const failed = yield* Effect.flip(Layer.build(Db.layer({ writer: primary.url(), ...options })))
      assert.deepInclude(failed, { _tag: "ConfigInvalid", setting: "twoPhase" })
      assert.include(failed.message, "max_prepared_transactions is 0 on the server")
    })
  )
})

/** The points at which a connection is lost; `isStored` says how the unit must end. */
const points: ReadonlyArray<
  readonly [name: string, isStored: boolean, lose: (one: Proxy, two: Proxy) => Effect.Effect<unknown>]
> = [
  ["before PREPARE", false, (one) => one.when(sends("PREPARE TRANSACTION"), "cut")],
  ["after PREPARE", false, (one) => one.when(answers("PREPARE TRANSACTION"), "cut")],
  ["before the decision", false, (_, two) => two.when(sends("mark_commit"), "cut")],
  ["after the decision", true, (_, two) => two.when(answers("COMMIT"), "cut")],
  ["before COMMIT PREPARED", true, (one) => one.when(sends("COMMIT PREPARED"), "cut")],
  ["after COMMIT PREPARED", true, (one) => one.when(answers("COMMIT PREPARED"), "cut")]
]

describe("a lost connection in two phases", () => {
  for (const [name, isStored, lose] of points) {
    it.scopedLive(`both databases agree if a connection is lost ${name}`, () =>
      Effect.gen(function* () {
        const { context, prepared, proxies, stored } = yield* given({ resolveWithin: "1 minute" })
        for (let id = 1; id <= 5; id++) {
          const armed = lose(proxies.one, proxies.two)
          const exit = yield* Effect.exit(run(Effect.zipRight(both(id), armed))).pipe(Effect.provide(context))
          assert.strictEqual(Exit.isSuccess(exit), isStored, `unit ${id} ended as ${exit}`)
        }
        // the recovery would come later
        assert.strictEqual(yield* prepared, 0)
        const ids = isStored ? [1, 2, 3, 4, 5] : []
        assert.deepStrictEqual(yield* stored, [ids, ids])
      })
    )
  }

  it.scopedLive("a connection that is lost while its database is identified is no invalid setting", () =>
    Effect.gen(function* () {
      const { context, proxies, stored } = yield* given({ startup: "lazy" })
      yield* proxies.one.when(sends("pg_control_system"), "cut")
      const failed = yield* Effect.provide(failure(run(both(1))), context)
      assert.deepInclude(failed, { _tag: "Disconnected", outcome: "undone" })
      yield* proxies.one.when(sends("pg_control_system"), "cut")
      yield* Effect.provide(UnitOfWork.run(both(2), { atomic: "twoPhase", retry: true }), context)
      assert.deepStrictEqual(yield* stored, [[2], [2]])
    })
  )

  it.scopedLive("a unit with retry runs again after a lost connection, and is stored once", () =>
    Effect.gen(function* () {
      const { context, prepared, proxies, stored } = yield* given()
      for (const [i, [, , lose]] of points.entries()) {
        let isArmed = false
        const arm = Effect.suspend(() => {
          if (isArmed) return Effect.void
          isArmed = true
          return lose(proxies.one, proxies.two)
        })
        yield* UnitOfWork.run(Effect.zipRight(both(i), arm), { atomic: "twoPhase", retry: true }).pipe(
          Effect.provide(context)
        )
      }
      yield* eventually(prepared, (count) => count === 0)
      const ids = [0, 1, 2, 3, 4, 5]
      assert.deepStrictEqual(yield* stored, [ids, ids])
    })
  )
})

/** The messages at which the fiber of a unit is interrupted. */
const moments: ReadonlyArray<readonly [name: string, at: "one" | "two", matches: (message: Message) => boolean]> = [
  ["at PREPARE", "one", sends("PREPARE TRANSACTION")],
  ["after PREPARE", "one", answers("PREPARE TRANSACTION")],
  ["at the decision", "two", sends("mark_commit")],
  ["after the decision", "two", answers("COMMIT")],
  ["at COMMIT PREPARED", "one", sends("COMMIT PREPARED")]
]

/** The longest time that an interrupted unit of these tests may take. */
const soon = "20 seconds"

describe("an interrupted unit in two phases", () => {
  for (const [name, at, matches] of moments) {
    it.scopedLive(`both databases agree if the unit is interrupted ${name}`, () =>
      Effect.gen(function* () {
        const { context, prepared, proxies, stored } = yield* given()
        const reached = yield* proxies[at].when(matches, "freeze")
        const fiber = yield* Effect.fork(Effect.provide(run(both(1)), context))
        yield* reached
        const interrupted = yield* Effect.fork(Fiber.interrupt(fiber))
        yield* proxies[at].thaw
        yield* Fiber.join(interrupted)
        const exit = yield* Fiber.await(fiber)
        assert.isTrue(Exit.isInterrupted(exit), `the unit ended as ${exit}`)
        yield* eventually(prepared, (count) => count === 0)
        const [one, two] = yield* stored
        assert.deepStrictEqual(one, two)
      })
    )

    it.scopedLive(`an interrupted unit does not wait for resolveWithin ${name}`, () =>
      Effect.gen(function* () {
        const { context, one, proxies, two } = yield* given({ resolveWithin: "1 minute" })
        const reached = yield* proxies[at].when(matches, "freeze")
        const fiber = yield* Effect.fork(Effect.provide(run(both(1)), context))
        yield* reached
        const exit = yield* Effect.timeoutFail(Effect.disconnect(Fiber.interrupt(fiber)), {
          duration: soon,
          onTimeout: () => new Error("the unit still waits")
        })
        assert.isTrue(Exit.isInterrupted(exit), `the unit ended as ${exit}`)
        yield* proxies[at].cut
        yield* proxies[at].thaw
        for (const url of [one, two]) yield* undoPrepared(url)
      })
    )
  }
})
