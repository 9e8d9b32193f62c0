/**
 * A unit of work around a handler of web requests, as in Hono, Next.js and fetch handlers.
 */

import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { withSession } from "../../Consistency.js"
import { type DatabaseError, isDatabaseError, type Problem, toProblem } from "../../DatabaseError.js"
import * as UnitOfWork from "../../UnitOfWork.js"
import { anObject, aRetry, aText, type OptionRules } from "../config/callOptionRules.js"
import type { KeyProblem } from "../http/idempotencyKey.js"
import { isReplayableRequest } from "../http/isReplayableRequest.js"
import type { KeptAnswer } from "../http/keptAnswer.js"
import type { Earlier, KeyedRequest } from "../http/keyedRequest.js"
import { notStored, problemType } from "../http/problemJson.js"
import { makeLabeler } from "../http/requestLabel.js"
import { outcomeOfResponse, type RequestOptions, requestOptions, settingsFor } from "../http/requestOptions.js"
import {
  headerOf,
  type RequestSession,
  type SessionTokenOptions,
  type SessionTokens,
  sessionOf
} from "../http/sessionTokens.js"
import type { Describe } from "../statement/workLabel.js"
import { runDescribed } from "../unitOfWork/runUnit.js"
import { runPlain } from "./asyncContext.js"
import { keyedRequestOf, type PlainKeyOptions, Refused, storeKey } from "./promiseIdempotency.js"
import { readWhole } from "./readWhole.js"

/** Options of web requests. */
export interface WebRequestOptions extends RequestOptions<Request, Response> {
  readonly readYourWrites?: SessionTokenOptions | undefined
  readonly route?: string | undefined
  readonly retry?: UnitOfWork.Options<never, never>["retry"]
  readonly idempotencyKey?: PlainKeyOptions<Request> | undefined
}

/** The rules for the options. */
export const webOptions: OptionRules<WebRequestOptions> = {
  ...requestOptions,
  readYourWrites: anObject,
  route: aText,
  retry: aRetry,
  idempotencyKey: anObject
}

/** Makes the function that labels a web request. */
const describe = (request: Request, options: WebRequestOptions): Describe =>
  makeLabeler(
    request,
    ({ headers, method, url }) => ({
      method,
      pattern: () => options.route,
      path: () => new URL(url).pathname,
      requestId: () => headers.get("x-request-id") ?? undefined
    }),
    options
  )

/** Makes the response with the problem details of a request whose work could not be stored. */
export const refusalResponse = (problem: Problem | KeyProblem): Response =>
  Response.json(problem, { status: problem.status, headers: { "content-type": problemType } })

/** Makes the response of an earlier request with the same key. */
const earlierResponse = (earlier: Earlier): Response => {
  if ("problem" in earlier) return refusalResponse(earlier.problem)
  const { body, headers, status } = earlier.kept
  return new Response(body.byteLength === 0 ? null : new Uint8Array(body), {
    status,
    headers: headers.map(([name, value]): [string, string] => [name, value])
  })
}

/**
 * Reads a response as an answer to keep, unless its body was read, has another reader, or is not
 * known as a whole.
 */
const answerOf = (response: Response, maxBytes: number | undefined): Effect.Effect<KeptAnswer | undefined> =>
  maxBytes === undefined || response.bodyUsed || response.body?.locked === true
    ? Effect.succeed(undefined)
    : Effect.map(
        Effect.promise(() => readWhole(response.clone().body, maxBytes)),
        (body) => body && { status: response.status, headers: [...response.headers], body }
      )

/**
 * Runs one request in one unit of work; with the settings `"none"` there is no unit. If the handler
 * has answered and its work could not be stored, returns problem details instead of the answer. Any
 * other failure, such as an exception of the handler, is the failure of the effect.
 */
const answerInUnit = (
  request: Request,
  handle: (request: Request) => PromiseLike<Response> | Response,
  options: WebRequestOptions,
  keyed: KeyedRequest | undefined
): Effect.Effect<Response, unknown> =>
  Effect.suspend(() => {
    const { outcome = outcomeOfResponse } = options
    const settings = settingsFor(options, request)
    // a body can be read only once, so each attempt reads a copy of the request, if it can be kept
    const isKept =
      !request.bodyUsed && isReplayableRequest(request.method, (name) => request.headers.get(name), request)
    const retry = isKept ? options.retry : undefined
    const fresh = () => (retry === undefined || retry === false ? request : request.clone())
    if (settings === "none") return UnitOfWork.outside(runPlain(() => handle(request)))
    let answered: Response | undefined
    let isUndone = false
    // the body of a response that is not sent is closed; a locked body cannot be closed
    const drop = () => {
      void answered?.body?.cancel().catch(() => {})
      answered = undefined
    }
    const handled = Effect.suspend(() => {
      drop()
      return Effect.tap(
        runPlain(() => handle(fresh())),
        (response) => {
          answered = response
          if (keyed === undefined) return Effect.void
          isUndone = outcome(response) === "rollback"
          return isUndone ? Effect.void : storeKey(keyed, answerOf(response, keyed.maxBytes))
        }
      )
    })
    const unit = runDescribed(
      handled,
      {
        ...options,
        retry,
        transaction: settings,
        outcome: (exit) => (Exit.isSuccess(exit) ? outcome(exit.value) : "rollback")
      },
      describe(request, options)
    )
    // the answer of another request with the key, if it has one, in place of the own one
    const answerUndone = (failure: unknown, own: Effect.Effect<Response, unknown>) =>
      keyed === undefined
        ? own
        : Effect.flatMap(keyed.instead(failure), (earlier) => {
            if (earlier === undefined) return own
            drop()
            return Effect.succeed(earlierResponse(earlier))
          })
    return Effect.matchCauseEffect(unit, {
      onFailure: (cause) => {
        const error = Cause.squash(cause)
        if (Cause.isInterruptedOnly(cause)) return Effect.failCause(cause)
        if (answered === undefined) return answerUndone(error, Effect.failCause(cause))
        drop()
        return answerUndone(
          error,
          isDatabaseError(error)
            ? Effect.as(Effect.logError(error.message), refusalResponse(toProblem(error)))
            : Effect.as(Effect.logError(cause), refusalResponse(notStored))
        )
      },
      onSuccess: (response) => {
        const own = Effect.succeed(response)
        return isUndone ? answerUndone(undefined, own) : own
      }
    })
  })

/** Runs one request in one unit of work, unless its key does not let it run. */
const answerWithKey = (
  request: Request,
  handle: (request: Request) => PromiseLike<Response> | Response,
  options: WebRequestOptions
): Effect.Effect<Response, unknown> => {
  const { idempotencyKey } = options
  if (idempotencyKey === undefined || settingsFor(options, request) === "none")
    return answerInUnit(request, handle, options, undefined)
  const { headers, method, url } = request
  const { pathname, search } = new URL(url)
  const isKept = !request.bodyUsed && isReplayableRequest(method, (name) => headers.get(name), request)
  const content = Effect.promise(async () => (isKept ? new Uint8Array(await request.clone().arrayBuffer()) : undefined))
  const facts = { method, path: pathname, header: (name: string) => headers.get(name) }
  // the cast: the runtime has opened the database, which is one of its own
  const admitted = keyedRequestOf(idempotencyKey, request, facts, search, content) as Effect.Effect<
    KeyedRequest | undefined,
    DatabaseError | Refused
  >
  return Effect.matchEffect(admitted, {
    onFailure: (error) =>
      error instanceof Refused
        ? Effect.succeed(earlierResponse(error.earlier))
        : Effect.as(Effect.logError(error.message), refusalResponse(toProblem(error))),
    onSuccess: (keyed) => answerInUnit(request, handle, options, keyed)
  })
}

/** Adds the new tokens of a session to a response. */
const withTokens = (response: Response, session: RequestSession): Response => {
  const header = headerOf(session.takeReply())
  // an informational response takes no headers, and a response whose body is being read cannot be
  // copied
  if (header === undefined || response.status < 200 || response.bodyUsed || response.body?.locked === true)
    return response
  // a copy, because the program may return the same response for several requests
  const copy = new Response(response.body, response)
  copy.headers.append(...header)
  return copy
}

/**
 * Runs a request in a unit of work and, if there are `tokens`, in the session of its client. Adds
 * the tokens to the response; if the handler throws, there is none.
 */
export const answerInSession = (
  request: Request,
  handle: (request: Request) => PromiseLike<Response> | Response,
  options: WebRequestOptions,
  tokens: SessionTokens | undefined
): Effect.Effect<Response, unknown> => {
  const answer = answerWithKey(request, handle, options)
  if (tokens === undefined) return answer
  return Effect.withFiberRuntime((fiber) => {
    // a handler around this one has made the session, and sends its tokens
    if (sessionOf(fiber) !== undefined) return answer
    const session = tokens.session((name) => request.headers.get(name))
    return Effect.map(withSession(answer, session), (response) => withTokens(response, session))
  })
}
