/**
 * A unit of work per HTTP request.
 *
 * @since 0.1.0
 */
import * as HttpApiMiddleware from "@effect/platform/HttpApiMiddleware"
import * as HttpApp from "@effect/platform/HttpApp"
import type { RouteContext } from "@effect/platform/HttpRouter"
import * as HttpServerError from "@effect/platform/HttpServerError"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerRespondable from "@effect/platform/HttpServerRespondable"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { TransactionConnection } from "@effect/sql/SqlClient"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as FiberRef from "effect/FiberRef"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as RuntimeFlags from "effect/RuntimeFlags"
import type * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { withSession } from "./Consistency.js"
import { type ConfigInvalid, type DatabaseError, OptionsConflict } from "./DatabaseError.js"
import type { KnownNames } from "./internal/config/knownNames.js"
import { unknownOption } from "./internal/config/unknownOption.js"
import type { Restore } from "./internal/edge/cancellable.js"
import { responseOf } from "./internal/http/apiErrors.js"
import { describeRequest } from "./internal/http/describeRequest.js"
import { enterInPlace, leaveInPlace, unitEntry } from "./internal/http/enterUnitOfWork.js"
import { isKeepable } from "./internal/http/keepableBody.js"
import { problemOf, problemType } from "./internal/http/problemDetails.js"
import { makeReplayable } from "./internal/http/replayableRequest.js"
import { type LabeledRequest, type LabelOptions, makeLabeler } from "./internal/http/requestLabel.js"
import { Route } from "./internal/http/routeTag.js"
import { type ReadYourWrites, type RequestSession, SessionTokens, sessionOf } from "./internal/http/sessionCookie.js"
import { currentContext, type TransactionContext } from "./internal/transaction/context.js"
import { slotOf } from "./internal/transaction/contextSlot.js"
import { runAsPart } from "./internal/transaction/withTransaction.js"
import { openUnit, type UnitHandle, type UnitPlan } from "./internal/unitOfWork/handle.js"
import { unknownOfSettings } from "./internal/unitOfWork/optionNames.js"
import { completionOptions, settingsByDatabase } from "./internal/unitOfWork/options.js"
import { reasonOf, replayableUnit, retryTransaction } from "./internal/unitOfWork/retry.js"
import { demandAround, demandOfUnit } from "./internal/unitOfWork/runUnit.js"
import { joinableUnitOf, type Unit } from "./internal/unitOfWork/unitOfWork.js"
import { type Policy, RetryPolicy } from "./RetryPolicy.js"
import * as UnitOfWork from "./UnitOfWork.js"

type Request = HttpServerRequest.HttpServerRequest
type Response = HttpServerResponse.HttpServerResponse

export type {
  /**
   * A request, as far as its statements may tell of it.
   *
   * @since 0.1.0
   * @category models
   */
  LabeledRequest,
  /**
   * Where the names of requests go.
   *
   * @since 0.1.0
   * @category models
   */
  LabelOptions,
  /**
   * How a client's later requests see what its earlier ones have written.
   *
   * @since 0.1.0
   * @category models
   */
  ReadYourWrites
}

/**
 * @since 0.1.0
 * @category models
 */
export interface Options
  extends LabelOptions,
    Pick<UnitOfWork.Options<never, never>, "databases" | "order" | "checkFirst"> {
  /** How a response ends the unit of work. Default: a status below 400 commits, any other rolls back. */
  readonly outcome?: ((response: Response) => UnitOfWork.Outcome) | undefined
  /** The response that is sent where the commit failed. Default: {@link commitFailed}. */
  readonly onCommitFailed?: ((error: DatabaseError) => Response) | undefined
  /**
   * How the transactions of a request are to be; `"none"` for a request without a unit of work, each statement of which is on its own.
   * A part of a request may ask for more by `UnitOfWork.run(settings)` around its handler, before its first statement.
   */
  readonly transaction?: ((request: Request) => UnitOfWork.UnitSettings | "none") | UnitOfWork.UnitSettings | undefined
  /**
   * Answers the request again, from its start and in a unit of work of its own, where the first was undone for certain and another may go
   * better: after a serialization failure, a deadlock, a lost connection. `true` follows the `RetryPolicy`. What its statements have failed
   * with decides, also where the handler has made an error of its own, a defect or a response of that. What a handler has done elsewhere is
   * done again. Default `false`.
   *
   * The body is read first and kept, up to 1 MiB; a request whose body is longer, or does not say how long it is, is answered once. Only
   * where the middleware stands around handlers: around a whole server the response is sent inside of it.
   */
  readonly retry?: boolean | Schedule.Schedule<unknown, DatabaseError> | undefined
  /** The id of a request, for its label and its comments. Default: the header `x-request-id`. Only short printable ones are used. */
  readonly requestId?: ((request: Request) => string | undefined) | undefined
}

/**
 * For {@link Options}: requests that must not change anything, `GET` and `HEAD`, get read-only transactions.
 *
 * @since 0.1.0
 * @category settings
 */
export const readOnlyWhenSafe = ({ method }: Request): UnitOfWork.UnitSettings =>
  method === "GET" || method === "HEAD" ? readOnly : anything

const readOnly: UnitOfWork.UnitSettings = { access: "read only" }
const anything: UnitOfWork.UnitSettings = {}

/**
 * The response where a commit failed: 409 where the request may simply be sent again, 503 where the database was lost, else 500; with a body
 * as RFC 9457 has it (`application/problem+json`). What the database said is logged, not sent.
 *
 * @since 0.1.0
 * @category responses
 */
export const commitFailed = (error: DatabaseError): Response => {
  const problem = problemOf(error)
  return HttpServerResponse.unsafeJson(problem, { status: problem.status, contentType: problemType })
}

const byStatus = (response: Response): UnitOfWork.Outcome => (response.status < 400 ? "commit" : "rollback")

/** Decides by the response of a part that has joined how it ends. */
const decide = <E>({ outcome = byStatus }: Options, exit: Exit.Exit<Response, E>): Exit.Exit<UnitOfWork.Outcome> => {
  try {
    return Exit.succeed(Exit.isSuccess(exit) ? outcome(exit.value) : "rollback")
  } catch (defect) {
    return Exit.die(defect)
  }
}

/** Options, with what does not change from request to request worked out. */
interface Plan {
  readonly options: Options
  readonly ask: ReturnType<typeof describeRequest>
  readonly ending: ReturnType<typeof completionOptions>
  readonly fixed: ReturnType<typeof settingsByDatabase>
}

const known: KnownNames<Options> = {
  outcome: true,
  onCommitFailed: true,
  transaction: true,
  databases: true,
  order: true,
  checkFirst: true,
  retry: true,
  requestId: true,
  applicationName: true,
  sqlComment: true
}

const makePlan = (options: Options): Plan => {
  const { databases, transaction } = options
  const all = typeof transaction === "object" ? transaction : undefined
  const unknown = unknownOption("", options, known) ?? unknownOfSettings({ databases, transaction: all })
  if (unknown !== undefined) throw unknown
  return {
    options,
    ask: describeRequest(options.requestId),
    ending: completionOptions(options, true),
    fixed: typeof transaction === "function" ? undefined : settingsByDatabase({ databases, transaction })
  }
}

/** How a request's transactions are to be. */
const settingsFor = (
  { options: { transaction } }: Plan,
  request: Request
): UnitOfWork.UnitSettings | "none" | undefined =>
  typeof transaction === "function" ? transaction(request) : transaction

/** What is opened for a request. */
const openingFor = (
  { ask, ending, fixed, options }: Plan,
  request: Request,
  around: TransactionContext | undefined,
  transaction: UnitOfWork.UnitSettings | undefined
): UnitPlan => ({
  around,
  joins: true,
  settings: fixed ?? settingsByDatabase({ databases: options.databases, transaction }),
  completion: ending,
  describe: makeLabeler(request, ask, options)
})

/** Answers a request that joins a unit of work which cannot be as its options ask. */
const refuse = (plan: Plan, conflict: ConfigInvalid | OptionsConflict): Effect.Effect<Response> =>
  Effect.as(Effect.logError(conflict.message), (plan.options.onCommitFailed ?? commitFailed)(conflict))

/** Has the unit of work that is open around a request, or else the transactions, take what the options ask for. */
const demand = (
  { fixed, options }: Plan,
  request: Request,
  around: TransactionContext,
  unit: Unit | undefined,
  transaction: UnitOfWork.UnitSettings | undefined
): OptionsConflict | undefined => {
  const { checkFirst, databases, order, retry } = options
  const rules = fixed ?? settingsByDatabase({ databases, transaction })
  if (unit === undefined) return demandAround(around, rules)
  // a request that cannot be kept is answered once in a unit of its own, too
  const asked = isKeepable(request.method, (name) => request.headers[name], request.source) ? retry : undefined
  return demandOfUnit(around, unit, rules, { checkFirst, order, retry: asked })
}

/**
 * A request was not stored: why another attempt may go better, if it may, what its handler or end has failed with, and what is answered
 * unless there is another attempt.
 */
class Unstored<E> {
  constructor(
    readonly reason: unknown,
    readonly failure: Cause.Cause<unknown>,
    readonly otherwise: Effect.Effect<Response, E>
  ) {}
}

/** What is done with it. */
type Settle<E, E1> = (unstored: Unstored<E>) => Effect.Effect<Response, E1>

const answerIt = <E>({ otherwise }: Unstored<E>): Effect.Effect<Response, E> => otherwise

/** Rolls a unit back. That cannot fail: a connection that does not answer is closed, which rolls back, too. */
const undo = (handle: UnitHandle): Effect.Effect<void> => Effect.ignore(handle.end("rollback", undefined))

/** Ends the unit of a request by its response, which `cause` is encoded to if it is not empty. */
const endBy = <E, E1>(
  { options }: Plan,
  handle: UnitHandle,
  response: Response,
  cause: Cause.Cause<E>,
  settle: Settle<E, E1>,
  restore: Restore
): Effect.Effect<Response, E1> => {
  const answer = (reason?: unknown) => {
    if (!Cause.isEmpty(cause)) return settle(new Unstored(reason, cause, Effect.failCause(cause)))
    const answered = Effect.succeed(response)
    return reason === undefined ? answered : settle(new Unstored(reason, cause, answered))
  }
  if (handle.endUntouched()) return answer()
  const { onCommitFailed = commitFailed, outcome = byStatus } = options
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
}

/** Ends the unit of a request whose handler has failed: by the response of its `HttpApi`, else by a rollback. */
const endByFailure = <E, E1>(
  plan: Plan,
  handle: UnitHandle,
  cause: Cause.Cause<E>,
  outside: Context.Context<never>,
  settle: Settle<E, E1>,
  restore: Restore
): Effect.Effect<Response, E1> => {
  const otherwise = Effect.failCause(cause)
  // where this has ended the unit already its response is on its way, and must stay the only one
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

/** Gives the client what its session has come to know. */
const giveBack = (session: RequestSession, response: Response): Response => {
  const returned = session.takeReturned()
  if (returned === undefined) return response
  const { cookie, name, value } = returned
  return cookie === undefined
    ? HttpServerResponse.setHeader(response, name, value)
    : HttpServerResponse.unsafeSetCookie(response, name, value, cookie)
}

/** Ends a unit by the response that is about to be sent: nothing comes after it that would give back its session, or answer its failure. */
const endBeforeResponse = (end: Effect.Effect<Response, unknown>): Effect.Effect<Response> =>
  Effect.withFiberRuntime((fiber) => {
    const session = sessionOf(fiber)
    const answered = Effect.catchAllCause(end, (cause) =>
      Effect.flatMap(HttpServerError.causeResponse(cause), ([response]) =>
        Effect.as(Effect.logError("the end of a request's unit of work has failed", cause), response)
      )
    )
    return session === undefined ? answered : Effect.map(answered, (response) => giveBack(session, response))
  })

/**
 * Runs an app in a unit and ends that. `handler` is what the middleware has made of the app; the unit may be entered in place if a route has
 * that for its handler.
 */
const once = <E, R, E1>(
  plan: Plan,
  handle: UnitHandle,
  app: HttpApp.Default<E, R>,
  handler: unknown,
  outside: Context.Context<never>,
  settle: Settle<E, E1>,
  restore: Restore
): Effect.Effect<Response, E1, R | Request> => {
  const passage = enterInPlace(outside, handler, handle.unit)
    ? undefined
    : unitEntry(outside, handle.unit, (response) =>
        endBeforeResponse(endBy(plan, handle, response, Cause.empty, answerIt, restore))
      )
  const leave = passage?.leave ?? leaveInPlace
  const answered = Effect.matchCauseEffect(restore(app), {
    onFailure: (cause) => Effect.flatMap(leave, () => endByFailure(plan, handle, cause, outside, settle, restore)),
    onSuccess: (response) =>
      // whoever has made the place takes it away right after this, which is time enough where nothing is left to be done
      passage === undefined && handle.endUntouched()
        ? Effect.succeed(response)
        : Effect.flatMap(leave, () => endBy(plan, handle, response, Cause.empty, settle, restore))
  })
  return passage === undefined ? answered : Effect.zipRight(passage.enter, answered)
}

/** One attempt to answer a request: its unit, and how it ends that. */
interface Attempt<E, R> {
  readonly handle: UnitHandle
  readonly answer: Effect.Effect<Response, Unstored<E>, R>
}

/** Answers a request again from its start for as long as that may go better. */
const repeatedly = <E, R>(
  attempt: () => Attempt<E, R>,
  asked: true | Schedule.Schedule<unknown, DatabaseError>,
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
  const last = retryTransaction(restore, Effect.uninterruptible(next), reasonFor, transactions, asked, policy)
  // uninterruptible, it handles a failure beside an interruption: what has become of the request is told when its client has left, too
  return Effect.uninterruptible(Effect.catchAll(last, answerIt))
}

/** Opens the unit of an attempt: a part of it may ask for another one. */
const openAgain = (opening: UnitPlan): UnitHandle => {
  const handle = openUnit(opening)
  handle.unit.canRunAgain = true
  return handle
}

/** Runs an app in a unit as often as `retry` asks for. */
const onceOrAgain = <E, R>(
  plan: Plan,
  opening: UnitPlan,
  app: HttpApp.Default<E, R>,
  fiber: Fiber.RuntimeFiber<unknown, unknown>,
  asked: true | Schedule.Schedule<unknown, DatabaseError>,
  restore: Restore
): Effect.Effect<Response, E, R | Request> => {
  const outside = fiber.currentContext
  const request = Context.unsafeGet(outside, HttpServerRequest.HttpServerRequest)
  const handlers = fiber.getFiberRef(HttpApp.currentPreResponseHandlers)
  const attempt = (fresh: () => Request) => (): Attempt<E, R | Request> => {
    const handle = openAgain(opening)
    const handler = Effect.provideService(app, HttpServerRequest.HttpServerRequest, fresh())
    return {
      handle,
      // what the attempt before has left to be done before the response is forgotten
      answer: Effect.zipRight(
        FiberRef.set(HttpApp.currentPreResponseHandlers, handlers),
        once(plan, handle, handler, undefined, outside, Effect.fail, restore)
      )
    }
  }
  return Effect.matchEffect(restore(makeReplayable(request)), {
    onFailure: (error) => HttpServerRespondable.toResponse(error),
    onSuccess: (fresh) => repeatedly(attempt(fresh), asked, Context.get(outside, RetryPolicy), restore)
  })
}

/**
 * Runs each request as one unit of work: one lazy transaction per database touched. A response below 400 commits; 400 and above, a failure,
 * a defect and an interruption roll back. The response is sent after the commit, never before, and a commit that fails turns it into an
 * error. A streaming body runs after the commit, outside of it.
 *
 * It may stand anywhere: around a router's handlers, or around the whole server. Inside of another unit of work it joins: what its options
 * ask for must be so there, or can be made so, as with a part by `UnitOfWork.run`; else the handler does not run, and the response is that of
 * `onCommitFailed` for `OptionsConflict`. With the setting `"none"` it is outside of what is open around.
 *
 * @example
 * import { HttpRouter, HttpServerResponse } from "@effect/platform"
 * import { Effect } from "effect"
 * import { Database, RequestTransaction } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const router = HttpRouter.empty.pipe(
 *   HttpRouter.post(
 *     "/todos",
 *     Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO todo (title) VALUES ('milk')`).pipe(
 *       Effect.as(HttpServerResponse.empty({ status: 201 }))
 *     )
 *   ),
 *   HttpRouter.use(RequestTransaction.middleware({ transaction: RequestTransaction.readOnlyWhenSafe, retry: true }))
 * )
 *
 * @since 0.1.0
 * @category middleware
 */
export const middleware = (options: Options = {}): (<E, R>(app: HttpApp.Default<E, R>) => HttpApp.Default<E, R>) => {
  const plan = makePlan(options)
  const { retry } = options
  return <E, R>(app: HttpApp.Default<E, R>): HttpApp.Default<E, R> => {
    const self: HttpApp.Default<E, R> = Effect.withFiberRuntime((fiber, { runtimeFlags }) => {
      const around = currentContext(fiber)
      const request = Context.unsafeGet(fiber.currentContext, HttpServerRequest.HttpServerRequest)
      const settings = settingsFor(plan, request)
      if (settings === "none") return around === undefined ? app : UnitOfWork.outside(app)
      const unknown = unknownOfSettings({ transaction: settings })
      if (unknown !== undefined) return refuse(plan, unknown)
      const unit = joinableUnitOf(around)
      const conflict = around === undefined ? undefined : demand(plan, request, around, unit, settings)
      if (conflict !== undefined) return refuse(plan, conflict)
      if (around !== undefined && unit !== undefined) {
        const describe = makeLabeler(request, plan.ask, options)
        const name = { label: describe(fiber)?.label, site: undefined }
        return runAsPart(app, around, name, { describe }, (exit) => decide(options, exit))
      }
      const opening = openingFor(plan, request, around, settings)
      // what `uninterruptibleMask` would do, with a step less
      const restore: Restore = RuntimeFlags.interruption(runtimeFlags) ? Effect.interruptible : Effect.uninterruptible
      return Effect.uninterruptible(
        retry === undefined ||
          retry === false ||
          !isKeepable(request.method, (name) => request.headers[name], request.source)
          ? once(plan, openUnit(opening), app, self, fiber.currentContext, answerIt, restore)
          : onceOrAgain(plan, opening, app, fiber, retry, restore)
      )
    })
    return self
  }
}

/**
 * The same for an `HttpApi`, or for some of its groups or endpoints: `.middleware(RequestTransaction.Api)`, and {@link layerApi}. A request
 * ends by the response that its handler's success or failure is encoded to.
 *
 * @example
 * import { HttpApiEndpoint, HttpApiGroup } from "@effect/platform"
 * import { RequestTransaction } from "effect-db"
 *
 * export const todos = HttpApiGroup.make("todos")
 *   .add(HttpApiEndpoint.post("create", "/todos"))
 *   .middleware(RequestTransaction.Api)
 *
 * @since 0.1.0
 * @category middleware
 */
export class Api extends HttpApiMiddleware.Tag<Api>()("effect-db/RequestTransaction/Api", {
  provides: TransactionConnection
}) {}

/**
 * Options of {@link layerApi}. An endpoint that is to have no unit of work goes without the middleware.
 *
 * @since 0.1.0
 * @category models
 */
export interface ApiOptions extends Omit<Options, "transaction"> {
  /** How the transactions of a request are to be. */
  readonly transaction?: ((request: Request) => UnitOfWork.UnitSettings) | UnitOfWork.UnitSettings | undefined
}

/** The refusal of an outcome where a request ends with a unit of work around it, before its response is known here. */
const otherOutcome = (): OptionsConflict =>
  new OptionsConflict({
    database: "",
    server: "",
    option: "outcome",
    outer: "the unit of work around",
    inner: "a request"
  })

/** Opens the unit of a request whose response ends it by `end`, and gives what its handler finds in the transaction slot. */
const openFor = (
  { currentContext }: Fiber.RuntimeFiber<unknown, unknown>,
  handle: UnitHandle,
  end: (response: Response) => Effect.Effect<Response>
): Effect.Effect<TransactionContext["slot"]> => {
  const beforeResponse = HttpApp.appendPreResponseHandler((_, response) =>
    handle.endUntouched() ? Effect.succeed(response) : end(response)
  )
  const scope = Context.unsafeGet(currentContext, Scope.Scope)
  return Effect.as(
    Effect.zipRight(Scope.addFinalizer(scope, undo(handle)), beforeResponse),
    slotOf(currentContext, handle.unit)
  )
}

/**
 * The same, and runs the route of the request again where that may go better: with the middleware of the endpoint, which joins the unit of
 * that attempt. Where the handler has left something to be done before the response, which cannot be taken back, it is answered once.
 */
const openForAgain = (
  plan: Plan,
  attempts: WeakSet<Unit>,
  fiber: Fiber.RuntimeFiber<unknown, unknown>,
  opening: UnitPlan,
  routed: RouteContext,
  fresh: () => Request,
  asked: true | Schedule.Schedule<unknown, DatabaseError>,
  restore: Restore
): Effect.Effect<TransactionContext["slot"]> => {
  const outside = fiber.currentContext
  // what the router has made for this request: the body is read once
  outside.unsafeMap.set(HttpServerRequest.HttpServerRequest.key, fresh())
  const handlers = fiber.getFiberRef(HttpApp.currentPreResponseHandlers)
  let own: typeof handlers | undefined
  // it runs in the context of its own request
  const route = Effect.flatMap(routed.route.handler, HttpServerRespondable.toResponse) as HttpApp.Default<unknown>
  const encoded = Effect.catchAllCause(route, (cause) =>
    Effect.flatMap(responseOf(outside, cause) ?? Effect.succeed(undefined), (response) =>
      response === undefined ? Effect.failCause(cause) : Effect.succeed(response)
    )
  )
  const open = () => {
    const handle = openAgain(opening)
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
        const answered = once(
          plan,
          handle,
          Effect.provideService(encoded, HttpServerRequest.HttpServerRequest, request),
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
              // the errors of the route have no room for its failure, and the platform answers either with 500
              onSome: (handler) => Effect.orDie(handler(request, response))
            })
          )
        )
        return { handle, answer: Effect.zipRight(FiberRef.set(HttpApp.currentPreResponseHandlers, handlers), finished) }
      }
      const answered = repeatedly(attempt, asked, Context.get(outside, RetryPolicy), restore)
      // the context of the request has it
      return Effect.mapInputContext(answered, () => outside as Context.Context<Request>)
    })
  return Effect.zipLeft(
    openFor(fiber, first, (response) => endBeforeResponse(end(response))),
    Effect.sync(() => {
      own = fiber.getFiberRef(HttpApp.currentPreResponseHandlers)
    })
  )
}

/**
 * What {@link Api} does. Inside of another unit of work it joins, as {@link middleware} does, and the request ends with that: an `outcome` of
 * its own is refused there.
 *
 * With `retry` a request whose handler leaves something to be done before the response, as by `HttpApiBuilder.securitySetCookie`, is
 * answered once. Where a handler dies, the server logs that, also if another attempt has answered.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerApi = (options: ApiOptions = {}): Layer.Layer<Api> => {
  const plan = makePlan(options)
  const { retry } = options
  const attempts = new WeakSet<Unit>()
  return Layer.succeed(
    Api,
    Effect.withFiberRuntime((fiber, { runtimeFlags }) => {
      const around = currentContext(fiber)
      const { unsafeMap } = fiber.currentContext
      const request = Context.unsafeGet(fiber.currentContext, HttpServerRequest.HttpServerRequest)
      const { outcome, transaction } = options
      const settings = typeof transaction === "function" ? transaction(request) : transaction
      const unknown = unknownOfSettings({ transaction: settings })
      if (unknown !== undefined) return Effect.flatMap(refuse(plan, unknown), Effect.die)
      const unit = joinableUnitOf(around)
      if (around !== undefined && unit !== undefined) {
        // an attempt of this runs the route again, and this with it
        if (attempts.has(unit)) return Effect.succeed(around.slot)
        const conflict = outcome === undefined ? demand(plan, request, around, unit, settings) : otherOutcome()
        return conflict === undefined ? Effect.succeed(around.slot) : Effect.flatMap(refuse(plan, conflict), Effect.die)
      }
      const conflict = around === undefined ? undefined : demand(plan, request, around, undefined, settings)
      if (conflict !== undefined) return Effect.flatMap(refuse(plan, conflict), Effect.die)
      const opening = openingFor(plan, request, around, settings)
      const routed: RouteContext | undefined = unsafeMap.get(Route.key)
      const isOnce = retry === undefined || retry === false || routed === undefined
      if (isOnce || !isKeepable(request.method, (name) => request.headers[name], request.source)) {
        const handle = openUnit(opening)
        return openFor(fiber, handle, (response) =>
          Effect.uninterruptibleMask((restore) =>
            endBeforeResponse(endBy(plan, handle, response, Cause.empty, answerIt, restore))
          )
        )
      }
      const restore: Restore = RuntimeFlags.interruption(runtimeFlags) ? Effect.interruptible : Effect.uninterruptible
      return Effect.matchEffect(makeReplayable(request), {
        // a response that is died of is sent
        onFailure: (error) => Effect.flatMap(HttpServerRespondable.toResponse(error), Effect.die),
        onSuccess: (fresh) => openForAgain(plan, attempts, fiber, opening, routed, fresh, retry, restore)
      })
    })
  )
}

/**
 * Lets a client read what it has written, in its later requests too, from a replica that has it: each response tells the client how far the
 * databases were when its writes were stored, signed, in a cookie or a header, and a request that brings that back reads at least there.
 *
 * It stands around whatever answers, inside or outside of the unit of work, and beside `Db.reader` nothing else is needed. What a client
 * brings that was not signed here is ignored. It throws `ConfigInvalid` where an option cannot be right. A cookie has room for one place: of
 * requests that one client has written by at the same time, the one whose response comes last counts.
 *
 * @example
 * import { HttpServer } from "@effect/platform"
 * import { Config, Effect, Layer } from "effect"
 * import { RequestTransaction } from "effect-db"
 *
 * declare const router: Parameters<typeof HttpServer.serve>[0]
 *
 * export const HttpLive = Layer.unwrapEffect(
 *   Effect.map(Config.redacted("COOKIE_SECRET"), (secret) =>
 *     HttpServer.serve(router, RequestTransaction.readYourWrites({ secret }))
 *   )
 * )
 *
 * @since 0.1.0
 * @category middleware
 */
export const readYourWrites = (
  options: ReadYourWrites
): (<E, R>(app: HttpApp.Default<E, R>) => HttpApp.Default<E, R>) => {
  const tokens = new SessionTokens(options)
  return <E, R>(app: HttpApp.Default<E, R>): HttpApp.Default<E, R> =>
    Effect.withFiberRuntime((fiber) => {
      // whoever is around gives it back
      if (sessionOf(fiber) !== undefined) return app
      const { headers } = Context.unsafeGet(fiber.currentContext, HttpServerRequest.HttpServerRequest)
      const session = tokens.session((name) => headers[name])
      return Effect.zipRight(
        // also where the app fails, and another response is sent: what it had stored before is stored
        HttpApp.appendPreResponseHandler((_, response) => Effect.sync(() => giveBack(session, response))),
        withSession(app, session)
      )
    })
}
