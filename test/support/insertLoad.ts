/** A steady load of transactions that insert one row each, for the tests of failovers. */
import * as Effect from "effect/Effect"
import * as Ref from "effect/Ref"
import * as Schedule from "effect/Schedule"
import { DatabaseError } from "effect-db"
import { Db } from "./databases.js"

/** The transactions of all fibers in a second. */
export const rate = 200
const fibers = 20

/**
 * Starts to insert rows into `item`, in a fiber that the caller interrupts. Returns the ids by the
 * outcome of their transactions, and the time of the last success.
 */
export const startInserts = Effect.gen(function* () {
  const sql = yield* Db.writer
  const acknowledged: Array<string> = []
  const undone: Array<string> = []
  const unknown = new Set<string>()
  const lastSuccess = yield* Ref.make(0)
  let count = 0
  const once = Effect.suspend(() => {
    const id = `row ${count++}`
    return Db.withTransaction(sql`INSERT INTO item VALUES (${id})`).pipe(
      DatabaseError.refine,
      Effect.matchEffect({
        onFailure: (error) =>
          Effect.sync(() => {
            if (error._tag === "CommitOutcomeUnknown") unknown.add(id)
            else undone.push(id)
          }),
        onSuccess: () => {
          acknowledged.push(id)
          return Ref.set(lastSuccess, performance.now())
        }
      })
    )
  })
  const load = yield* Effect.fork(
    Effect.forEach(
      Array.from({ length: fibers }),
      () => Effect.repeat(once, Schedule.spaced(`${(1000 * fibers) / rate} millis`)),
      { concurrency: "unbounded", discard: true }
    )
  )
  return { acknowledged, undone, unknown, lastSuccess, load }
})
