/** Waits for conditions that no event reports. */
import { inspect } from "node:util"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Schedule from "effect/Schedule"

/**
 * The schedule of polls. A loop without pauses would delay the condition. The bound is below the
 * minute that many statements of the tests sleep, so that none of them ends by itself meanwhile.
 */
const polls = Schedule.intersect(Schedule.spaced("2 millis"), Schedule.recurUpTo("50 seconds"))

/** Repeats an effect until its result meets a condition; fails the test if it never does. */
export const eventually: {
  <A>(isIt: (a: A) => boolean): <E, R>(look: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(look: Effect.Effect<A, E, R>, isIt: (a: A) => boolean): Effect.Effect<A, E, R>
} = dual(
  2,
  <A, E, R>(look: Effect.Effect<A, E, R>, isIt: (a: A) => boolean): Effect.Effect<A, E, R> =>
    Effect.repeat(
      Effect.map(look, (last) => ({ last, isMet: isIt(last) })),
      {
        schedule: Schedule.zipRight(polls, Schedule.identity<{ last: A; isMet: boolean }>()),
        until: ({ isMet }) => isMet
      }
    ).pipe(
      Effect.flatMap(({ isMet, last }) =>
        isMet
          ? Effect.succeed(last)
          : Effect.dieMessage(`the condition ${isIt} was never met; the last result is ${inspect(last)}`)
      )
    )
)

/** Waits until a condition holds; fails the test if it never does. */
export const until = (holds: () => boolean): Effect.Effect<void> => eventually(Effect.void, holds)

/** Repeats an effect until it succeeds; fails with its last failure if it never does. */
export const eventuallySucceeds = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.retry(self, polls)

/** Lets the event loop turn once. */
export const turn = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})
