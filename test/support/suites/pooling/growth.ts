/** The speed of a pool's growth. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { Db, stored } from "../../databases.js"
import { hold } from "./connections.js"
import { figures, settled } from "./observations.js"
import { Network, openOverNetwork, type Way } from "./way.js"

export const growth = (way: Way): void => {
  it.scopedLive("ten callers at once on an empty pool are all served although a connect takes long", () =>
    Effect.gen(function* () {
      const network = yield* Network
      yield* network.delay(50)
      const sql = yield* Db.writer
      yield* Effect.forEach(
        Array.from({ length: 10 }),
        (_, i) => sql`INSERT INTO item ${sql.insert({ name: String(i) })}`,
        { concurrency: "unbounded" }
      )
      assert.lengthOf(yield* stored, 10)
      assert.isAtMost(network.accepted, 10)
      assert.strictEqual((yield* figures).connecting + (yield* figures).total, network.connections)
    }).pipe(Effect.provide(openOverNetwork(way, { startup: "lazy" })))
  )

  it.scopedLive("a pool grows to its maximum within 3 seconds while callers hold all connections", () =>
    Effect.gen(function* () {
      const network = yield* Network
      yield* network.delay(10)
      const start = performance.now()
      const holders = yield* Effect.all(
        Array.from({ length: 20 }, () => hold),
        { concurrency: "unbounded" }
      )
      assert.isBelow(performance.now() - start, 3000)
      yield* settled({ total: 20, active: 20 })
      for (const { release } of holders) yield* release
    }).pipe(Effect.provide(openOverNetwork(way, { maxConnections: 20, startup: "lazy" })))
  )
}
