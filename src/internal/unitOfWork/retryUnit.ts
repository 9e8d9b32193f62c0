/**
 * The attempts of a whole unit of work, each in a new unit.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { isReplayable, RetryPolicy } from "../../RetryPolicy.js"
import type { Restore } from "../edge/cancellable.js"
import type { Retry } from "../transaction/context.js"
import { type Replayable, reasonOf, replayable, retryWork } from "./attempts.js"
import type { Unit } from "./unit.js"

/**
 * Returns the failure after which a unit runs again, if another attempt may succeed and nothing of
 * the unit is stored.
 */
export const replayableUnit = (unit: Unit, reason: unknown, cause: Cause.Cause<unknown>): Replayable | undefined =>
  unit.hasCommitted || !isReplayable(reason) ? undefined : replayable(reason, (name) => unit.origin(name), cause)

/** An open unit of work, as its retries use it. */
interface Opened {
  readonly unit: Unit
  readonly isRolledBack: boolean
}

/**
 * Runs each attempt in a new unit, as {@link retryWork}; `failed` is the first attempt, if it has
 * failed already.
 */
export const retryUnit = <O extends Opened, A, E, R>(
  restore: Restore,
  open: () => O,
  once: (opened: O) => Effect.Effect<A, E, R>,
  retry: Retry,
  failed?: { readonly opened: O; readonly cause: Cause.Cause<E> }
): Effect.Effect<A, E, R> =>
  Effect.withFiberRuntime((fiber) => {
    const policy = Context.get(fiber.currentContext, RetryPolicy)
    let opened = failed?.opened
    let attempt = failed === undefined ? 0 : 1
    const next = Effect.suspend(() => {
      opened = open()
      opened.unit.attempt = ++attempt
      return once(opened)
    })
    const reasonFor = (exit: Exit.Exit<A, E>): Replayable | undefined => {
      if (opened === undefined) return undefined
      const { isRolledBack, unit } = opened
      const cause = Exit.isFailure(exit) ? exit.cause : Cause.empty
      // the function `outcome` of the options may have rolled back a success
      return Exit.isFailure(exit) || isRolledBack
        ? replayableUnit(unit, reasonOf(unit.failures, cause), cause)
        : undefined
    }
    const first = failed === undefined ? undefined : Exit.failCause(failed.cause)
    return retryWork(restore, next, reasonFor, () => opened?.unit.begun ?? [], retry, policy, first)
  })
