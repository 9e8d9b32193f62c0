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

/** The transactions that begin in a second. */
export const rate = 200

/** The command that creates the table of the rows. */
export const createItem = "CREATE TABLE item (id text NOT NULL)"

/**
 * Starts to insert rows into `item`, and returns the ids by the outcome of their transactions. A
 * transaction begins every 5 ms, also while others wait.
 */
export const startInserts = Effect.gen(function* () {
  const sql = yield* Db.writer
  const acknowledged: Array<string> = []
  const undone: Array<string> = []
  const unknown = new Set<string>()
  const lastSuccess = yield* Ref.make(0)
  const insert = (id: string) =>
    Db.withTransaction(sql`INSERT INTO item VALUES (${id})`).pipe(
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
  const begin = performance.now()
  const seconds = () => (performance.now() - begin) / 1000
  let count = 0
  // a timer of a busy process is late, so the clock says how many are due
  const insertDue = Effect.whileLoop({
    while: () => count < rate * seconds(),
    body: () => Effect.fork(insert(`row ${count++}`)),
    step: () => {}
  })
  const load = yield* Effect.fork(Effect.repeat(insertDue, Schedule.spaced(`${1000 / rate} millis`)))
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
      const [begun, stored] = [count, acknowledged.length].map((all) => Math.round(all / seconds()))
      const sorted = [...waits].sort((a, b) => a - b)
      const [median, longest] = [0.5, 1].map((part) => Math.round(sorted[Math.ceil(part * sorted.length) - 1] ?? 0))
      const rates = `${begun} begun and ${stored} stored a second`
      const transactions = `${acknowledged.length} transactions, ${rates}, ${unknown.size} unknown`
      return `${transactions}; first success ${median} ms (median), ${longest} ms (longest)`
    }
  }
})
