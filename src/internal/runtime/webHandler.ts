/**
 * A unit of work around whatever answers a web request with a web response: Hono, Next.js, fetch handlers.
 */

import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { withSession } from "../../Consistency.js"
import { type ConfigInvalid, isDatabaseError } from "../../DatabaseError.js"
import * as UnitOfWork from "../../UnitOfWork.js"
import type { KnownNames } from "../config/knownNames.js"
import { unknownOption } from "../config/unknownOption.js"
import { isKeepable } from "../http/keepableBody.js"
import { notStored, type Problem, problemOf, problemType } from "../http/problemDetails.js"
import { type LabelOptions, makeLabeler } from "../http/requestLabel.js"
import {
  headerOf,
  type ReadYourWrites,
  type RequestSession,
  type SessionTokens,
  sessionOf
} from "../http/sessionCookie.js"
import type { Describe } from "../statement/workLabel.js"
import { unknownOfSettings } from "../unitOfWork/optionNames.js"
import { runDescribed } from "../unitOfWork/runUnit.js"
import { runPlain } from "./asyncContext.js"

/** How requests are run. */
export interface HandlerOptions
  extends LabelOptions,
    Pick<UnitOfWork.Options<never, never>, "databases" | "order" | "checkFirst"> {
  /** How a response ends the unit of work. Default: a status below 400 commits, any other rolls back. */
  readonly outcome?: ((response: Response) => UnitOfWork.Outcome) | undefined
  /** How the transactions of a request are to be; `"none"` for a request without a unit of work. */
  readonly transaction?: ((request: Request) => UnitOfWork.UnitSettings | "none") | UnitOfWork.UnitSettings | undefined
  /**
   * Lets a client read what it has written, in its later requests too, from a replica that has it. Of handlers within handlers it is the
   * outermost that is given this; where the handler throws, its client is given nothing back.
   */
  readonly readYourWrites?: ReadYourWrites | undefined
  /** What statements call it. Default: the path. */
  readonly route?: string | undefined
  /**
   * Calls the handler again, with the same request, where it has thrown, or could not be committed, and may fare better; but not where the
   * body is longer than 1 MiB, does not say how long it is, or was read already. Default `false`.
   */
  readonly retry?: UnitOfWork.Options<never, never>["retry"]
}

const known: KnownNames<HandlerOptions> = {
  outcome: true,
  transaction: true,
  readYourWrites: true,
  route: true,
  retry: true,
  databases: true,
  order: true,
  checkFirst: true,
  applicationName: true,
  sqlComment: true
}

/** Returns the refusal of options with a name that is not known; of settings by request that is found with the request. */
export const unknownOfHandler = (options: HandlerOptions): ConfigInvalid | undefined => {
  const { databases, transaction } = options
  const all = typeof transaction === "function" ? undefined : transaction
  return unknownOption("", options, known) ?? unknownOfSettings({ databases, transaction: all })
}

const byStatus = ({ status }: Response): UnitOfWork.Outcome => (status < 400 ? "commit" : "rollback")

/** A web request as its statements tell of it. */
const describe = (request: Request, options: HandlerOptions): Describe =>
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

/** What a client is told whose request could not be stored. */
export const refusalResponse = (problem: Problem): Response =>
  Response.json(problem, { status: problem.status, headers: { "content-type": problemType } })

/** One request in one unit of work. What the handler throws is the failure; what could not be stored is an answer. */
const answerInUnit = (
  request: Request,
  handle: (request: Request) => PromiseLike<Response> | Response,
  options: HandlerOptions
): Effect.Effect<Response, unknown> =>
  Effect.suspend(() => {
    const { outcome = byStatus, transaction } = options
    const settings = typeof transaction === "function" ? transaction(request) : transaction
    // a body can be read once, and is kept until then
    const isKept = !request.bodyUsed && isKeepable(request.method, (name) => request.headers.get(name), request)
    const retry = isKept ? options.retry : undefined
    const fresh = () => (retry === undefined || retry === false ? request : request.clone())
    if (settings === "none") return UnitOfWork.outside(runPlain(() => handle(request)))
    let answered: Response | undefined
    // nobody is going to read it; one that is read already is somebody else's
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
        ? Effect.as(Effect.logError(error.message), refusalResponse(problemOf(error)))
        : Effect.as(Effect.logError(cause), refusalResponse(notStored))
    })
  })

/** The same response, with what the client is to be given back. */
const givingBack = (response: Response, session: RequestSession): Response => {
  const header = headerOf(session.takeReturned())
  // one that is no answer has no headers, and of one that is read already there can be no other
  if (header === undefined || response.status < 200 || response.bodyUsed || response.body?.locked === true)
    return response
  // it may be the program's for more than one request
  const copy = new Response(response.body, response)
  copy.headers.append(...header)
  return copy
}

/** The same in the session of its client, who gets nothing back where the handler throws. */
export const answerInSession = (
  request: Request,
  handle: (request: Request) => PromiseLike<Response> | Response,
  options: HandlerOptions,
  tokens: SessionTokens | undefined
): Effect.Effect<Response, unknown> => {
  const answer = answerInUnit(request, handle, options)
  if (tokens === undefined) return answer
  return Effect.withFiberRuntime((fiber) => {
    // whoever is around gives it back
    if (sessionOf(fiber) !== undefined) return answer
    const session = tokens.session((name) => request.headers.get(name))
    return Effect.map(withSession(answer, session), (response) => givingBack(response, session))
  })
}
