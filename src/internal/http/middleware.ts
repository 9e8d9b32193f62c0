/**
 * The middleware that runs each request as one unit of work.
 */

import type * as HttpApp from "@effect/platform/HttpApp"
import { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as RuntimeFlags from "effect/RuntimeFlags"
import * as UnitOfWork from "../../UnitOfWork.js"
import type { Restore } from "../edge/cancellable.js"
import { currentContext } from "../transaction/context.js"
import { runAsPart } from "../transaction/runInTransaction.js"
import { openUnit } from "../unitOfWork/openUnit.js"
import { invalidOfSettings } from "../unitOfWork/optionRules.js"
import { joinableUnitOf } from "../unitOfWork/unitOf.js"
import { answerWithRetry } from "./answerWithRetry.js"
import { answerIt, answerOnce } from "./requestAttempt.js"
import { makeLabeler } from "./requestLabel.js"
import { settingsFor } from "./requestOptions.js"
import {
  demandOf,
  isRepeatable,
  joinedOutcome,
  type MiddlewareOptions,
  makePlan,
  refuse,
  unitPlanFor
} from "./requestPlan.js"

/** Makes the middleware; throws `ConfigInvalid` if an option is invalid. */
export const makeMiddleware = (
  options: MiddlewareOptions
): (<E, R>(app: HttpApp.Default<E, R>) => HttpApp.Default<E, R>) => {
  const plan = makePlan(options)
  const { retry } = options
  return <E, R>(app: HttpApp.Default<E, R>): HttpApp.Default<E, R> => {
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
        const describe = makeLabeler(request, plan.describe, options)
        const name = { label: describe(fiber)?.label, site: undefined }
        return runAsPart(app, around, name, { describe }, (exit) => joinedOutcome(plan, exit))
      }
      const unitPlan = unitPlanFor(plan, request, around, settings)
      // does the same as `uninterruptibleMask` with one operation less
      const restore: Restore = RuntimeFlags.interruption(runtimeFlags) ? Effect.interruptible : Effect.uninterruptible
      return Effect.uninterruptible(
        retry === undefined || retry === false || !isRepeatable(request)
          ? answerOnce(plan, openUnit(unitPlan), app, self, fiber.currentContext, answerIt, restore)
          : answerWithRetry(plan, unitPlan, app, fiber, retry, restore)
      )
    })
    return self
  }
}
