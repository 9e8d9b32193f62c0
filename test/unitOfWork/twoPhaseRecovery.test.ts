/** The recovery of prepared transactions that a process has left. */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { Database, EmbeddedPostgres } from "effect-db"
import { startChild } from "../support/child.js"
import { Db } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { eventually, until } from "../support/eventually.js"
import { answers, makeProxy, sends } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"
import { only, told, watch } from "../support/suites/pooling/observations.js"
import { both, given, leave, move, options, run } from "../support/twoPhase.js"

class Third extends Database.Service<Third>()("third") {}

describe("the recovery of prepared transactions", () => {
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

  it.scopedLive("with a lazy start, the first unit starts the recovery of all its databases", () =>
    Effect.gen(function* () {
      const { context, one, prepared, stored, two } = yield* given({ startup: "lazy", resolveWithin: "100 millis" })
      yield* Effect.provide(run(both(1)), context)
      yield* leave(one, two, 2)
      yield* leave(two, two, 3)
      yield* eventually(prepared, (count) => count === 0)
      assert.deepStrictEqual(yield* stored, [[1], [1]])
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

  it.scopedLive("callers that wait for a prepared transaction do not keep the recovery from its end", () =>
    Effect.gen(function* () {
      const { context, one, stored, two } = yield* given({ resolveWithin: "100 millis", maxConnections: 1 })
      yield* query(one, "CREATE UNIQUE INDEX ON moved (id)")
      yield* leave(one, two, 1)
      const moved = Effect.timeoutFail(Effect.disconnect(move(1)), {
        duration: "20 seconds",
        onTimeout: () => new Error("the statement still waits")
      })
      yield* Effect.provide(moved, context)
      assert.deepStrictEqual(yield* stored, [[1], []])
    })
  )

  it.scopedLive("a prepared transaction without its deciding database is reported, and ended when that is open", () =>
    Effect.gen(function* () {
      const { context, one, prepared } = yield* given({ resolveWithin: "100 millis" })
      const { writer } = yield* freshDatabase
      const seen = yield* Effect.provide(watch, context)
      yield* leave(one, writer, 1)
      const [left] = yield* told(seen, "PreparedLeft")
      assert.include(left?.message, "is not open in this process")
      assert.isAbove(left?.ageMillis ?? 0, 1200)
      assert.strictEqual(yield* prepared, 1)
      yield* Layer.build(Third.layer({ writer, ...options, resolveWithin: "100 millis" }))
      const [recovered] = yield* told(seen, "PreparedRecovered")
      assert.strictEqual(recovered?.gid, left?.gid)
      assert.strictEqual(yield* prepared, 0)
    })
  )

  it.scopedLive("a deciding database that does not answer does not keep others from their decisions", () =>
    Effect.gen(function* () {
      const { context, one, prepared, proxies, two } = yield* given({ resolveWithin: "500 millis" })
      const seen = yield* Effect.provide(watch, context)
      const { writer } = yield* freshDatabase
      yield* Layer.build(Third.layer({ writer, ...options }))
      yield* proxies.two.refuse
      yield* proxies.two.cut
      for (let id = 1; id <= 5; id++) yield* leave(one, two, id)
      yield* leave(one, writer, 6)
      yield* told(seen, "PreparedRecovered")
      assert.strictEqual(yield* prepared, 5)
      const left = yield* told(seen, "PreparedLeft", 5)
      assert.include(left[0]?.message, "does not answer")
      yield* proxies.two.accept
      yield* eventually(prepared, (count) => count === 0)
    })
  )

  it.scopedLive("prepared transactions that cannot be listed are reported", () =>
    Effect.gen(function* () {
      const { context, proxies } = yield* given({ resolveWithin: "100 millis" })
      const seen = yield* Effect.provide(watch, context)
      yield* proxies.one.refuse
      const [failed] = yield* told(seen, "RecoveryFailed")
      // the connect that was in progress when the proxy closed its port is reset
      assert.match(failed?.message ?? "", /connect ECONN(REFUSED|RESET)/)
    })
  )

  it.scopedLive("a prepared transaction that is lost after the decision is reported", () =>
    Effect.gen(function* () {
      const { context, one, proxies, stored } = yield* given()
      const seen = yield* Effect.provide(watch, context)
      const reached = yield* proxies.one.when(sends("COMMIT PREPARED"), "freeze")
      const fiber = yield* Effect.fork(Effect.provide(run(both(1)), context))
      yield* reached
      const [found] = yield* query<{ gid: string }>(
        one,
        "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
      )
      yield* query(one, `ROLLBACK PREPARED '${found?.gid}'`)
      yield* proxies.one.thaw
      yield* Fiber.join(fiber)
      const [missing] = yield* told(seen, "PreparedMissing")
      assert.strictEqual(missing?.gid, found?.gid)
      assert.deepStrictEqual(yield* stored, [[], [1]])
    })
  )

  for (const [where, isLost] of [
    ["on its own connection", false],
    ["on another connection", true]
  ] as const) {
    it.scopedLive(`a late COMMIT PREPARED ${where} raises no alarm if another process has done it`, () =>
      Effect.gen(function* () {
        const { context, one, prepared, proxies, stored, two } = yield* given({ resolveWithin: "1 minute" })
        const seen = yield* Effect.provide(watch, context)
        const decided = yield* proxies.two.when(answers("COMMIT"), "freeze")
        yield* proxies.one.when(sends("COMMIT PREPARED"), "freeze")
        const fiber = yield* Effect.fork(Effect.provide(run(both(1)), context))
        yield* decided
        if (isLost) {
          yield* proxies.one.cut
          yield* proxies.one.freeze
          yield* proxies.one.forget
          yield* told(seen, "Lost")
        }
        yield* proxies.two.thaw
        const other = yield* startChild("unitLoop", [Redacted.value(two), "0"], one)
        yield* eventually(prepared, (count) => count === 0)
        yield* proxies.one.thaw
        yield* Fiber.join(fiber)
        // the alarm would come before it
        yield* told(seen, "TransactionEnded")
        assert.deepStrictEqual(only(seen, "PreparedMissing"), [])
        assert.deepStrictEqual(yield* stored, [[1], [1]])
        yield* other.tell
        yield* other.ended
      })
    )
  }

  it.scopedLive("sessions that have another role by default end what they have prepared", () =>
    Effect.gen(function* () {
      const { context, one, prepared, proxies, stored } = yield* given({ resolveWithin: "1 minute" })
      yield* query(one, "DO $$ BEGIN CREATE ROLE mover; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
      yield* query(one, "DO $$ BEGIN EXECUTE format('GRANT ALL ON DATABASE %I TO mover', current_database()); END $$")
      yield* query(one, "GRANT ALL ON moved, effect_db.outcome TO mover")
      yield* query(one, "GRANT USAGE ON SCHEMA effect_db TO mover")
      const url = Redacted.make(`${Redacted.value(proxies.one.url)}?options=-c%20role%3Dmover`)
      const inRole = yield* Layer.build(Db.layer({ writer: url, ...options, resolveWithin: "1 minute" }))
      yield* Effect.provide(run(both(1)), Context.merge(context, inRole))
      assert.strictEqual(yield* prepared, 0)
      assert.deepStrictEqual(yield* stored, [[1], [1]])
    })
  )

  it.scopedLive("a primary that its standby has left decides about no prepared transaction", () =>
    Effect.gen(function* () {
      const { one, prepared, stored } = yield* given()
      const { primary, replicas } = yield* EmbeddedPostgres.make({
        directory,
        replicas: 1,
        synchronous: 1,
        settings: { max_prepared_transactions: 10 }
      })
      const standby = replicas[0] ?? assert.fail("no standby")
      const proxy = yield* makeProxy(primary.url())
      yield* Layer.build(Db.layer({ writer: one, ...options, resolveWithin: "100 millis" }))
      yield* Layer.build(Third.layer({ writer: proxy.url, ...options, resolveWithin: "2 seconds" }))
      const fenced = yield* proxy.when(sends("INSERT INTO effect_db.outcome"), "freeze")
      yield* leave(one, primary.url(), 1)
      yield* fenced
      yield* standby.cutReplication
      yield* proxy.thaw
      // the second attempt of the recovery finds the fence of the first, which only the primary has
      let attempts = 0
      yield* proxy.when((message) => {
        if (sends("INSERT INTO effect_db.outcome")(message)) attempts++
        return false
      }, "pass")
      yield* until(() => attempts >= 2)
      assert.strictEqual(yield* prepared, 1)
      yield* standby.restoreReplication
      yield* eventually(prepared, (count) => count === 0)
      assert.deepStrictEqual(yield* stored, [[], []])
    })
  )
})
