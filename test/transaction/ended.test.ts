/**
 * Transactions that a COMMIT or ROLLBACK by hand ends, whether it begins the next one at once or not.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { DatabaseError, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { audit, event, events } from "../support/audit.js"
import { Db, fresh, freshTable, insert, Place, run, stored } from "../support/databases.js"
import { failure } from "../support/failures.js"
import { answers, makeProxy } from "../support/proxy.js"

const note = run("INSERT INTO item (name) VALUES (gen_random_uuid())")

const collide = run("DO $$ BEGIN RAISE EXCEPTION 'collision' USING ERRCODE = 'serialization_failure'; END $$")

/** Returns which command ended the transaction, or the text of another error. */
const endedBy = (error: unknown) =>
  DatabaseError.isDatabaseError(error) && error._tag === "TransactionEnded" ? error.by : String(error)

describe("a transaction that is ended by hand", () => {
  for (const text of ["COMMIT AND CHAIN", "END AND CHAIN", "COMMIT; BEGIN", "COMMIT; START TRANSACTION", "COMMIT"]) {
    it.scopedLive(`${text} in a transaction fails it with TransactionEnded, and it never runs again`, () =>
      Effect.gen(function* () {
        let runs = 0
        const work = Effect.gen(function* () {
          runs++
          yield* note
          yield* run(text)
          yield* collide
        })
        assert.strictEqual(endedBy(yield* failure(Db.withTransaction(work, { retry: true }))), "COMMIT")
        assert.strictEqual(endedBy(yield* failure(UnitOfWork.run(work, { retry: true }))), "COMMIT")
        assert.strictEqual(runs, 2)
        assert.strictEqual((yield* stored).length, 2)
        yield* insert("next")
      }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
    )
  }

  for (const text of ["ROLLBACK AND CHAIN", "ABORT WORK AND CHAIN", "ROLLBACK; BEGIN", "ROLLBACK /* TO */ AND CHAIN"]) {
    it.scopedLive(`${text} in a transaction fails it with TransactionEnded, and nothing that follows is stored`, () =>
      Effect.gen(function* () {
        const work = Effect.all([note, Effect.ignore(run(text)), Effect.ignore(insert("second half"))])
        assert.strictEqual(endedBy(yield* failure(Db.withTransaction(work))), "ROLLBACK")
        assert.deepStrictEqual(yield* stored, [])
      }).pipe(Effect.provide(fresh()))
    )
  }

  it.scopedLive("a transaction with a text of ROLLBACK and a write, which commits by itself, is not run again", () =>
    Effect.gen(function* () {
      let runs = 0
      const work = Effect.suspend(() => {
        runs++
        return Effect.all([
          note,
          Effect.ignore(Db.withTransaction(collide)),
          Effect.ignore(run("ROLLBACK; INSERT INTO item (name) VALUES (gen_random_uuid())")),
          collide
        ])
      })
      for (const whole of [Db.withTransaction(work, { retry: true }), UnitOfWork.run(work, { retry: true })]) {
        assert.strictEqual(endedBy(yield* failure(whole)), "ROLLBACK")
      }
      assert.strictEqual(runs, 2)
      assert.lengthOf(yield* stored, 2)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a transaction goes on after a savepoint by hand, ROLLBACK TO it and a second BEGIN", () =>
    Effect.gen(function* () {
      yield* Db.withTransaction(
        Effect.gen(function* () {
          yield* insert("a")
          yield* run("SAVEPOINT mine")
          yield* insert("b")
          yield* run("ROLLBACK TO mine")
          yield* run("ROLLBACK WORK TO SAVEPOINT mine")
          yield* run("BEGIN")
          yield* run("INSERT INTO item (name) VALUES ('; COMMIT AND CHAIN'); ROLLBACK TO mine; SELECT 1")
          yield* insert("c")
        })
      )
      assert.deepStrictEqual(yield* stored, ["a", "c"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a COMMIT by hand is found also in a text that fails, in a nested transaction and in a stream", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      for (const statement of [
        run("COMMIT; BEGIN; SELECT 1 / 0"),
        Db.withTransaction(Effect.zipRight(note, run("COMMIT AND CHAIN"))),
        Stream.runDrain(sql.unsafe("COMMIT AND CHAIN").stream)
      ]) {
        const error = yield* failure(Db.withTransaction(Effect.zipRight(note, statement), { retry: true }))
        assert.strictEqual(endedBy(error), "COMMIT")
      }
      assert.strictEqual((yield* stored).length, 4)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a transaction that was committed by hand is not run again after its own or another's failure", () =>
    Effect.gen(function* () {
      let runs = 0
      const collision = Effect.fail(
        new DatabaseError.SerializationFailure({ database: "audit", server: "", cause: new Error("collision") })
      )
      const unit = Effect.suspend(() => {
        runs++
        return Effect.all([note, event("x"), Effect.ignore(run("COMMIT AND CHAIN")), collision])
      })
      assert.strictEqual((yield* failure(UnitOfWork.run(unit, { retry: true })))._tag, "SerializationFailure")
      const own = Effect.suspend(() => {
        runs++
        return Effect.all([note, Effect.ignore(run("COMMIT AND CHAIN")), Db.independent(Db.withTransaction(collide))])
      })
      assert.strictEqual((yield* failure(Db.withTransaction(own, { retry: true })))._tag, "SerializationFailure")
      assert.strictEqual(runs, 2)
      assert.strictEqual((yield* stored).length, 2)
      assert.deepStrictEqual(yield* events, [])
    }).pipe(Effect.provide(audit), Effect.provide(fresh()))
  )

  for (const text of ["COMMIT", "SELECT 1; COMMIT"]) {
    it.scopedLive(`a transaction is in doubt, and not run again, if the answer to ${text} by hand is lost`, () =>
      Effect.gen(function* () {
        const place = yield* freshTable
        const proxy = yield* makeProxy(place.writer)
        let runs = 0
        const work = Effect.gen(function* () {
          runs++
          yield* note
          yield* proxy.when(answers("COMMIT"), "cut")
          yield* run(text)
        })
        const error = yield* failure(Db.withTransaction(work, { retry: true })).pipe(
          Effect.provide(Db.layer({ writer: proxy.url }))
        )
        assert.strictEqual(error._tag === "Disconnected" && error.outcome, "inDoubt")
        assert.strictEqual(runs, 1)
        assert.strictEqual((yield* Effect.provideService(stored, Place, place)).length, 1)
      })
    )
  }
})
