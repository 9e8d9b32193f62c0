/** The recovery of prepared transactions that a process has left. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { eventually } from "../support/eventually.js"
import { query } from "../support/server.js"
import { told, watch } from "../support/suites/pooling/observations.js"
import { both, given, leave, run } from "../support/twoPhase.js"

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
})
