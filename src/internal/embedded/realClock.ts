/**
 * The real clock, for waits on processes.
 */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"

const clock = Clock.make()

/**
 * Runs an effect on the real clock, even under a `TestClock`. Processes run in real time, so the
 * timeouts and polls of processes must do so, too.
 */
export const withRealClock = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.withClock(self, clock)

/**
 * Runs an effect to its end, even if the caller is interrupted. It has a fiber of its own, because an
 * interruption of the caller reaches the fibers that a timeout starts, also in an uninterruptible
 * region.
 */
export const toItsEnd = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.uninterruptible(Effect.flatMap(Effect.forkDaemon(Effect.interruptible(self)), Fiber.join))

/** Waits for `deferred`, and returns true if it is done within `bound`. */
export const withinRealTime = <A, E>(
  deferred: Deferred.Deferred<A, E>,
  bound: Duration.DurationInput
): Effect.Effect<boolean> =>
  Effect.exit(Deferred.await(deferred)).pipe(
    Effect.timeoutOption(bound),
    Effect.map(Option.isSome),
    withRealClock,
    toItsEnd
  )
