/** Units of work that end in two phases. */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import { type Database, EmbeddedPostgres, UnitOfWork } from "effect-db"
import { Audit, Db, idle } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { eventually } from "../support/eventually.js"
import { failure } from "../support/failures.js"
import { answers, type Message, makeProxy, type Proxy, sends } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"
import { told, watch } from "../support/suites/pooling/observations.js"

/** A database may be left for twice the `resolveWithin` before the recovery ends what it finds. */
const options: Partial<Database.Options> = { outcome: "marker", twoPhase: true, resolveWithin: "1 second" }

const given = (more: Partial<Database.Options> = {}) =>
  Effect.gen(function* () {
    const [one, two] = [yield* freshDatabase, yield* freshDatabase]
    for (const { writer } of [one, two]) {
      yield* query(writer, "CREATE TABLE moved (id int)")
      yield* query(
        writer,
        `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN IF NEW.id < 0 THEN RAISE EXCEPTION 'refused'; END IF; RETURN NEW; END $$`
      )
      yield* query(
        writer,
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON moved DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()"
      )
    }
    const proxies = { one: yield* makeProxy(one.writer), two: yield* makeProxy(two.writer) }
    const context = yield* Layer.build(
      Layer.merge(
        Db.layer({ writer: proxies.one.url, ...options, ...more }),
        Audit.layer({ writer: proxies.two.url, ...options, ...more })
      )
    )
    const stored = Effect.forEach([one, two], ({ writer }) =>
      Effect.map(query<{ id: number }>(writer, "SELECT id FROM moved ORDER BY id"), (rows) => rows.map(({ id }) => id))
    )
    const prepared = Effect.map(
      Effect.forEach([one, two], ({ writer }) =>
        query(writer, "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
      ),
      (all) => all.flat().length
    )
    return { one: one.writer, two: two.writer, proxies, context: Context.pick(Db, Audit)(context), stored, prepared }
  })

const move = (id: number) => Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO moved VALUES (${id})`)
const moveOther = (id: number) => Effect.flatMap(Audit.writer, (sql) => sql`INSERT INTO moved VALUES (${id})`)
const both = (id: number) => Effect.zipRight(move(id), moveOther(id))
const run = <A, E, R>(self: Effect.Effect<A, E, R>) => UnitOfWork.run(self, { atomic: "twoPhase" })

describe("a unit of work in two phases", () => {
  it.scopedLive("it stores the work of both databases, and leaves no prepared transaction", () =>
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

  it.scopedLive("a database without the option refuses the unit, which is undone", () =>
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

  it.scopedLive("the option of a part holds for the unit that it joins", () =>
    Effect.gen(function* () {
      const { context, proxies, stored } = yield* given()
      const seen = yield* proxies.one.when(sends("PREPARE TRANSACTION"), "pass")
      yield* Effect.provide(UnitOfWork.run(Effect.zipRight(move(1), run(moveOther(1)))), context)
      yield* seen
      assert.deepStrictEqual(yield* stored, [[1], [1]])
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
        const { context, prepared, proxies, stored } = yield* given()
        for (let id = 1; id <= 5; id++) {
          const armed = lose(proxies.one, proxies.two)
          const exit = yield* Effect.exit(run(Effect.zipRight(both(id), armed))).pipe(Effect.provide(context))
          assert.strictEqual(Exit.isSuccess(exit), isStored, `unit ${id} ended as ${exit}`)
        }
        yield* eventually(prepared, (count) => count === 0)
        const ids = isStored ? [1, 2, 3, 4, 5] : []
        assert.deepStrictEqual(yield* stored, [ids, ids])
      })
    )
  }

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
        yield* eventually(prepared, (count) => count === 0)
        const [one, two] = yield* stored
        assert.deepStrictEqual(one, two)
      })
    )
  }
})

describe("the recovery of prepared transactions", () => {
  /** Leaves a prepared transaction, as a process that was killed does, and returns the marker's id. */
  const leave = (url: Redacted.Redacted<string>, decider: Redacted.Redacted<string>, id: number) =>
    Effect.gen(function* () {
      const [found] = yield* query<{ key: string; marker: string }>(
        decider,
        `SELECT system_identifier || '/' || (SELECT oid FROM pg_database WHERE datname = current_database()) AS key,
           lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || substr(md5(random()::text), 13) AS marker
         FROM pg_control_system()`
      )
      const { key, marker } = found ?? assert.fail("no identity")
      const uuid = `${marker.slice(0, 8)}-${marker.slice(8, 12)}-7${marker.slice(13, 16)}-8${marker.slice(17, 20)}-${marker.slice(20, 32)}`
      yield* query(url, `BEGIN; INSERT INTO moved VALUES (${id}); PREPARE TRANSACTION 'effect-db:${key}:${uuid}:0'`)
      return uuid
    })

  it.scopedLive("a prepared transaction follows the marker of its unit, and is undone without one", () =>
    Effect.gen(function* () {
      const { context, one, prepared, stored, two } = yield* given({ resolveWithin: "100 millis" })
      const committed = yield* leave(one, two, 1)
      yield* query(two, `SELECT effect_db.mark_commit('${committed}')`)
      yield* leave(one, two, 2)
      const seen = yield* Effect.provide(watch, context)
      yield* eventually(prepared, (count) => count === 0)
      assert.deepStrictEqual(yield* stored, [[1], []])
      const recovered = yield* told(seen, "PreparedRecovered", 2)
      assert.deepStrictEqual(recovered.map(({ outcome }) => outcome).toSorted(), ["committed", "undone"])
    })
  )

  it.scopedLive("a prepared transaction of another program is left alone", () =>
    Effect.gen(function* () {
      const { one, prepared, two } = yield* given({ resolveWithin: "100 millis" })
      yield* query(one, "BEGIN; INSERT INTO moved VALUES (1); PREPARE TRANSACTION 'other:1'")
      yield* query(one, "BEGIN; INSERT INTO moved VALUES (1); PREPARE TRANSACTION 'effect-db:other'")
      yield* leave(one, two, 2)
      assert.strictEqual(yield* prepared, 3)
      yield* eventually(prepared, (count) => count < 3)
      assert.strictEqual(yield* prepared, 2)
      for (const gid of ["other:1", "effect-db:other"]) yield* query(one, `ROLLBACK PREPARED '${gid}'`)
    })
  )
})
