import { assert, it } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { DatabaseError, RetryPolicy } from "effect-db"
import { describe } from "vitest"

const lost = new DatabaseError.Disconnected({ database: "app", server: "localhost:5432", outcome: "notSent" })

describe("RetryPolicy", () => {
  it.effect("LISTEN is retried without end, after 25 to 50 ms first and never after more than 5 s", () =>
    Effect.gen(function* () {
      const attempts = 3000
      const pauses = yield* Schedule.run(
        Schedule.delays(RetryPolicy.defaultPolicy.listen),
        0,
        Array.from({ length: attempts }, () => lost)
      ).pipe(Effect.map((all) => Chunk.toReadonlyArray(all).map(Duration.toMillis)))
      assert.lengthOf(pauses, attempts)
      for (const [i, pause] of pauses.entries()) {
        const longest = Math.min(5000, 50 * 2 ** i)
        assert.isAtLeast(pause, longest / 2)
        assert.isAtMost(pause, longest)
      }
      assert.isAbove(new Set(pauses).size, attempts / 3)
    })
  )

  for (const [name, base, times] of [
    ["transaction", 10, 10],
    ["statement", 20, 3]
  ] as const) {
    it.effect(
      `a ${name} is retried ${times} times, after ${base / 2} to ${base} ms first, never after more than 1 s`,
      () =>
        Effect.gen(function* () {
          const all: Array<number> = []
          for (let n = 0; n < 20; n++) {
            const pauses = yield* Schedule.run(
              Schedule.delays(RetryPolicy.defaultPolicy[name]),
              0,
              Array.from({ length: times + 1 }, () => lost)
            ).pipe(Effect.map((some) => Chunk.toReadonlyArray(some).map(Duration.toMillis)))
            // the last pause is that of the attempt at which the schedule ends
            assert.lengthOf(pauses, times + 1)
            for (const [i, pause] of pauses.slice(0, -1).entries()) {
              const longest = Math.min(1000, base * 2 ** i)
              assert.isAtLeast(pause, longest / 2)
              assert.isAtMost(pause, longest)
              all.push(pause)
            }
          }
          assert.isAbove(new Set(all).size, all.length / 3)
        })
    )
  }
})
