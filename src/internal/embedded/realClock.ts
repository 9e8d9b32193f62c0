/**
 * The real clock, for waits on processes.
 */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"

const clock = Clock.make()

/**
 * Runs an effect on the real clock, even under a `TestClock`. Processes run in real time, so the
 * timeouts and polls of processes must do so, too.
 */
export const withRealClock = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.withClock(self, clock)

/**
 * Waits for `deferred`, and returns true if it is done within `bound`. The wait is interruptible
 * even if the caller is not, because the timeout interrupts the wait.
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
