/**
 * The pauses between the attempts of one statement, or of one checkout.
 *
 * An attempt that found no connection is followed by the pauses of `policy.acquire`, until its
 * deadline, whatever failed before. So a statement that was running when an outage began waits as
 * long as a later statement. A failure of a statement that the server has received is followed by
 * the pauses of `policy.statement`.
 */

import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { DatabaseError, Retried } from "../../DatabaseError.js"
import { isNotSent, type Policy } from "../../RetryPolicy.js"
import * as clock from "../concurrency/clock.js"
import type { OutageWaiters } from "../pool/outageWaiters.js"
import type { RetryBudget } from "./retryBudget.js"

/** Pauses of one statement, or of one checkout. */
export interface RetryPauses {
  /**
   * Pauses after a failure; succeeds with `true` if another attempt follows. `deadline` is the time
   * by which a connection must be found.
   */
  readonly pause: (error: DatabaseError, deadline: number) => Effect.Effect<boolean>
  /** Returns the reason why there is no further attempt. */
  readonly endedBy: () => Retried["endedBy"]
  /** Returns the tokens to the budget after the statement has succeeded. */
  readonly giveBack: () => void
}

/**
 * Ends a schedule if its next delay would pass the deadline: a caller that cannot be served before
 * the deadline fails at once, with the reason.
 */
const before = <In>(schedule: Schedule.Schedule<unknown, In>, deadline: () => number) =>
  Schedule.whileOutput(Schedule.delays(schedule), (delay) => clock.now() + Duration.toMillis(delay) < deadline())

const no = Effect.succeed(false)
const yes = Effect.succeed(true)

/** Creates the pauses of one statement, or of one checkout. */
export const makeRetryPauses = (
  policy: Policy,
  budget: RetryBudget,
  waiters: OutageWaiters
): Effect.Effect<RetryPauses> =>
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
    // `whileInput` does not call `take` once the schedule has ended
    const acquire = yield* Schedule.driver(
      // waiting for a connect takes no token, because a pool makes the attempts for all its waiters
      // together
      Schedule.whileInput(
        before(policy.acquire, () => until),
        ({ _tag }) => _tag === "ConnectFailed" || take()
      )
    )
    const statement = yield* Schedule.driver(Schedule.whileInput(policy.statement, take))
    const isGranted = Effect.match({ onFailure: () => false, onSuccess: () => true })
    const waitForServer = (error: DatabaseError) =>
      Effect.acquireUseRelease(
        Effect.sync(() => waiters.enter()),
        () => isGranted(acquire.next(error)),
        () => Effect.sync(() => waiters.leave())
      )
    const pause: RetryPauses["pause"] = (error, deadline) => {
      if (isLast) return no
      if (error._tag === "ConnectFailed") {
        until = deadline
        if (waiters.hasRoom) return waitForServer(error)
        // too many callers wait, so the last attempt follows at once: it fails with the error of
        // the pool, or finds a connection after all
        isLast = true
        return yes
      }
      if (isNotSent(error)) {
        until = deadline
        return isGranted(acquire.next(error))
      }
      return Effect.zipRight(acquire.reset, isGranted(statement.next(error)))
    }
    return { pause, endedBy: () => endedBy, giveBack: () => budget.giveBack(taken, policy.budget) }
  })
