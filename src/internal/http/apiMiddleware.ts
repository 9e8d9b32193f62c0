/**
 * The middleware of an `HttpApi`. It provides the handler with its transaction slot, and ends the
 * unit of work before the response is sent.
 */

import * as HttpApp from "@effect/platform/HttpApp"
import type { RouteContext } from "@effect/platform/HttpRouter"
import { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import * as HttpServerRespondable from "@effect/platform/HttpServerRespondable"
import type { HttpServerResponse } from "@effect/platform/HttpServerResponse"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as FiberRef from "effect/FiberRef"
import * as Option from "effect/Option"
import type * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { type DatabaseError, OptionsConflict } from "../../DatabaseError.js"
import { RetryPolicy } from "../../RetryPolicy.js"
import { type Restore, restoreOf } from "../edge/cancellable.js"
import { currentContext, type TransactionContext } from "../transaction/context.js"
import { slotOf } from "../transaction/transactionSlot.js"
import { openUnit, type UnitHandle, type UnitPlan } from "../unitOfWork/openUnit.js"
import { invalidOfSettings } from "../unitOfWork/optionRules.js"
import type { Unit } from "../unitOfWork/unit.js"
import { joinableUnitOf } from "../unitOfWork/unitOf.js"
import { type Attempt, answerRepeatedly, openRepeatable } from "./answerWithRetry.js"
import { responseOf } from "./apiFailureResponse.js"
import { keyConflict } from "./keyedRequest.js"
import { admit } from "./platformIdempotency.js"
import { makeReplayable } from "./replayableRequest.js"
import { answerIt, answerOnce, endBeforeResponse, endBy, undo } from "./requestAttempt.js"
import { settingsFor } from "./requestOptions.js"
import {
  type ApiMiddlewareOptions,
  demandOf,
  isRepeatable,
  makePlan,
  type RequestPlan,
  refuse,
  unitPlanFor
} from "./requestPlan.js"
import { Route } from "./routeContextTag.js"

type Request = HttpServerRequest
type Response = HttpServerResponse

/**
 * Makes the refusal of an `outcome` inside of another unit of work. That unit decides how the work
 * ends, before this middleware sees the response.
 */
const outcomeConflict = (): OptionsConflict =>
  new OptionsConflict({
    database: "",
    server: "",
    option: "outcome",
    outer: "the unit of work around",
    inner: "a request"
  })

/**
 * Makes `end` run before the response of a request is sent. If it has not run when the scope of the
 * request closes, the unit is rolled back. Returns the service for the transaction slot of the
 * handler.
 */
const openFor = (
  { currentContext }: Fiber.RuntimeFiber<unknown, unknown>,
  handle: UnitHandle,
  isKeyed: boolean,
  end: (response: Response) => Effect.Effect<Response>
): Effect.Effect<TransactionContext["slot"]> => {
  const beforeResponse = HttpApp.appendPreResponseHandler((_, response) =>
    Effect.suspend(() => (!isKeyed && handle.endUntouched() ? Effect.succeed(response) : end(response)))
  )
  const scope = Context.unsafeGet(currentContext, Scope.Scope)
  return Effect.as(
    Effect.zipRight(Scope.addFinalizer(scope, undo(handle)), beforeResponse),
    slotOf(currentContext, handle.unit)
  )
}

/**
 * Opens the unit of a request, and runs the route of the request again if the failure allows
 * another attempt. The middleware of the endpoint then runs again, too, and joins the unit of the
 * attempt. There is no other attempt if the handler has added pre-response handlers, because these
 * cannot be removed.
 */
const openWithRetry = (
  plan: RequestPlan,
  attempts: WeakSet<Unit>,
  fiber: Fiber.RuntimeFiber<unknown, unknown>,
  unitPlan: UnitPlan,
  routed: RouteContext,
  fresh: () => Request,
  retry: true | Schedule.Schedule<unknown, DatabaseError>,
  restore: Restore
): Effect.Effect<TransactionContext["slot"]> =>
  Effect.suspend(() => {
    const outside = fiber.currentContext
    // the router has made this context for this request alone, and the handler gets the same
    // context, so the kept request can only be set in it
    outside.unsafeMap.set(HttpServerRequest.key, fresh())
    const handlers = fiber.getFiberRef(HttpApp.currentPreResponseHandlers)
    let own: typeof handlers | undefined
    // the cast: the route runs in the context of its own request, which has all that it needs
    const route = Effect.flatMap(routed.route.handler, HttpServerRespondable.toResponse) as HttpApp.Default<unknown>
    const encoded = Effect.catchAllCause(route, (cause) =>
      Effect.flatMap(responseOf(outside, cause) ?? Effect.succeed(undefined), (response) =>
        response === undefined ? Effect.failCause(cause) : Effect.succeed(response)
      )
    )
    const open = () => {
      const handle = openRepeatable(unitPlan)
      attempts.add(handle.unit)
      return handle
    }
    const first = open()
    const end = (response: Response) =>
      Effect.withFiberRuntime<Response, unknown>((ending) => {
        const isLast = ending.getFiberRef(HttpApp.currentPreResponseHandlers) === own
        const ended = Effect.uninterruptibleMask((restoreEnd) =>
          endBy(plan, first, response, Cause.empty, isLast ? Effect.fail : answerIt, restoreEnd)
        )
        let isFirst = true
        const attempt = (): Attempt<unknown, Request> => {
          if (isFirst) {
            isFirst = false
            return { handle: first, answer: ended }
          }
          const handle = open()
          const request = fresh()
          const answered = answerOnce(
            plan,
            handle,
            Effect.provideService(encoded, HttpServerRequest, request),
            undefined,
            outside,
            Effect.fail,
            restore
          )
          const finished = Effect.flatMap(answered, (response) =>
            Effect.flatMap(
              FiberRef.get(HttpApp.currentPreResponseHandlers),
              Option.match({
                onNone: () => Effect.succeed(response),
                // the error type of the route does not include this failure, so it becomes a
                // defect; the platform answers both with status 500
                onSome: (handler) => Effect.orDie(handler(request, response))
              })
            )
          )
          return {
            handle,
            answer: Effect.zipRight(FiberRef.set(HttpApp.currentPreResponseHandlers, handlers), finished)
          }
        }
        const answered = answerRepeatedly(attempt, retry, Context.get(outside, RetryPolicy), restore)
        // the cast: the context of a request has the request
        return Effect.mapInputContext(answered, () => outside as Context.Context<Request>)
      })
    return Effect.zipLeft(
      openFor(fiber, first, plan.keyed !== undefined, (response) => endBeforeResponse(end(response))),
      Effect.sync(() => {
        own = fiber.getFiberRef(HttpApp.currentPreResponseHandlers)
      })
    )
  })

/**
 * Makes the effect that provides the transaction slot of each request of an `HttpApi`. `services`
 * has the database of the keys, if the requests have keys.
 */
export const makeApiMiddleware = (
  options: ApiMiddlewareOptions,
  services: Context.Context<never>
): Effect.Effect<TransactionContext["slot"]> => {
  const plan = makePlan(options)
  const { idempotencyKey, retry } = options
  const attempts = new WeakSet<Unit>()
  const open = (plan: RequestPlan) =>
    Effect.withFiberRuntime<TransactionContext["slot"]>((fiber, { runtimeFlags }) => {
      const around = currentContext(fiber)
      const { unsafeMap } = fiber.currentContext
      const request = Context.unsafeGet(fiber.currentContext, HttpServerRequest)
      const { outcome } = options
      const settings = settingsFor(options, request)
      const invalid = invalidOfSettings({ transaction: settings })
      if (invalid !== undefined) return Effect.flatMap(refuse(plan, invalid), Effect.die)
      const unit = joinableUnitOf(around)
      if (around !== undefined && unit !== undefined) {
        // an attempt has run the route again, and this is its middleware
        if (attempts.has(unit)) return Effect.succeed(around.slot)
        if (plan.keyed !== undefined) return Effect.flatMap(refuse(plan, keyConflict()), Effect.die)
        const conflict = outcome === undefined ? demandOf(plan, request, around, unit, settings) : outcomeConflict()
        return conflict === undefined ? Effect.succeed(around.slot) : Effect.flatMap(refuse(plan, conflict), Effect.die)
      }
      const conflict = around === undefined ? undefined : demandOf(plan, request, around, undefined, settings)
      if (conflict !== undefined) return Effect.flatMap(refuse(plan, conflict), Effect.die)
      const unitPlan = unitPlanFor(plan, request, around, settings)
      const routed: RouteContext | undefined = unsafeMap.get(Route.key)
      const isOnce = retry === undefined || retry === false || routed === undefined
      if (isOnce || !isRepeatable(request)) {
        const handle = openUnit(unitPlan)
        return openFor(fiber, handle, plan.keyed !== undefined, (response) =>
          Effect.uninterruptibleMask((restore) =>
            endBeforeResponse(endBy(plan, handle, response, Cause.empty, answerIt, restore))
          )
        )
      }
      const restore = restoreOf(runtimeFlags)
      return Effect.matchEffect(makeReplayable(request), {
        // if a defect is a response, the platform sends it
        onFailure: (error) => Effect.flatMap(HttpServerRespondable.toResponse(error), Effect.die),
        onSuccess: (fresh) => openWithRetry(plan, attempts, fiber, unitPlan, routed, fresh, retry, restore)
      })
    })
  if (idempotencyKey === undefined) return open(plan)
  return Effect.withFiberRuntime((fiber) => {
    const unit = joinableUnitOf(currentContext(fiber))
    if (unit !== undefined && attempts.has(unit)) return open(plan)
    const { unsafeMap } = fiber.currentContext
    const request = Context.unsafeGet(fiber.currentContext, HttpServerRequest)
    // without a route, the handler would not get the request whose body was read
    const isKept = unsafeMap.has(Route.key) && isRepeatable(request)
    const admitting = admit(idempotencyKey, request, isKept, (error) => refuse(plan, error))
    return Effect.flatMap(
      // the cast: the layer of the middleware has these services
      Effect.provide(admitting, services as Context.Context<unknown>),
      (admitted) => {
        // if a defect is a response, the platform sends it
        if (!("keyed" in admitted)) return Effect.die(admitted)
        if (isKept) unsafeMap.set(HttpServerRequest.key, admitted.request)
        return open({ ...plan, keyed: admitted.keyed })
      }
    )
  })
}
