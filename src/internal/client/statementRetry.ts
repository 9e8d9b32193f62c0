/**
 * The pauses between the attempts of one statement, or of one checkout.
 *
 * An attempt that found no connection follows the policy's schedule for that until its deadline, whatever came before: a statement that was
 * in flight when the server went away waits as one that comes later. A statement that a server has seen follows a schedule of its own.
 */

import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { DatabaseError, Retried } from "../../DatabaseError.js"
import { isNotSent, type Policy } from "../../RetryPolicy.js"
import * as clock from "../concurrency/clock.js"
import type { OutageWaiters } from "../pool/outageWaiters.js"
import type { RetryBudget } from "./retryBudget.js"

/** The attempts of one statement, or of one checkout. */
export interface StatementRetry {
  /** Pauses after a failure; gives whether there is to be another attempt. `deadline` is until when a connection must have been found. */
  readonly pause: (error: DatabaseError, deadline: number) => Effect.Effect<boolean>
  /** What has ended the attempts. */
  readonly endedBy: () => Retried["endedBy"]
  /** Gives back what was taken from the budget, for the statement has succeeded. */
  readonly giveBack: () => void
}

/** Ends a schedule where its next delay would go past the deadline: a caller that cannot be served before it fails at once, with the reason. */
const before = <In>(schedule: Schedule.Schedule<unknown, In>, deadline: () => number) =>
  Schedule.whileOutput(Schedule.delays(schedule), (delay) => clock.now() + Duration.toMillis(delay) < deadline())

const no = Effect.succeed(false)
const yes = Effect.succeed(true)

/** Begins the attempts of one statement. */
export const makeStatementRetry = (
  policy: Policy,
  budget: RetryBudget,
  waiters: OutageWaiters
): Effect.Effect<StatementRetry> =>
  Effect.gen(function* () {
    let until = Number.POSITIVE_INFINITY
    let isLast = false
    let taken = 0
    let endedBy: Retried["endedBy"] = "schedule"
    const take = () => {
      const isLeft = budget.take(policy.budget)
      if (isLeft) taken++
      else endedBy = "budget"
      return isLeft
    }
    // a schedule that has ended takes nothing of the budget
    const acquire = yield* Schedule.driver(
      // a caller that only waits costs the server nothing: its pool connects for all of them together
      Schedule.whileInput(
        before(policy.acquire, () => until),
        ({ _tag }) => _tag === "ConnectFailed" || take()
      )
    )
    const statement = yield* Schedule.driver(Schedule.whileInput(policy.statement, take))
    const goesOn = Effect.match({ onFailure: () => false, onSuccess: () => true })
    const wait = (error: DatabaseError) =>
      Effect.acquireUseRelease(
        Effect.sync(() => waiters.enter()),
        () => goesOn(acquire.next(error)),
        () => Effect.sync(() => waiters.leave())
      )
    const pause: StatementRetry["pause"] = (error, deadline) => {
      if (isLast) return no
      if (error._tag === "ConnectFailed") {
        until = deadline
        if (waiters.hasRoom) return wait(error)
        // the pool knows why it has no place for this caller, or has found a connection meanwhile
        isLast = true
        return yes
      }
      if (isNotSent(error)) {
        until = deadline
        return goesOn(acquire.next(error))
      }
      return Effect.zipRight(acquire.reset, goesOn(statement.next(error)))
    }
    return { pause, endedBy: () => endedBy, giveBack: () => budget.giveBack(taken, policy.budget) }
  })
