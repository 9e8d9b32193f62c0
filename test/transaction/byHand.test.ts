/**
 * Ends by hand: `Db.commit`, `Db.rollback`, `UnitOfWork.commit` and `UnitOfWork.rollback` in a
 * transaction that ends with its effect, and not by hand.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { DatabaseError, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { both } from "../support/audit.js"
import { Audit, Db, fresh, insert, stored } from "../support/databases.js"

const ends = [
  ["Db.commit", Db.commit, "commit"],
  ["Db.rollback", Db.rollback, "rollback"],
  ["UnitOfWork.commit", UnitOfWork.commit, "commit"],
  ["UnitOfWork.rollback", UnitOfWork.rollback, "rollback"]
] as const

describe("an end by hand", () => {
  for (const [name, end, propagation] of ends) {
    it.scopedLive(`${name} inside of a bare withTransaction fails with PropagationRefused and stores nothing`, () =>
      Effect.gen(function* () {
        const error = yield* Effect.zipRight(insert("a"), end).pipe(
          Db.withTransaction(),
          DatabaseError.refine,
          Effect.flip
        )
        assert.strictEqual(error._tag === "PropagationRefused" && error.propagation, propagation)
        assert.include(error.message, 'database "app"')
        assert.deepStrictEqual(yield* stored, [])
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive(`${name} is refused in a nested, a joined and a client's own transaction, and in a hook`, () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const places = [
          Db.withTransaction(Db.withTransaction(end)),
          Db.withTransaction(Db.withTransaction(end, { propagation: "required" })),
          sql.withTransaction(Effect.zipRight(insert("b"), end)),
          Db.withTransaction(Effect.zipRight(insert("c"), UnitOfWork.run(end)))
        ]
        for (const place of places) {
          const error = yield* place.pipe(DatabaseError.refine, Effect.flip)
          assert.strictEqual(error._tag, "PropagationRefused")
        }
        const vetoed = yield* Effect.zipRight(insert("d"), Db.beforeCommit(end)).pipe(
          Db.withTransaction(),
          DatabaseError.refine,
          Effect.flip
        )
        assert.strictEqual(vetoed._tag, "CommitVetoed")
        assert.deepStrictEqual(yield* stored, [])
      }).pipe(Effect.provide(fresh()))
    )
  }

  it.scopedLive("an end by hand in a bare withTransaction does nothing to independent work or another database", () =>
    Effect.gen(function* () {
      yield* Db.withTransaction(
        Effect.zipRight(insert("a"), Db.independent(Effect.zipRight(insert("b"), Effect.zip(Db.commit, Db.rollback))))
      )
      yield* Db.withTransaction(Effect.zipRight(insert("c"), Effect.zip(Audit.commit, Audit.rollback)))
      assert.deepStrictEqual(yield* stored, ["a", "b", "c"])
    }).pipe(Effect.provide(both))
  )
})
