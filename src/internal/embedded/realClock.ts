import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"

const clock = Clock.make()

/** A process lives in real time, so under a `TestClock` too its bounds and polls must run on the real one. */
export const withRealClock = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.withClock(self, clock)

/**
 * Whether `deferred` was done in time. The wait is interruptible even where the caller is not: else `timeout` would
 * wait for a loser that cannot be interrupted, and there would be no bound.
 */
export const withinRealTime = <A, E>(
  deferred: Deferred.Deferred<A, E>,
  bound: Duration.DurationInput
): Effect.Effect<boolean> =>
  withRealClock(
    Effect.exit(Deferred.await(deferred)).pipe(
      Effect.interruptible,
      Effect.timeoutOption(bound),
      Effect.map(Option.isSome)
    )
  )
