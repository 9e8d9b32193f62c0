/** A steady load of transactions that insert one row each, for the tests of failovers. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Redacted from "effect/Redacted"
import * as Ref from "effect/Ref"
import * as Schedule from "effect/Schedule"
import { DatabaseError } from "effect-db"
import { Db } from "./databases.js"
import { eventually, until } from "./eventually.js"
import { query } from "./server.js"

/** The transactions of all fibers in a second. */
export const rate = 200
const fibers = 20

/** The command that creates the table of the rows. */
export const createItem = "CREATE TABLE item (id text NOT NULL)"

/** Starts to insert rows into `item`, and returns the ids by the outcome of their transactions. */
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
  return {
    undone,
    unknown,
    /** Waits until more than 50 transactions have succeeded. */
    progress: Effect.suspend(() => {
      const before = acknowledged.length
      return until(() => acknowledged.length - before > 50)
    }),
    /** Waits for a success after a moment, and returns the time until then, in ms. */
    successAfter: (moment: number) =>
      Effect.map(
        eventually(Ref.get(lastSuccess), (time) => time > moment),
        (time) => time - moment
      ),
    /** Ends the load. Checks that no row on the server is doubled and no acknowledged one lost; returns the ids of all. */
    stop: (server: Redacted.Redacted<string>) =>
      Effect.gen(function* () {
        yield* Fiber.interrupt(load)
        const rows = yield* query<{ id: string }>(server, "SELECT id FROM item")
        const stored = new Set(rows.map(({ id }) => id))
        assert.strictEqual(stored.size, rows.length)
        assert.deepStrictEqual(
          acknowledged.filter((id) => !stored.has(id)),
          []
        )
        return stored
      }),
    /** Returns the number of transactions, and the median and the longest of the waits for a success. */
    summary: (waits: ReadonlyArray<number>): string => {
      const sorted = [...waits].sort((a, b) => a - b)
      const [median, longest] = [0.5, 1].map((part) => Math.round(sorted[Math.ceil(part * sorted.length) - 1] ?? 0))
      const transactions = `${acknowledged.length} transactions, ${unknown.size} unknown`
      return `${transactions}; first success ${median} ms (median), ${longest} ms (longest)`
    }
  }
})
