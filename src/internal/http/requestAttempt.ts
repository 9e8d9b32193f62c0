/**
 * One attempt to answer a request in a unit of work. The response decides how the unit ends.
 */

import type * as HttpApp from "@effect/platform/HttpApp"
import * as HttpServerError from "@effect/platform/HttpServerError"
import type { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import type * as UnitOfWork from "../../UnitOfWork.js"
import type { Restore } from "../edge/cancellable.js"
import { reasonOf } from "../unitOfWork/attempts.js"
import type { UnitHandle } from "../unitOfWork/openUnit.js"
import { responseOf } from "./apiFailureResponse.js"
import { isRouteHandler, routeEntry, unitEntry } from "./enterUnitOfWork.js"
import type { KeyedRequest } from "./keyedRequest.js"
import { answerOf, earlierResponse } from "./platformIdempotency.js"
import type { RequestPlan } from "./requestPlan.js"
import { type RequestSession, sessionOf } from "./sessionTokens.js"

type Response = HttpServerResponse.HttpServerResponse

/** Result of an attempt whose work was not stored. */
export class Unstored<E> {
  constructor(
    /** The reason for another attempt, if there is one. */
    readonly reason: unknown,
    /** The failure of the handler or of the end of the unit. */
    readonly failure: Cause.Cause<unknown>,
    /** The answer if there is no other attempt. */
    readonly otherwise: Effect.Effect<Response, E>
  ) {}
}

/** Function that answers an unstored request, or fails so that another attempt follows. */
export type Settle<E, E1> = (unstored: Unstored<E>) => Effect.Effect<Response, E1>

/** Answers without another attempt. */
export const answerIt = <E>({ otherwise }: Unstored<E>): Effect.Effect<Response, E> => otherwise

/**
 * Rolls a unit back, and ignores a failure of the rollback. In that case the connection is closed,
 * which rolls back, too, and the request is answered with the failure that led to the rollback.
 */
export const undo = (handle: UnitHandle): Effect.Effect<void> => Effect.ignore(handle.end("rollback", undefined))

/**
 * Answers a request whose work was undone: with the answer that another request with its key has
 * left, if there is one, else with its own.
 */
const answerUndone = <E>(
  keyed: KeyedRequest | undefined,
  failure: unknown,
  own: Effect.Effect<Response, E>
): Effect.Effect<Response, E> =>
  keyed === undefined
    ? own
    : Effect.flatMap(keyed.instead(failure), (earlier) =>
        earlier === undefined ? own : Effect.succeed(earlierResponse(earlier))
      )

/** Ends a unit; if it commits, the key of the request is stored with it. */
const endWithKey = (
  keyed: KeyedRequest | undefined,
  handle: UnitHandle,
  outcome: UnitOfWork.Outcome,
  response: Response,
  restore: Restore
): Effect.Effect<void, DatabaseError> => {
  const end = handle.end(outcome, restore)
  if (keyed === undefined || outcome === "rollback") return end
  const stored = Effect.onError(restore(keyed.store(handle.unit, answerOf(response))), () => undo(handle))
  return Effect.zipRight(stored, end)
}

/**
 * Ends the unit of a request with the outcome of its response. If `cause` is not empty, the
 * response encodes this failure of the handler.
 */
export const endBy = <E, E1>(
  { keyed, onCommitFailed, outcome }: RequestPlan,
  handle: UnitHandle,
  response: Response,
  cause: Cause.Cause<E>,
  settle: Settle<E, E1>,
  restore: Restore
): Effect.Effect<Response, E1> =>
  Effect.suspend(() => {
    const answer = (reason?: unknown, isUndone = false) => {
      const undone = isUndone ? keyed : undefined
      if (!Cause.isEmpty(cause))
        return settle(new Unstored(reason, cause, answerUndone(undone, undefined, Effect.failCause(cause))))
      const answered = answerUndone(undone, undefined, Effect.succeed(response))
      return reason === undefined ? answered : settle(new Unstored(reason, cause, answered))
    }
    if (handle.hasEnded || (keyed === undefined && handle.endUntouched())) return answer()
    let decided: UnitOfWork.Outcome
    try {
      decided = outcome(response)
    } catch (defect) {
      return Effect.zipRight(undo(handle), Effect.die(defect))
    }
    return Effect.matchEffect(endWithKey(keyed, handle, decided, response, restore), {
      onFailure: (error) => {
        const refused = Effect.suspend(() => Effect.as(Effect.logError(error.message), onCommitFailed(error)))
        return settle(new Unstored(error, Cause.fail(error), answerUndone(keyed, error, refused)))
      },
      onSuccess: () => (decided === "rollback" ? answer(reasonOf(handle.unit.failures, cause), true) : answer())
    })
  })

/**
 * Ends the unit of a request whose handler has failed. If an `HttpApi` encodes the failure, that
 * response decides the outcome. Otherwise the unit is rolled back.
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
  // if the unit has ended, its response is being sent, and no other response may follow
  if (handle.hasEnded) return settle(new Unstored(undefined, cause, otherwise))
  // an interrupted request has no client that waits for an answer
  const keyed = Cause.isInterruptedOnly(cause) ? undefined : plan.keyed
  const undone = answerUndone(keyed, undefined, otherwise)
  const rollback = Effect.suspend(() =>
    Effect.zipRight(undo(handle), settle(new Unstored(reasonOf(handle.unit.failures, cause), cause, undone)))
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
 * Ends a unit right before the response is sent. It adds the tokens of the session and answers a
 * failure of `end`, because no other code of this library runs afterwards.
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
 * Runs an app in a unit and ends the unit. `handler` is the app with its middleware, if that may be
 * the handler of a route.
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
      // the router drops the context right after the handler, so a unit without work is not left
      isRoute && plan.keyed === undefined && handle.endUntouched()
        ? Effect.succeed(response)
        : Effect.flatMap(leave, () => endBy(plan, handle, response, Cause.empty, settle, restore))
  })
  return Effect.zipRight(enter, answered)
}
