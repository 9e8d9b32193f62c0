/**
 * A unit of work that is run again as a whole, where all of it is undone for certain and may go better.
 */
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { type DatabaseError, fromUnknown } from "../DatabaseError.js"
import { isReplayable, type Policy, RetryPolicy } from "../RetryPolicy.js"
import type { Unit } from "./unit.js"

/** Whether a unit that failed may run again; it is counted, and told of. */
export const takeReplay = (unit: Unit, error: unknown, attempt: number, policy: Policy): boolean => {
  if (unit.hasCommitted || !isReplayable(error)) return false
  const known = fromUnknown(error)
  return unit.origin(known.database)?.takeReplay(policy, attempt, known) ?? false
}

/** The schedule that was asked for. */
export const replaySchedule = (
  asked: true | Schedule.Schedule<unknown, DatabaseError>,
  policy: Policy
): Schedule.Schedule<unknown, unknown> =>
  Schedule.mapInput(asked === true ? policy.transaction : asked, (error: unknown) => fromUnknown(error))

/** Runs it in a new unit each time; `failed` is how the first has ended, where it was run already. */
export const replay = <Opened extends { readonly unit: Unit }, A, E, R>(
  open: () => Opened,
  once: (opened: Opened) => Effect.Effect<A, E, R>,
  asked: true | Schedule.Schedule<unknown, DatabaseError>,
  failed?: { readonly unit: Unit; readonly cause: Cause.Cause<E> }
): Effect.Effect<A, E, R> =>
  Effect.withFiberRuntime((fiber) => {
    const policy = Context.get(fiber.currentContext, RetryPolicy)
    let unit: Unit | undefined
    let attempt = 0
    let before = failed
    const next = Effect.suspend(() => {
      if (before !== undefined) {
        const { cause } = before
        unit = before.unit
        before = undefined
        return Effect.failCause(cause)
      }
      const opened = open()
      unit = opened.unit
      unit.attempt = attempt + 1
      return once(opened)
    })
    return Effect.retry(next, {
      schedule: replaySchedule(asked, policy),
      while: (error) => unit !== undefined && takeReplay(unit, error, ++attempt, policy)
    })
  })
