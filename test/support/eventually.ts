/** Conditions that no event reports, and for which tests wait. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { soon } from "./databases.js"

/** Waits for a condition that no event reports. */
export const eventually = <A, E, R>(look: Effect.Effect<A, E, R>, isIt: (a: A) => boolean): Effect.Effect<A, E, R> =>
  Effect.repeat(
    Effect.map(look, (a) => ({ a, isIt: isIt(a) })),
    { schedule: soon, until: (_) => _.isIt }
  ).pipe(
    Effect.zipRight(look),
    Effect.tap((a) => assert.isTrue(isIt(a), `it never came to that; it is ${JSON.stringify(a)}`))
  )

/** Waits until a condition holds. */
export const until = (holds: () => boolean) => eventually(Effect.sync(holds), (_) => _)

/** Lets the event loop turn once. */
export const turn = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})
