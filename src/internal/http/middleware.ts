/**
 * The middleware that runs each request as one unit of work.
 */

import type * as HttpApp from "@effect/platform/HttpApp"
import { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as UnitOfWork from "../../UnitOfWork.js"
import { restoreOf } from "../edge/cancellable.js"
import { currentContext } from "../transaction/context.js"
import { runAsPart } from "../transaction/runInTransaction.js"
import { openUnit } from "../unitOfWork/openUnit.js"
import { invalidOfSettings } from "../unitOfWork/optionRules.js"
import { joinableUnitOf } from "../unitOfWork/unitOf.js"
import { answerWithRetry } from "./answerWithRetry.js"
import { keyConflict } from "./keyedRequest.js"
import { admit } from "./platformIdempotency.js"
import { answerIt, answerOnce } from "./requestAttempt.js"
import { makeLabeler } from "./requestLabel.js"
import { settingsFor } from "./requestOptions.js"
import {
  demandOf,
  isRepeatable,
  joinedOutcome,
  type MiddlewareOptions,
  makePlan,
  type RequestPlan,
  refuse,
  unitPlanFor
} from "./requestPlan.js"

/** Makes the middleware; throws `ConfigInvalid` if an option is invalid. */
export const makeMiddleware = (
  options: MiddlewareOptions
): (<E, R>(app: HttpApp.Default<E, R>) => HttpApp.Default<E, R>) => {
  const plan = makePlan(options)
  const { retry } = options
  const answer = <E, R>(app: HttpApp.Default<E, R>, plan: RequestPlan): HttpApp.Default<E, R> => {
    const self: HttpApp.Default<E, R> = Effect.withFiberRuntime((fiber, { runtimeFlags }) => {
      const around = currentContext(fiber)
      const request = Context.unsafeGet(fiber.currentContext, HttpServerRequest)
      const settings = settingsFor(options, request)
      if (settings === "none") return around === undefined ? app : UnitOfWork.outside(app)
      const invalid = invalidOfSettings({ transaction: settings })
      if (invalid !== undefined) return refuse(plan, invalid)
      const unit = joinableUnitOf(around)
      const conflict = around === undefined ? undefined : demandOf(plan, request, around, unit, settings)
      if (conflict !== undefined) return refuse(plan, conflict)
      if (around !== undefined && unit !== undefined) {
        if (plan.keyed !== undefined) return refuse(plan, keyConflict())
        const describe = makeLabeler(request, plan.describe, options)
        const name = { label: describe(fiber)?.label, site: undefined }
        return runAsPart(app, around, name, { describe }, (exit) => joinedOutcome(plan, exit))
      }
      const unitPlan = unitPlanFor(plan, request, around, settings)
      const restore = restoreOf(runtimeFlags)
      return Effect.uninterruptible(
        retry === undefined || retry === false || !isRepeatable(request)
          ? answerOnce(plan, openUnit(unitPlan), app, self, fiber.currentContext, answerIt, restore)
          : answerWithRetry(plan, unitPlan, app, fiber, retry, restore)
      )
    })
    return self
  }
  const { idempotencyKey } = options
  if (idempotencyKey === undefined) return (app) => answer(app, plan)
  return <E, R>(app: HttpApp.Default<E, R>): HttpApp.Default<E, R> => {
    const keyed = Effect.flatMap(HttpServerRequest, (request) => {
      // without a unit there is no COMMIT to store the key with
      if (settingsFor(options, request) === "none") return answer(app, plan)
      const admitting = admit(idempotencyKey, request, isRepeatable(request), (error) => refuse(plan, error))
      return Effect.flatMap(admitting, (admitted) =>
        "keyed" in admitted
          ? Effect.provideService(answer(app, { ...plan, keyed: admitted.keyed }), HttpServerRequest, admitted.request)
          : Effect.succeed(admitted)
      )
    })
    // the cast: the public type of the middleware adds the database of the keys to the requirements
    return keyed as HttpApp.Default<E, R>
  }
}
