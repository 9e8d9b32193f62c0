/** Waits for conditions that no event reports. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { soon } from "./databases.js"

/** Repeats an effect until its result meets a condition; fails the test if it never does. */
export const eventually = <A, E, R>(look: Effect.Effect<A, E, R>, isIt: (a: A) => boolean): Effect.Effect<A, E, R> =>
  Effect.repeat(
    Effect.map(look, (a) => ({ a, isIt: isIt(a) })),
    { schedule: soon, until: (_) => _.isIt }
  ).pipe(
    Effect.zipRight(look),
    Effect.tap((a) => assert.isTrue(isIt(a), `the condition never held; the last result is ${JSON.stringify(a)}`))
  )

/** Waits until a condition holds. */
export const until = (holds: () => boolean) => eventually(Effect.sync(holds), (_) => _)

/** Lets the event loop turn once. */
export const turn = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})
