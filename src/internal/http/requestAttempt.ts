/**
 * One attempt to answer a request in a unit of work, and the end of the unit by the response.
 */

import type * as HttpApp from "@effect/platform/HttpApp"
import * as HttpServerError from "@effect/platform/HttpServerError"
import type { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as UnitOfWork from "../../UnitOfWork.js"
import type { Restore } from "../edge/cancellable.js"
import type { UnitHandle } from "../unitOfWork/handle.js"
import { reasonOf } from "../unitOfWork/retry.js"
import { responseOf } from "./apiFailureResponse.js"
import { isRouteHandler, routeEntry, unitEntry } from "./enterUnitOfWork.js"
import type { RequestPlan } from "./middlewarePlan.js"
import { type RequestSession, sessionOf } from "./sessionCookie.js"

type Response = HttpServerResponse.HttpServerResponse

/**
 * Result of a request that was not stored: the reason for another attempt, if there is one, the
 * failure of its handler or of its end, and the answer if there is no other attempt.
 */
export class Unstored<E> {
  constructor(
    readonly reason: unknown,
    readonly failure: Cause.Cause<unknown>,
    readonly otherwise: Effect.Effect<Response, E>
  ) {}
}

/** Function that answers such a request, or fails so that another attempt follows. */
export type Settle<E, E1> = (unstored: Unstored<E>) => Effect.Effect<Response, E1>

/** Answers without another attempt. */
export const answerIt = <E>({ otherwise }: Unstored<E>): Effect.Effect<Response, E> => otherwise

/**
 * Rolls a unit back. No failure is lost: a connection that does not answer is closed, which rolls
 * back, too, and the failure that led to the rollback is the one that is answered.
 */
export const undo = (handle: UnitHandle): Effect.Effect<void> => Effect.ignore(handle.end("rollback", undefined))

/**
 * Ends the unit of a request by its response. A `cause` that is not empty is a failure that the
 * response encodes.
 */
export const endBy = <E, E1>(
  { onCommitFailed, outcome }: RequestPlan,
  handle: UnitHandle,
  response: Response,
  cause: Cause.Cause<E>,
  settle: Settle<E, E1>,
  restore: Restore
): Effect.Effect<Response, E1> =>
  Effect.suspend(() => {
    const answer = (reason?: unknown) => {
      if (!Cause.isEmpty(cause)) return settle(new Unstored(reason, cause, Effect.failCause(cause)))
      const answered = Effect.succeed(response)
      return reason === undefined ? answered : settle(new Unstored(reason, cause, answered))
    }
    if (handle.endUntouched()) return answer()
    let decided: UnitOfWork.Outcome
    try {
      decided = outcome(response)
    } catch (defect) {
      return Effect.zipRight(undo(handle), Effect.die(defect))
    }
    return Effect.matchEffect(handle.end(decided, restore), {
      onFailure: (error) => {
        const otherwise = Effect.suspend(() => Effect.as(Effect.logError(error.message), onCommitFailed(error)))
        return settle(new Unstored(error, Cause.fail(error), otherwise))
      },
      onSuccess: () => answer(decided === "rollback" ? reasonOf(handle.unit.failures, cause) : undefined)
    })
  })

/**
 * Ends the unit of a request after its handler has failed: by the response of its `HttpApi`, else
 * by a rollback.
 */
const endByFailure = <E, E1>(
  plan: RequestPlan,
  handle: UnitHandle,
  cause: Cause.Cause<E>,
  outside: Context.Context<never>,
  settle: Settle<E, E1>,
  restore: Restore
): Effect.Effect<Response, E1> => {
  const otherwise = Effect.failCause(cause)
  // if the unit has ended, its response is being sent, and must stay the only one
  if (handle.hasEnded) return settle(new Unstored(undefined, cause, otherwise))
  const rollback = Effect.suspend(() =>
    Effect.zipRight(undo(handle), settle(new Unstored(reasonOf(handle.unit.failures, cause), cause, otherwise)))
  )
  const encoded = responseOf(outside, cause)
  return encoded === undefined
    ? rollback
    : Effect.flatMap(encoded, (response) =>
        response === undefined ? rollback : endBy(plan, handle, response, cause, settle, restore)
      )
}

/** Adds the new tokens of a session to a response. */
export const addTokens = (session: RequestSession, response: Response): Response => {
  const reply = session.takeReply()
  if (reply === undefined) return response
  const { cookie, name, value } = reply
  return cookie === undefined
    ? HttpServerResponse.setHeader(response, name, value)
    : HttpServerResponse.unsafeSetCookie(response, name, value, cookie)
}

/**
 * Ends a unit by the response that is about to be sent. No other code of this library runs after
 * it, so it adds the tokens of the session itself, and answers its own failure.
 */
export const endBeforeResponse = (end: Effect.Effect<Response, unknown>): Effect.Effect<Response> =>
  Effect.withFiberRuntime((fiber) => {
    const session = sessionOf(fiber)
    const answered = Effect.catchAllCause(end, (cause) =>
      Effect.flatMap(HttpServerError.causeResponse(cause), ([response]) =>
        Effect.as(Effect.logError("the end of a request's unit of work has failed", cause), response)
      )
    )
    return session === undefined ? answered : Effect.map(answered, (response) => addTokens(session, response))
  })

/**
 * Runs an app in a unit and ends the unit. `handler` is the app with the middleware, which may be
 * the handler of the route itself.
 */
export const answerOnce = <E, R, E1>(
  plan: RequestPlan,
  handle: UnitHandle,
  app: HttpApp.Default<E, R>,
  handler: unknown,
  outside: Context.Context<never>,
  settle: Settle<E, E1>,
  restore: Restore
): Effect.Effect<Response, E1, R | HttpServerRequest> => {
  const isRoute = isRouteHandler(outside, handler)
  const { enter, leave } = isRoute
    ? routeEntry(outside, handle.unit)
    : unitEntry(outside, handle.unit, (response) =>
        endBeforeResponse(endBy(plan, handle, response, Cause.empty, answerIt, restore))
      )
  const answered = Effect.matchCauseEffect(restore(app), {
    onFailure: (cause) => Effect.flatMap(leave, () => endByFailure(plan, handle, cause, outside, settle, restore)),
    onSuccess: (response) =>
      // the router drops the context right after this, so the unit need not be left if there is no
      // more work
      isRoute && handle.endUntouched()
        ? Effect.succeed(response)
        : Effect.flatMap(leave, () => endBy(plan, handle, response, Cause.empty, settle, restore))
  })
  return Effect.zipRight(enter, answered)
}
