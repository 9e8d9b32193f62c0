/**
 * Work that is run again as a whole, where all of it is undone for certain and may go better.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Schedule from "effect/Schedule"
import { type DatabaseError, fromUnknown, type StatementError } from "../../DatabaseError.js"
import { isReplayable, type Policy, RetryPolicy } from "../../RetryPolicy.js"
import type { Restore } from "../concurrency/cancellable.js"
import type { Unit } from "./unitOfWork.js"

/**
 * Returns why work that has failed may go better in another attempt: what its transactions' statements have failed with, also where the
 * work has made another failure of it, or what the work has failed with or died of. Work that was interrupted is not to be run again.
 */
export const reasonOf = (known: ReadonlyArray<StatementError>, cause: Cause.Cause<unknown>): unknown => {
  const failures = [...Cause.failures(cause)]
  // plain code that awaits an effect rejects with the exception when that is interrupted
  const isInterrupted = !Cause.isEmpty(cause) && Cause.isInterruptedOnly(cause)
  if (isInterrupted || failures.some(Cause.isInterruptedException)) return undefined
  return [...known, ...failures, ...Cause.defects(cause)].find(isReplayable)
}

/** Whether a unit that was undone for this reason may run again; it is counted, and told of. */
export const takeRetry = (unit: Unit, reason: unknown, attempt: number, policy: Policy): boolean => {
  if (unit.hasCommitted || !isReplayable(reason)) return false
  const known = fromUnknown(reason)
  return unit.origin(known.database)?.takeReplay(policy, attempt, known) ?? false
}

/** The schedule that was asked for. */
export const retrySchedule = (
  asked: true | Schedule.Schedule<unknown, DatabaseError>,
  policy: Policy
): Schedule.Schedule<unknown, unknown> =>
  Schedule.mapInput(asked === true ? policy.transaction : asked, (error: unknown) => fromUnknown(error))

/**
 * Runs work for as long as it ends with a reason to run it again, and `take` grants another attempt; `first` is how it has ended before. To be
 * run where it cannot be interrupted: an interruptible handler would take from the cause of an interruption what has failed beside it.
 * `restore` is for the work and the pauses.
 */
export const retryTransaction = <A, E, R>(
  restore: Restore,
  once: Effect.Effect<A, E, R>,
  reasonFor: (exit: Exit.Exit<A, E>) => unknown,
  schedule: Schedule.Schedule<unknown, unknown>,
  take: (reason: unknown) => boolean,
  first?: Exit.Exit<A, E>
): Effect.Effect<A, E, R> =>
  Effect.flatMap(Schedule.driver(Schedule.whileInput(schedule, take)), (driver) => {
    const goOn = (exit: Exit.Exit<A, E>): Effect.Effect<A, E, R> => {
      const reason = reasonFor(exit)
      if (reason === undefined) return exit
      return Effect.matchCauseEffect(restore(driver.next(reason)), {
        // the schedule has ended, or the pause was interrupted: what the attempt has failed with, such as an unknown outcome, is kept
        onFailure: (cause) =>
          Either.match(Cause.failureOrCause(cause), {
            onLeft: () => exit,
            onRight: (gone) => Effect.failCause(Exit.isFailure(exit) ? Cause.sequential(exit.cause, gone) : gone)
          }),
        onSuccess: () => attempt
      })
    }
    const attempt = Effect.flatMap(Effect.exit(restore(once)), goOn)
    return first === undefined ? attempt : goOn(first)
  })

/** An open unit of work, as far as its repetition needs to know it. */
interface Opened {
  readonly unit: Unit
  readonly isRolledBack: boolean
}

/** Runs it in a new unit each time, as {@link retryTransaction}; `failed` is how the first has ended, where it was run already. */
export const retryUnit = <O extends Opened, A, E, R>(
  restore: Restore,
  open: () => O,
  once: (opened: O) => Effect.Effect<A, E, R>,
  asked: true | Schedule.Schedule<unknown, DatabaseError>,
  failed?: { readonly opened: O; readonly cause: Cause.Cause<E> }
): Effect.Effect<A, E, R> =>
  Effect.withFiberRuntime((fiber) => {
    const policy = Context.get(fiber.currentContext, RetryPolicy)
    let opened = failed?.opened
    let attempt = 0
    const next = Effect.suspend(() => {
      opened = open()
      opened.unit.attempt = attempt + 1
      return once(opened)
    })
    const reasonFor = (exit: Exit.Exit<A, E>): unknown => {
      if (opened === undefined) return undefined
      if (Exit.isFailure(exit)) return reasonOf(opened.unit.failures, exit.cause)
      // a success that its outcome has undone
      return opened.isRolledBack ? reasonOf(opened.unit.failures, Cause.empty) : undefined
    }
    const take = (reason: unknown) => opened !== undefined && takeRetry(opened.unit, reason, ++attempt, policy)
    const first = failed === undefined ? undefined : Exit.failCause(failed.cause)
    return retryTransaction(restore, next, reasonFor, retrySchedule(asked, policy), take, first)
  })
