/**
 * The plan by which a middleware runs requests: its options, the values that are the same for each
 * request, and the decisions about one request.
 */

import type { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import type { HttpServerResponse } from "@effect/platform/HttpServerResponse"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Schedule from "effect/Schedule"
import type { DatabaseError, OptionsConflict } from "../../DatabaseError.js"
import type * as UnitOfWork from "../../UnitOfWork.js"
import { aFunction, anObject, aRetry, type OptionRules } from "../config/callOptionRules.js"
import type { TransactionContext } from "../transaction/context.js"
import { type CommitOptions, commitOptionsOf } from "../unitOfWork/commitOptions.js"
import type { UnitPlan } from "../unitOfWork/openUnit.js"
import { settingsByDatabase } from "../unitOfWork/options.js"
import { demandAround, demandOfUnit } from "../unitOfWork/runUnit.js"
import type { Unit } from "../unitOfWork/unit.js"
import { describeRequest } from "./describeRequest.js"
import { invalidKeyOption } from "./idempotencyKey.js"
import { isReplayableRequest } from "./isReplayableRequest.js"
import type { KeyedRequest } from "./keyedRequest.js"
import type { PlatformKeyOptions } from "./platformIdempotency.js"
import { problemResponse } from "./problemResponse.js"
import { makeLabeler } from "./requestLabel.js"
import { invalidRequestOption, outcomeOfResponse, type RequestOptions, requestOptions } from "./requestOptions.js"

type Request = HttpServerRequest
type Response = HttpServerResponse

/** Options of a middleware of @effect/platform. */
export interface MiddlewareOptions extends RequestOptions<Request, Response> {
  readonly onCommitFailed?: ((error: DatabaseError) => Response) | undefined
  readonly retry?: boolean | Schedule.Schedule<unknown, DatabaseError> | undefined
  readonly requestId?: ((request: Request) => string | undefined) | undefined
  readonly idempotencyKey?: PlatformKeyOptions<unknown> | undefined
}

/** Options of the middleware of an `HttpApi`, which opens a unit for each request. */
export interface ApiMiddlewareOptions extends Omit<MiddlewareOptions, "transaction"> {
  readonly transaction?: ((request: Request) => UnitOfWork.UnitSettings) | UnitOfWork.UnitSettings | undefined
}

/** Plan of a middleware. */
export interface RequestPlan {
  readonly options: MiddlewareOptions
  readonly outcome: (response: Response) => UnitOfWork.Outcome
  readonly onCommitFailed: (error: DatabaseError) => Response
  readonly describe: ReturnType<typeof describeRequest>
  readonly commitOptions: CommitOptions
  /** The key of the request, if it has one. */
  readonly keyed: KeyedRequest | undefined
  /** The settings, if they are the same for each request. */
  readonly settings: ReturnType<typeof settingsByDatabase>
}

const rulesOfOptions: OptionRules<MiddlewareOptions> = {
  ...requestOptions,
  onCommitFailed: aFunction,
  retry: aRetry,
  requestId: aFunction,
  idempotencyKey: anObject
}

/** Makes the plan of a middleware; throws `ConfigInvalid` if an option is invalid. */
export const makePlan = (options: MiddlewareOptions): RequestPlan => {
  const { databases, onCommitFailed = problemResponse, outcome = outcomeOfResponse, transaction } = options
  const invalid = invalidRequestOption(options, rulesOfOptions) ?? invalidKeyOption(options.idempotencyKey)
  if (invalid !== undefined) throw invalid
  return {
    options,
    outcome,
    onCommitFailed,
    describe: describeRequest(options.requestId),
    commitOptions: commitOptionsOf(options, true),
    keyed: undefined,
    settings: typeof transaction === "function" ? undefined : settingsByDatabase({ databases, transaction })
  }
}

/** Makes the plan of the unit of a request. */
export const unitPlanFor = (
  { commitOptions, describe, options, settings }: RequestPlan,
  request: Request,
  around: TransactionContext | undefined,
  transaction: UnitOfWork.UnitSettings | undefined
): UnitPlan => ({
  around,
  joins: true,
  settings: settings ?? settingsByDatabase({ databases: options.databases, transaction }),
  commitOptions,
  describe: makeLabeler(request, describe, options)
})

/** Logs a refusal, and returns the response of the refused request. */
export const refuse = ({ onCommitFailed }: RequestPlan, refusal: DatabaseError): Effect.Effect<Response> =>
  Effect.as(Effect.logError(refusal.message), onCommitFailed(refusal))

/** Checks if the body of a request allows another attempt. */
export const isRepeatable = ({ headers, method, source }: Request): boolean =>
  isReplayableRequest(method, (name) => headers[name], source)

/**
 * Applies the options of a request to the unit of work that it joins. Without such a unit, applies
 * the settings to the transactions around the request. Returns the conflict if that is impossible.
 */
export const demandOf = (
  { options, settings: fixed }: RequestPlan,
  request: Request,
  around: TransactionContext,
  unit: Unit | undefined,
  transaction: UnitOfWork.UnitSettings | undefined
): OptionsConflict | undefined => {
  const { atomic, checkFirst, databases, order, retry } = options
  const settings = fixed ?? settingsByDatabase({ databases, transaction })
  if (unit === undefined) return demandAround(around, settings)
  // a request that cannot be kept is answered once, as it is without a unit around it
  const demanded = isRepeatable(request) ? retry : undefined
  return demandOfUnit(around, unit, settings, { atomic, checkFirst, order, retry: demanded })
}

/** Returns the outcome of a request that has joined a unit of work. A failure is a rollback. */
export const joinedOutcome = <E>(
  { outcome }: RequestPlan,
  exit: Exit.Exit<Response, E>
): Exit.Exit<UnitOfWork.Outcome> => {
  try {
    return Exit.succeed(Exit.isSuccess(exit) ? outcome(exit.value) : "rollback")
  } catch (defect) {
    return Exit.die(defect)
  }
}
