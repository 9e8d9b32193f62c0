/**
 * `Db.independent` and the units of work in it.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { both, event, events } from "../support/audit.js"
import { active, Db, fresh, insert, stored } from "../support/databases.js"

describe("UnitOfWork.run in Db.independent", () => {
  it.scopedLive(
    "UnitOfWork.run or nested in Db.independent is stored or undone as a whole, in a unit and in a transaction",
    () =>
      Effect.gen(function* () {
        const two = (name: string) => Effect.zipRight(insert(`${name} 1`), insert(`${name} 2`))
        for (const [name, whole] of [
          ["run", <A, E, R>(self: Effect.Effect<A, E, R>) => UnitOfWork.run(self)],
          ["nested", <A, E, R>(self: Effect.Effect<A, E, R>) => UnitOfWork.nested(self)]
        ] as const) {
          const inside = Effect.all([
            insert("outer"),
            Db.independent(whole(two(name))),
            Effect.ignore(Db.independent(whole(Effect.zipRight(insert("half"), Effect.fail("x"))))),
            Effect.fail("no")
          ])
          yield* Effect.ignore(UnitOfWork.run(inside))
          assert.deepStrictEqual(yield* stored, [`${name} 1`, `${name} 2`])
          yield* Effect.flatMap(Db.writer, (sql) => sql`DELETE FROM item`)
          yield* Effect.ignore(Db.withTransaction(inside))
          assert.deepStrictEqual(yield* stored, [`${name} 1`, `${name} 2`])
          yield* Effect.flatMap(Db.writer, (sql) => sql`DELETE FROM item`)
        }
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("UnitOfWork.run in Db.independent joins the unit around it on other databases, and may fail it", () =>
    Effect.gen(function* () {
      const part = Db.independent(UnitOfWork.run(Effect.zipRight(insert("own"), event("of the unit"))))
      for (const before of [Effect.void, event("before")]) {
        yield* Effect.ignore(UnitOfWork.run(Effect.all([before, part, Effect.fail("no")])))
        yield* Effect.flatMap(Db.writer, (sql) => sql`DELETE FROM item WHERE name = 'own'`)
        assert.deepStrictEqual(yield* events, [])
      }
      const half = Effect.all([insert("half"), event("half"), Effect.fail("x")])
      const error = yield* Effect.flip(UnitOfWork.run(Effect.ignore(Db.independent(UnitOfWork.run(half)))))
      assert.strictEqual(error._tag, "RolledBackAtCommit")
      assert.deepStrictEqual([yield* stored, yield* events], [[], []])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("UnitOfWork.run in Db.independent may be ended early, and its hooks follow its own end", () =>
    Effect.gen(function* () {
      const log: Array<string> = []
      const note = (text: string) => Effect.sync(() => void log.push(text))
      const inside = Effect.all([
        insert("early"),
        Db.commit,
        insert("late"),
        Db.afterCommit(note("committed")),
        Db.beforeCommit(note("before"))
      ])
      yield* Effect.ignore(
        UnitOfWork.run(
          Effect.gen(function* () {
            yield* Db.independent(UnitOfWork.run(inside))
            assert.deepStrictEqual(log, ["before", "committed"])
            return yield* Effect.fail("no")
          })
        )
      )
      assert.deepStrictEqual(yield* stored, ["early", "late"])
    }).pipe(Effect.provide(fresh()))
  )
})
