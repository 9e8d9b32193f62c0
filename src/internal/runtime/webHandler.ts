/**
 * A unit of work around a handler of web requests, as in Hono, Next.js and fetch handlers.
 */

import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { withSession } from "../../Consistency.js"
import { isDatabaseError, type Problem, toProblem } from "../../DatabaseError.js"
import * as UnitOfWork from "../../UnitOfWork.js"
import { anObject, aRetry, aText, type OptionRules } from "../config/optionRules.js"
import { isKeepable } from "../http/isKeepable.js"
import { notStored, problemType } from "../http/problemJson.js"
import { makeLabeler } from "../http/requestLabel.js"
import { outcomeByStatus, type RequestOptions, requestOptions, settingsFor } from "../http/requestOptions.js"
import {
  headerOf,
  type RequestSession,
  type SessionTokenOptions,
  type SessionTokens,
  sessionOf
} from "../http/sessionCookie.js"
import type { Describe } from "../statement/workLabel.js"
import { runDescribed } from "../unitOfWork/runUnit.js"
import { runPlain } from "./asyncContext.js"

/** Options of web requests. */
export interface WebRequestOptions extends RequestOptions<Request, Response> {
  readonly readYourWrites?: SessionTokenOptions | undefined
  readonly route?: string | undefined
  readonly retry?: UnitOfWork.Options<never, never>["retry"]
}

/** The rules for the options. */
export const webOptions: OptionRules<WebRequestOptions> = {
  ...requestOptions,
  readYourWrites: anObject,
  route: aText,
  retry: aRetry
}

const byStatus = ({ status }: Response): UnitOfWork.Outcome => outcomeByStatus(status)

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
export const refusalResponse = (problem: Problem): Response =>
  Response.json(problem, { status: problem.status, headers: { "content-type": problemType } })

/**
 * Runs one request in one unit of work; with the settings `"none"` there is no unit. If the handler
 * has answered and its work could not be stored, returns problem details instead of the answer. Any
 * other failure, such as an exception of the handler, is the failure of the effect.
 */
const answerInUnit = (
  request: Request,
  handle: (request: Request) => PromiseLike<Response> | Response,
  options: WebRequestOptions
): Effect.Effect<Response, unknown> =>
  Effect.suspend(() => {
    const { outcome = byStatus } = options
    const settings = settingsFor(options, request)
    // a body can be read only once, so each attempt reads a copy of the request, if it can be kept
    const isKept = !request.bodyUsed && isKeepable(request.method, (name) => request.headers.get(name), request)
    const retry = isKept ? options.retry : undefined
    const fresh = () => (retry === undefined || retry === false ? request : request.clone())
    if (settings === "none") return UnitOfWork.outside(runPlain(() => handle(request)))
    let answered: Response | undefined
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
    return Effect.catchAllCause(unit, (cause) => {
      const error = Cause.squash(cause)
      if (answered === undefined || Cause.isInterruptedOnly(cause)) return Effect.failCause(cause)
      drop()
      return isDatabaseError(error)
        ? Effect.as(Effect.logError(error.message), refusalResponse(toProblem(error)))
        : Effect.as(Effect.logError(cause), refusalResponse(notStored))
    })
  })

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
  const answer = answerInUnit(request, handle, options)
  if (tokens === undefined) return answer
  return Effect.withFiberRuntime((fiber) => {
    // a handler around this one has made the session, and sends its tokens
    if (sessionOf(fiber) !== undefined) return answer
    const session = tokens.session((name) => request.headers.get(name))
    return Effect.map(withSession(answer, session), (response) => withTokens(response, session))
  })
}
