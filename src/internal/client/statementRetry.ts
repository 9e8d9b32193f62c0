/**
 * The pauses between the attempts of one statement, or of one checkout.
 *
 * An attempt that found no connection follows the policy's schedule for that until its deadline, whatever came before: a statement that was
 * in flight when the server went away waits as one that comes later. A statement that a server has seen follows a schedule of its own.
 */

import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { DatabaseError } from "../../DatabaseError.js"
import { isNotSent, type Policy } from "../../RetryPolicy.js"
import * as clock from "../concurrency/clock.js"
import type { OutageWaiters } from "../pool/outageWaiters.js"
import type { RetryBudget } from "./retryBudget.js"

/** Pauses after a failure; gives whether there is to be another attempt. `deadline` is until when a connection must have been found. */
export type Pause = (error: DatabaseError, deadline: number) => Effect.Effect<boolean>

/** Ends a schedule where its next delay would go past the deadline: a caller that cannot be served before it fails at once, with the reason. */
const before = <In>(schedule: Schedule.Schedule<unknown, In>, deadline: () => number) =>
  Schedule.whileOutput(Schedule.delays(schedule), (delay) => clock.now() + Duration.toMillis(delay) < deadline())

const no = Effect.succeed(false)
const yes = Effect.succeed(true)

/** Begins the pauses of one statement. */
export const makePause = (policy: Policy, budget: RetryBudget, waiters: OutageWaiters): Effect.Effect<Pause> =>
  Effect.gen(function* () {
    let until = Number.POSITIVE_INFINITY
    let isLast = false
    const acquire = yield* Schedule.driver(before(policy.acquire, () => until))
    const statement = yield* Schedule.driver(policy.statement)
    const goesOn = Effect.match({ onFailure: () => false, onSuccess: () => true })
    // a caller that only waits costs the server nothing: its pool connects for all of them together
    const wait = (error: DatabaseError) =>
      Effect.acquireUseRelease(
        Effect.sync(() => waiters.enter()),
        () => goesOn(acquire.next(error)),
        () => Effect.sync(() => waiters.leave())
      )
    return (error, deadline) => {
      if (isLast) return no
      if (error._tag === "ConnectFailed") {
        until = deadline
        if (waiters.hasRoom) return wait(error)
        // the pool knows why it has no place for this caller, or has found a connection meanwhile
        isLast = true
        return yes
      }
      if (!budget.take(policy.budget)) return no
      if (isNotSent(error)) {
        until = deadline
        return goesOn(acquire.next(error))
      }
      return Effect.zipRight(acquire.reset, goesOn(statement.next(error)))
    }
  })
