/** The retry of a unit of work as a whole. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { DatabaseError, RetryPolicy, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { both, event, events } from "../support/audit.js"
import { Audit, Db, fresh, freshTable, insert, Place, stored } from "../support/databases.js"
import { observed } from "../support/observed.js"
import { answers, makeProxy } from "../support/proxy.js"

describe("a unit of work that is run again", () => {
  /** Fails with a serialization failure in a savepoint. */
  const alwaysCollides = Db.withTransaction(
    Effect.flatMap(
      Db.writer,
      (sql) => sql`DO $$ BEGIN RAISE EXCEPTION 'collision' USING ERRCODE = 'serialization_failure'; END $$`
    )
  )

  /** Creates an effect that fails with a serialization failure in its first run. */
  const collide = Effect.suspend(() => {
    let left = 1
    return Effect.suspend(() =>
      left-- > 0
        ? Effect.flatMap(
            Db.writer,
            (sql) => sql`DO $$ BEGIN RAISE EXCEPTION 'collision' USING ERRCODE = 'serialization_failure'; END $$`
          )
        : Effect.void
    ).pipe(Effect.succeed)
  })

  it.scopedLive("a unit runs again as a whole, on every database, in new transactions", () =>
    Effect.gen(function* () {
      const once = yield* collide
      let attempts = 0
      const work = Effect.all([Effect.sync(() => attempts++), event("e"), insert("a"), once])
      const facts = yield* observed(UnitOfWork.run(work, { retry: true }))
      assert.strictEqual(attempts, 2)
      assert.deepStrictEqual(yield* stored, ["a"])
      assert.deepStrictEqual(yield* events, ["e"])
      assert.strictEqual(facts.filter((fact) => fact._tag === "Retried" && fact.what === "transaction").length, 1)
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("a unit does not run again by default, under the policy never, or for a failure of its own", () =>
    Effect.gen(function* () {
      for (const [failure, self] of [
        ["SerializationFailure", (work: Effect.Effect<unknown, never, Db>) => UnitOfWork.run(work)],
        [
          "SerializationFailure",
          (work: Effect.Effect<unknown, never, Db>) =>
            RetryPolicy.with(UnitOfWork.run(work, { retry: true }), RetryPolicy.never)
        ]
      ] as const) {
        const once = yield* collide
        // the cast hides the type of its error, which this test does not need
        const error = yield* self(once as unknown as Effect.Effect<unknown, never, Db>).pipe(
          DatabaseError.refine,
          Effect.flip
        )
        assert.strictEqual(error._tag, failure)
      }
      let attempts = 0
      const own = Effect.suspend(() =>
        Effect.zipRight(
          Effect.sync(() => attempts++),
          Effect.fail("mine" as const)
        )
      )
      assert.strictEqual(yield* Effect.flip(UnitOfWork.run(own, { retry: true })), "mine")
      assert.strictEqual(attempts, 1)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a unit does not run again if a part was committed early", () =>
    Effect.gen(function* () {
      const once = yield* collide
      const error = yield* UnitOfWork.run(Effect.all([insert("early"), Db.commit, once]), { retry: true }).pipe(
        DatabaseError.refine,
        Effect.flip
      )
      assert.strictEqual(error._tag, "SerializationFailure")
      assert.deepStrictEqual(yield* stored, ["early"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive(
    "a unit does not run again if its transaction is inside of an open one, and an independent unit does",
    () =>
      Effect.gen(function* () {
        let attempts = 0
        const unit = Effect.suspend(() =>
          insert(`attempt ${++attempts}`).pipe(
            Effect.zipRight(Db.independent(insert("own"))),
            Effect.zipRight(alwaysCollides)
          )
        ).pipe(UnitOfWork.run({ retry: true }))
        const inside = yield* Db.withTransaction(unit).pipe(DatabaseError.refine, Effect.flip)
        assert.strictEqual(inside._tag, "SerializationFailure")
        assert.strictEqual(attempts, 1)
        assert.deepStrictEqual(yield* stored, ["own"])
        const once = yield* collide
        const onItsOwn = Effect.suspend(() => Effect.zipRight(insert(`attempt ${++attempts}`), once))
        yield* onItsOwn.pipe(UnitOfWork.run({ retry: true }), Db.independent, Db.withTransaction())
        assert.deepStrictEqual(yield* stored, ["attempt 3", "own"])
      }).pipe(Effect.provide(both))
  )

  it.scopedLive("a unit runs again also inside of a transaction on a database that it does not use", () =>
    Effect.gen(function* () {
      const once = yield* collide
      yield* Audit.withTransaction(
        Effect.zipRight(event("around"), UnitOfWork.run(Effect.zipRight(insert("a"), once), { retry: true }))
      )
      assert.deepStrictEqual(yield* stored, ["a"])
      assert.deepStrictEqual(yield* events, ["around"])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("a unit does not run again if its outcome has committed the work before the failure", () =>
    Effect.gen(function* () {
      let attempts = 0
      const work = Effect.suspend(() => Effect.zipRight(insert(`attempt ${++attempts}`), alwaysCollides))
      const error = yield* UnitOfWork.run(work, { retry: true, outcome: () => "commit" }).pipe(
        DatabaseError.refine,
        Effect.flip
      )
      assert.strictEqual(error._tag, "SerializationFailure")
      assert.deepStrictEqual(yield* stored, ["attempt 1"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a unit does not run again if an early commit has an unknown outcome", () =>
    Effect.gen(function* () {
      const place = yield* freshTable
      const proxy = yield* makeProxy(place.writer)
      yield* proxy.when(answers("COMMIT"), "cut")
      let attempts = 0
      const work = Effect.suspend(() =>
        insert(`attempt ${++attempts}`).pipe(
          Effect.zipRight(Effect.ignore(Db.commit)),
          Effect.zipRight(Effect.ignore(insert("later"))),
          Effect.zipRight(alwaysCollides)
        )
      )
      const error = yield* UnitOfWork.run(work, { retry: true }).pipe(
        DatabaseError.refine,
        Effect.flip,
        Effect.provide(Db.layer({ writer: proxy.url, outcome: "unknown" }))
      )
      assert.strictEqual(error._tag, "SerializationFailure")
      assert.deepStrictEqual(yield* Effect.provideService(stored, Place, place), ["attempt 1"])
    })
  )
})
