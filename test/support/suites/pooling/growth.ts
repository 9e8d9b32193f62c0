/** The speed of a pool's growth. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { Db, stored } from "../../databases.js"
import { hold } from "./connections.js"
import { figures, settled } from "./observations.js"
import { openOverWire, type Way, Wire } from "./way.js"

export const growth = (way: Way): void => {
  it.scopedLive("ten callers at once on an empty pool are all served, though a connect takes long", () =>
    Effect.gen(function* () {
      const wire = yield* Wire
      yield* wire.delay(50)
      const sql = yield* Db.writer
      yield* Effect.forEach(
        Array.from({ length: 10 }),
        (_, i) => sql`INSERT INTO item ${sql.insert({ name: String(i) })}`,
        { concurrency: "unbounded" }
      )
      assert.lengthOf(yield* stored, 10)
      assert.isAtMost(wire.accepted, 10)
      assert.strictEqual((yield* figures).connecting + (yield* figures).total, wire.connections)
    }).pipe(Effect.provide(openOverWire(way, { startup: "lazy" })))
  )

  it.scopedLive("a pool whose connections are all in long use is at its maximum within moments", () =>
    Effect.gen(function* () {
      const wire = yield* Wire
      yield* wire.delay(10)
      const start = performance.now()
      const holders = yield* Effect.all(
        Array.from({ length: 20 }, () => hold),
        { concurrency: "unbounded" }
      )
      assert.isBelow(performance.now() - start, 3000)
      yield* settled({ total: 20, active: 20 })
      for (const { release } of holders) yield* release
    }).pipe(Effect.provide(openOverWire(way, { maxConnections: 20, startup: "lazy" })))
  )
}
