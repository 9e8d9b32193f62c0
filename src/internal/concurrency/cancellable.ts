/**
 * An effect that waits for a callback and can be given up.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"

/** What `uninterruptibleMask` gives: it lets an effect be interrupted as it could be before. */
export type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** Gives up after an interruption; the effect that it returns, if any, is waited for, and its failure is added to the interruption. */
type GiveUp<E> = () => Effect.Effect<void, E> | void

type Start<A, E> = (resume: (effect: Effect.Effect<A, E>) => void) => GiveUp<E>

/**
 * Waits until `resume` is called. An interruption calls what `start` has returned.
 *
 * It is `Effect.async`, whose own way to be interrupted runs four more instructions for every success, and makes an object literal that
 * holds on to the whole operation. Where many wait at a time V8 learns that such literals live long and from then on makes them where
 * garbage is seldom collected: they keep what they hold until then, which took a quarter of the time of a small statement.
 */
export const cancellable = <A, E>(start: Start<A, E>): Effect.Effect<A, E> =>
  Effect.uninterruptibleMask((restore) => cancellableWithin(restore, start))

/** The same where it is uninterruptible already, to be run once. */
export const cancellableWithin = <A, E>(restore: Restore, start: Start<A, E>): Effect.Effect<A, E> => {
  let giveUp: GiveUp<E> | undefined
  return Effect.catchAllCause(
    restore(
      Effect.async<A, E>((resume) => {
        giveUp = start(resume)
      })
    ),
    (cause) => {
      const over = Cause.isInterruptedOnly(cause) ? giveUp?.() : undefined
      if (over === undefined) return Effect.failCause(cause)
      return Effect.matchCauseEffect(over, {
        onFailure: (more) => Effect.failCause(Cause.sequential(cause, more)),
        onSuccess: () => Effect.failCause(cause)
      })
    }
  )
}
