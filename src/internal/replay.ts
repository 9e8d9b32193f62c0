/**
 * Work that is run again as a whole, where all of it is undone for certain and may go better.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schedule from "effect/Schedule"
import { type DatabaseError, fromUnknown, type StatementError } from "../DatabaseError.js"
import { isReplayable, type Policy, RetryPolicy } from "../RetryPolicy.js"
import type { Unit } from "./unit.js"

/** Work that was undone, why another attempt may go better, if it may, and how it has ended. */
class Undone<A, E> {
  constructor(
    readonly reason: unknown,
    readonly exit: Exit.Exit<A, E>
  ) {}
}

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
export const takeReplay = (unit: Unit, reason: unknown, attempt: number, policy: Policy): boolean => {
  if (unit.hasCommitted || !isReplayable(reason)) return false
  const known = fromUnknown(reason)
  return unit.origin(known.database)?.takeReplay(policy, attempt, known) ?? false
}

/** The schedule that was asked for. */
export const replaySchedule = (
  asked: true | Schedule.Schedule<unknown, DatabaseError>,
  policy: Policy
): Schedule.Schedule<unknown, unknown> =>
  Schedule.mapInput(asked === true ? policy.transaction : asked, (error: unknown) => fromUnknown(error))

/** Runs work for as long as it ends with a reason to run it again, and `take` grants another attempt. */
export const repeat = <A, E, R>(
  once: Effect.Effect<A, E, R>,
  reasonFor: (exit: Exit.Exit<A, E>) => unknown,
  schedule: Schedule.Schedule<unknown, unknown>,
  take: (reason: unknown) => boolean
): Effect.Effect<A, E, R> => {
  const attempt = Effect.flatMap(Effect.exit(once), (exit) => {
    const reason = reasonFor(exit)
    return reason === undefined ? Effect.succeed(exit) : Effect.fail(new Undone(reason, exit))
  })
  const last = Effect.retry(attempt, {
    schedule: Schedule.mapInput(schedule, ({ reason }: Undone<A, E>) => reason),
    while: ({ reason }) => take(reason)
  })
  return Effect.flatten(Effect.catchAll(last, ({ exit }) => Effect.succeed(exit)))
}

/** An open unit of work, as far as its repetition needs to know it. */
interface Opened {
  readonly unit: Unit
  readonly isRolledBack: boolean
}

/** Runs it in a new unit each time; `failed` is how the first has ended, where it was run already. */
export const replay = <O extends Opened, A, E, R>(
  open: () => O,
  once: (opened: O) => Effect.Effect<A, E, R>,
  asked: true | Schedule.Schedule<unknown, DatabaseError>,
  failed?: { readonly opened: O; readonly cause: Cause.Cause<E> }
): Effect.Effect<A, E, R> =>
  Effect.withFiberRuntime((fiber) => {
    const policy = Context.get(fiber.currentContext, RetryPolicy)
    let opened: O | undefined
    let attempt = 0
    let before = failed
    const next = Effect.suspend(() => {
      if (before !== undefined) {
        const { cause } = before
        opened = before.opened
        before = undefined
        return Effect.failCause(cause)
      }
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
    return repeat(next, reasonFor, replaySchedule(asked, policy), (reason) =>
      opened === undefined ? false : takeReplay(opened.unit, reason, ++attempt, policy)
    )
  })
