/** Timers of the process that fire only when a test lets time pass, while sockets work as always. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { vi } from "vitest"

/**
 * Stops the timers until the scope ends. The effect inside lets the given number of milliseconds
 * pass.
 */
export const fakeTimers: Effect.Effect<(millis: number) => Effect.Effect<void>, never, Scope.Scope> = Effect.as(
  Effect.acquireRelease(
    Effect.sync(() => vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] })),
    () => Effect.sync(() => vi.useRealTimers())
  ),
  (millis) => Effect.sync(() => vi.advanceTimersByTime(millis))
)
