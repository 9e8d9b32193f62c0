/**
 * The start of one database while another one fails: it is stopped, but first it may say what is wrong with it, too.
 */

import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as clock from "../concurrency/clock.js"

/** As long as any interruption may take. */
const patience = 1000

const aMoment = Effect.async<void>((resume) => {
  const cancel = clock.later(patience, () => resume(Effect.void))
  return Effect.sync(cancel)
})

/** When it is interrupted it goes on for up to a second; how it fails by then is logged, for there is nobody else to hear of it. */
export const reportBeforeInterrupt = <E extends Error>(self: Effect.Effect<void, E>): Effect.Effect<void, E> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Effect.fork(Effect.interruptible(self)), (fiber) => {
      const reported = Effect.catchAll(Fiber.join(fiber), ({ message }) => Effect.logError(message))
      return Effect.onInterrupt(restore(Fiber.join(fiber)), () =>
        Effect.ensuring(
          Effect.raceFirst(Effect.interruptible(reported), Effect.interruptible(aMoment)),
          Fiber.interrupt(fiber)
        )
      )
    })
  )
