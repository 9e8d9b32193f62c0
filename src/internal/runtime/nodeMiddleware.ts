/**
 * A unit of work around the handler of a request of Node's HTTP server: Express, Connect, or the raw
 * request of Fastify.
 */
import { setMaxListeners } from "node:events"
import type { IncomingMessage, ServerResponse } from "node:http"
import type { Writable } from "node:stream"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { withSession } from "../../Consistency.js"
import { type DatabaseError, isDatabaseError, type Problem, toProblem } from "../../DatabaseError.js"
import * as UnitOfWork from "../../UnitOfWork.js"
import { anObject, type OptionRules } from "../config/callOptionRules.js"
import type { KeyProblem } from "../http/idempotencyKey.js"
import type { Earlier, KeyedRequest } from "../http/keyedRequest.js"
import { notStored, problemType } from "../http/problemJson.js"
import { makeLabeler, pathOf } from "../http/requestLabel.js"
import { outcomeByStatus, type RequestOptions, requestOptions, settingsFor } from "../http/requestOptions.js"
import { headerOf, type SessionTokenOptions, type SessionTokens, sessionOf } from "../http/sessionTokens.js"
import { currentContext } from "../transaction/context.js"
import { runDescribed } from "../unitOfWork/runUnit.js"
import { addHeader } from "./answerHead.js"
import { runPlain } from "./asyncContext.js"
import { type Answer, HeldResponse } from "./heldResponse.js"
import { keyedRequestOf, type PlainKeyOptions, Refused, storeKey } from "./promiseIdempotency.js"

/** Options of requests. The outcome is decided by the status of the response. */
export interface NodeRequestOptions extends RequestOptions<IncomingMessage, number> {
  readonly readYourWrites?: SessionTokenOptions | undefined
  readonly idempotencyKey?: PlainKeyOptions<IncomingMessage> | undefined
}

/** The rules for the options. */
export const nodeOptions: OptionRules<NodeRequestOptions> = {
  ...requestOptions,
  readYourWrites: anObject,
  idempotencyKey: anObject
}

/** Failure of a request if its client disconnects before the response. */
const disconnected = Symbol("the client has disconnected")

/** Request with the fields that Express adds when a route matches. */
interface Routed {
  readonly baseUrl?: unknown
  readonly originalUrl?: unknown
  readonly route?: { readonly path?: unknown } | undefined
}

/** Returns the pattern of a route, if it is known. */
const patternOf = ({ baseUrl, route }: Routed): string | undefined =>
  typeof route?.path === "string" ? `${typeof baseUrl === "string" ? baseUrl : ""}${route.path}` : undefined

const pathIn = ({ originalUrl, url = "" }: IncomingMessage & Routed): string =>
  pathOf(typeof originalUrl === "string" ? originalUrl : url)

const headerIn = ({ headers }: IncomingMessage, name: string): string | undefined => {
  const value = headers[name]
  return typeof value === "string" ? value : value?.join()
}

const describe = (request: IncomingMessage & Routed) => {
  const id = request.headers["x-request-id"]
  return {
    method: request.method ?? "",
    pattern: () => patternOf(request),
    path: () => pathIn(request),
    requestId: () => (typeof id === "string" ? id : undefined)
  }
}

/** Checks if a response is closed. For HTTP/2 only its stream shows that. */
const isClosed = ({ destroyed, stream }: ServerResponse & { readonly stream?: Pick<Writable, "destroyed"> }): boolean =>
  destroyed || stream?.destroyed === true

/** Returns a thrown value as an `Error`, the only type that all frameworks accept. */
export const asError = (error: unknown): Error =>
  error instanceof Error ? error : new Error(String(error), { cause: error })

/** Returns the content of a request, if a body parser has read it. */
const parsedBody = ({ body }: IncomingMessage & { readonly body?: unknown }): string | Uint8Array | undefined =>
  typeof body === "string" || body instanceof Uint8Array ? body : JSON.stringify(body)

/** Returns the key of a request, or fails with the answer if the request must not run. */
const admit = (options: PlainKeyOptions<IncomingMessage>, request: IncomingMessage & Routed) => {
  const { method = "", originalUrl, url = "" } = request
  const facts = { method, path: pathIn(request), header: (name: string) => headerIn(request, name) }
  const whole = typeof originalUrl === "string" ? originalUrl : url
  const content = Effect.sync(() => parsedBody(request))
  // the cast: the runtime has opened the database, which is one of its own
  return keyedRequestOf(options, request, facts, whole, content) as Effect.Effect<
    KeyedRequest | undefined,
    DatabaseError | Refused
  >
}

const problemAnswer = (problem: Problem | KeyProblem): Answer => ({
  status: problem.status,
  type: problemType,
  body: JSON.stringify(problem),
  headers: []
})

/** Returns the answer of an earlier request in place of a held one. */
const replacementOf = (earlier: Earlier): Answer => {
  if ("problem" in earlier) return problemAnswer(earlier.problem)
  const { body, headers, status } = earlier.kept
  return {
    status,
    type: headers.find(([name]) => name === "content-type")?.[1],
    body,
    headers: headers.filter(([name]) => name !== "content-type")
  }
}

/** Sends the answer of an earlier request; the handler does not run. */
const sendEarlier = (response: ServerResponse, earlier: Earlier): void => {
  if ("problem" in earlier) {
    response.writeHead(earlier.problem.status, { "content-type": problemType })
    response.end(JSON.stringify(earlier.problem))
    return
  }
  const { body, headers, status } = earlier.kept
  response.writeHead(status, Object.fromEntries(headers))
  response.end(body)
}

/**
 * Runs one request in one unit of work, from the call of `next` until the response is ready. When
 * the unit has ended, the response is sent, or replaced by problem details. With the settings
 * `"none"` there is no unit. The effect fails only if the handler was not called.
 */
export const inUnit = (
  request: IncomingMessage,
  response: ServerResponse,
  next: (error?: Error) => void,
  options: NodeRequestOptions,
  tokens: SessionTokens | undefined
): Effect.Effect<void, unknown> => {
  const { outcome = outcomeByStatus } = options
  return Effect.withFiberRuntime((fiber) => {
    const settings = settingsFor(options, request)
    // a middleware around this one has made the session, and sends its tokens
    const session = sessionOf(fiber) === undefined ? tokens?.session((name) => headerIn(request, name)) : undefined
    if (settings === "none" && session === undefined)
      return currentContext(fiber) === undefined
        ? Effect.sync(() => next())
        : UnitOfWork.outside(runPlain(async () => next()))
    // tokens are added when they arrive, because a unit around this one may commit later
    if (session !== undefined) session.onNewTokens = () => addHeader(response, headerOf(session.takeReply()))
    let held: HeldResponse | undefined
    let answered = false
    let keyed: KeyedRequest | undefined
    let isUndone = false
    const called = runPlain(
      () =>
        new Promise<number>((resolve) => {
          held = new HeldResponse(response, (status) => {
            answered = true
            resolve(status)
          })
          next()
        })
    )
    const handled = Effect.tap(called, (status) => {
      if (keyed === undefined) return Effect.void
      isUndone = outcome(status) === "rollback"
      if (isUndone) return Effect.void
      const { maxBytes } = keyed
      return storeKey(
        keyed,
        Effect.sync(() => (maxBytes === undefined ? undefined : held?.whole))
      )
    })
    const closed = Effect.async<never, typeof disconnected>((resume) => {
      const onClose = () => resume(Effect.fail(disconnected))
      // a response that waits for earlier responses of its connection gets no "close" event, so the
      // connection is observed
      const connection = response.socket === null ? request.socket : undefined
      if (isClosed(response) || connection?.destroyed === true) return onClose()
      if (connection !== undefined) setMaxListeners(0, connection)
      const all = connection === undefined ? [response] : [response, connection]
      for (const one of all) one.once("close", onClose)
      return Effect.sync(() => {
        for (const one of all) one.off("close", onClose)
      })
    })
    const unit =
      settings === "none"
        ? UnitOfWork.outside(handled)
        : runDescribed(
            Effect.raceFirst(handled, closed),
            {
              ...options,
              transaction: settings,
              outcome: (exit) => (Exit.isSuccess(exit) ? outcome(exit.value) : "rollback")
            },
            makeLabeler(request, describe, options)
          )
    // the answer of another request with the key, if it has one, in place of the own one
    const answerUndone = (undone: boolean, failure: unknown, own: Effect.Effect<void>): Effect.Effect<void> =>
      keyed === undefined || !undone
        ? own
        : Effect.flatMap(keyed.instead(failure), (earlier) =>
            earlier === undefined ? own : Effect.sync(() => held?.replace(replacementOf(earlier)))
          )
    const { idempotencyKey } = options
    const keptUnit =
      idempotencyKey === undefined || settings === "none"
        ? unit
        : Effect.flatMap(admit(idempotencyKey, request), (admitted) => {
            keyed = admitted
            return unit
          })
    return (session === undefined ? keptUnit : withSession(keptUnit, session)).pipe(
      Effect.matchCauseEffect({
        onSuccess: () =>
          answerUndone(
            isUndone,
            undefined,
            Effect.sync(() => held?.release())
          ),
        onFailure: (cause) => {
          const error = Cause.squash(cause)
          if (error === disconnected) return Effect.sync(() => held?.discard())
          if (error instanceof Refused) return Effect.sync(() => sendEarlier(response, error.earlier))
          const waiting = held
          if (waiting === undefined) return Effect.fail(error)
          const instead = (problem: Problem) => Effect.sync(() => waiting.replace(problemAnswer(problem)))
          if (isDatabaseError(error))
            return answerUndone(true, error, Effect.zipRight(Effect.logError(error.message), instead(toProblem(error))))
          // the kept answer would report work that was undone
          if (answered) return Effect.zipRight(Effect.logError(cause), instead(notStored))
          return Effect.sync(() => {
            waiting.release()
            next(asError(error))
          })
        }
      })
    )
  })
}
