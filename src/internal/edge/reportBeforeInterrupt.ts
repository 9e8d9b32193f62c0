/**
 * Delayed interruption of the checks of databases at start. If the check of one database fails, the
 * checks of the others may still fail within a short time, and their failures are logged.
 */

import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as clock from "../concurrency/clock.js"

/** The longest delay of the interruption, in ms. */
const reportTimeout = 1000

const reportDeadline = Effect.async<void>((resume) => {
  const cancel = clock.later(reportTimeout, () => resume(Effect.void))
  return Effect.sync(cancel)
})

/**
 * Runs an effect, and delays its interruption by up to a second. A failure within that time is
 * logged, because the interruption would hide it.
 */
export const reportBeforeInterrupt = <E extends Error>(self: Effect.Effect<void, E>): Effect.Effect<void, E> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Effect.fork(Effect.interruptible(self)), (fiber) => {
      const reported = Effect.catchAll(Fiber.join(fiber), ({ message }) => Effect.logError(message))
      return Effect.onInterrupt(restore(Fiber.join(fiber)), () =>
        Effect.ensuring(
          Effect.raceFirst(Effect.interruptible(reported), Effect.interruptible(reportDeadline)),
          Fiber.interrupt(fiber)
        )
      )
    })
  )
