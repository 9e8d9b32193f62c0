/** Requests that are batched in transactions, which is number 30 of the known failures. */
import * as SqlResolver from "@effect/sql/SqlResolver"
import type { PgClient } from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Array from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { type Place, stored, where } from "./knownFailures.js"

/**
 * 30. Runs two transactions at once. Each inserts three rows, and reads them by three requests that
 * one resolver batches.
 */
export const batches = (sql: PgClient) =>
  Effect.gen(function* () {
    let statements = 0
    const resolver = yield* SqlResolver.findById("Item", {
      Id: Schema.String,
      Result: Schema.Struct({ name: Schema.String, pid: Schema.Number }),
      ResultId: ({ name }) => name,
      execute: (names) => {
        statements++
        return sql`SELECT name, pg_backend_pid() AS pid FROM item WHERE ${sql.in("name", names)}`
      }
    })
    const arrived = [yield* Deferred.make<void>(), yield* Deferred.make<void>()] as const
    const transaction = (title: string, mine: Deferred.Deferred<void>, other: Deferred.Deferred<void>) =>
      sql.withTransaction(
        Effect.gen(function* () {
          const names = [1, 2, 3].map((n) => `${title} ${n}`)
          yield* sql`INSERT INTO item ${sql.insert(names.map((name) => ({ name })))}`
          const own = (yield* where(sql))?.pid
          yield* Deferred.succeed(mine, undefined)
          yield* Deferred.await(other)
          const found = yield* Effect.forEach(names, resolver.execute, { batching: true, concurrency: "unbounded" })
          return { names, own, seen: Array.getSomes(found) }
        })
      )
    const transactions = yield* Effect.all(
      [transaction("a", arrived[0], arrived[1]), transaction("b", arrived[1], arrived[0])],
      { batching: true, concurrency: "unbounded" }
    )
    return { transactions, statements }
  })

/** Checks that the requests of each transaction were one statement, in its own session. */
export const batchesKeptApart = (
  { statements, transactions }: Effect.Effect.Success<ReturnType<typeof batches>>,
  place: Place
) => {
  assert.strictEqual(statements, 2)
  for (const { names, own, seen } of transactions) {
    assert.deepStrictEqual(
      seen,
      names.map((name) => ({ name, pid: own }))
    )
  }
  return Effect.map(stored(place), (rows) => assert.lengthOf(rows, 6))
}
