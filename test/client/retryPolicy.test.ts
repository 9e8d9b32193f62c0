import { assert, it } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { DatabaseError, RetryPolicy } from "effect-db"
import { describe } from "vitest"

const lost = new DatabaseError.Disconnected({ database: "app", server: "localhost:5432", outcome: "notSent" })

describe("RetryPolicy", () => {
  it.effect("listening is tried again for ever, after 25 to 50 ms first, never after more than 5 s", () =>
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
})
