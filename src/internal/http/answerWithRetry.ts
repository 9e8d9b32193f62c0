/**
 * The attempts to answer a request. Each attempt runs the whole handler in a new unit of work.
 */

import * as HttpApp from "@effect/platform/HttpApp"
import { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import * as HttpServerRespondable from "@effect/platform/HttpServerRespondable"
import type { HttpServerResponse } from "@effect/platform/HttpServerResponse"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as FiberRef from "effect/FiberRef"
import * as Option from "effect/Option"
import type * as Schedule from "effect/Schedule"
import type { DatabaseError } from "../../DatabaseError.js"
import { type Policy, RetryPolicy } from "../../RetryPolicy.js"
import type { Restore } from "../edge/cancellable.js"
import { retryWork } from "../unitOfWork/attempts.js"
import { openUnit, type UnitHandle, type UnitPlan } from "../unitOfWork/openUnit.js"
import { replayableUnit } from "../unitOfWork/retryUnit.js"
import { makeReplayable } from "./replayableRequest.js"
import { answerIt, answerOnce, type Unstored } from "./requestAttempt.js"
import type { RequestPlan } from "./requestPlan.js"

type Request = HttpServerRequest
type Response = HttpServerResponse

/** Attempt to answer a request, with its unit. */
export interface Attempt<E, R> {
  readonly handle: UnitHandle
  readonly answer: Effect.Effect<Response, Unstored<E>, R>
}

/** Repeats the attempts to answer a request while the failure allows another one. */
export const answerRepeatedly = <E, R>(
  attempt: () => Attempt<E, R>,
  retry: true | Schedule.Schedule<unknown, DatabaseError>,
  policy: Policy,
  restore: Restore
): Effect.Effect<Response, E, R> => {
  let handle: UnitHandle | undefined
  const next = Effect.suspend(() => {
    const begun = attempt()
    handle = begun.handle
    return begun.answer
  })
  const reasonFor = (exit: Exit.Exit<Response, Unstored<E>>) => {
    if (handle === undefined || Exit.isSuccess(exit)) return undefined
    const { unit } = handle
    return Option.match(Cause.failureOption(exit.cause), {
      onNone: () => undefined,
      onSome: ({ failure, reason }) => replayableUnit(unit, reason, failure)
    })
  }
  const transactions = () => handle?.unit.begun ?? []
  const last = retryWork(restore, Effect.uninterruptible(next), reasonFor, transactions, retry, policy)
  // uninterruptible, so that a failure is handled and logged even if the client has disconnected
  return Effect.uninterruptible(Effect.catchAll(last, answerIt))
}

/** Opens the unit of an attempt. Parts that join the unit may request another attempt. */
export const openRepeatable = (unitPlan: UnitPlan): UnitHandle => {
  const handle = openUnit(unitPlan)
  handle.unit.canRunAgain = true
  return handle
}

/** Runs an app in a unit, and again in a new unit while `retry` and the failure allow that. */
export const answerWithRetry = <E, R>(
  plan: RequestPlan,
  unitPlan: UnitPlan,
  app: HttpApp.Default<E, R>,
  fiber: Fiber.RuntimeFiber<unknown, unknown>,
  retry: true | Schedule.Schedule<unknown, DatabaseError>,
  restore: Restore
): Effect.Effect<Response, E, R | Request> => {
  const outside = fiber.currentContext
  const request = Context.unsafeGet(outside, HttpServerRequest)
  const handlers = fiber.getFiberRef(HttpApp.currentPreResponseHandlers)
  const attempt = (fresh: () => Request) => (): Attempt<E, R | Request> => {
    const handle = openRepeatable(unitPlan)
    const handler = Effect.provideService(app, HttpServerRequest, fresh())
    return {
      handle,
      // removes the pre-response handlers of the previous attempt
      answer: Effect.zipRight(
        FiberRef.set(HttpApp.currentPreResponseHandlers, handlers),
        answerOnce(plan, handle, handler, undefined, outside, Effect.fail, restore)
      )
    }
  }
  return Effect.matchEffect(restore(makeReplayable(request)), {
    onFailure: (error) => HttpServerRespondable.toResponse(error),
    onSuccess: (fresh) => answerRepeatedly(attempt(fresh), retry, Context.get(outside, RetryPolicy), restore)
  })
}
