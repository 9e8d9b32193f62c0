/**
 * Effects that wait for a callback and run a cancel function when they are interrupted.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as RuntimeFlags from "effect/RuntimeFlags"

/**
 * Function of `uninterruptibleMask`, which makes an effect as interruptible as it is outside of the
 * mask.
 */
export type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/**
 * Returns the `restore` of a fiber with these flags. With `uninterruptible` it does the same as
 * `uninterruptibleMask`, with one operation less.
 */
export const restoreOf = (flags: RuntimeFlags.RuntimeFlags): Restore =>
  RuntimeFlags.interruption(flags) ? Effect.interruptible : Effect.uninterruptible

/**
 * Function that cancels after an interruption. The effect that it returns, if any, is awaited, and
 * its failure is added to the interruption.
 */
type Cancel<E> = () => Effect.Effect<void, E> | void

type Start<A, E> = (resume: (effect: Effect.Effect<A, E>) => void) => Cancel<E>

/**
 * Waits until `resume` is called. An interruption calls the function that `start` has returned.
 *
 * It uses `Effect.async` without a finalizer. With one, `Effect.async` runs four more instructions
 * for every success, and makes an object literal that refers to the whole operation. If many
 * effects wait at a time, V8 pretenures such literals: it allocates them in the old generation,
 * where they and all that they refer to stay in memory until a full collection. This took a quarter
 * of the CPU time of a small statement.
 */
export const cancellable = <A, E>(start: Start<A, E>): Effect.Effect<A, E> =>
  Effect.uninterruptibleMask((restore) => cancellableWithin(restore, start))

/**
 * Waits as `cancellable` does, in a region that is uninterruptible already. The returned effect may
 * run only once.
 */
export const cancellableWithin = <A, E>(restore: Restore, start: Start<A, E>): Effect.Effect<A, E> => {
  let cancel: Cancel<E> | undefined
  return Effect.catchAllCause(
    restore(
      Effect.async<A, E>((resume) => {
        cancel = start(resume)
      })
    ),
    (cause) => {
      const cancelled = Cause.isInterruptedOnly(cause) ? cancel?.() : undefined
      if (cancelled === undefined) return Effect.failCause(cause)
      return Effect.matchCauseEffect(cancelled, {
        onFailure: (added) => Effect.failCause(Cause.sequential(cause, added)),
        onSuccess: () => Effect.failCause(cause)
      })
    }
  )
}
