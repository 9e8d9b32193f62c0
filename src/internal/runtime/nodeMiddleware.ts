/**
 * A unit of work around whatever handles a request of Node's HTTP server: Express, Connect, Fastify's raw request.
 */
import { setMaxListeners } from "node:events"
import type { IncomingMessage, ServerResponse } from "node:http"
import type { Writable } from "node:stream"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { withSession } from "../../Consistency.js"
import { type ConfigInvalid, isDatabaseError } from "../../DatabaseError.js"
import * as UnitOfWork from "../../UnitOfWork.js"
import type { KnownNames } from "../config/knownNames.js"
import { unknownOption } from "../config/unknownOption.js"
import { notStored, type Problem, problemOf, problemType } from "../http/problemDetails.js"
import { type LabelOptions, makeLabeler, pathOf } from "../http/requestLabel.js"
import { headerOf, type ReadYourWrites, type SessionTokens, sessionOf } from "../http/sessionCookie.js"
import { currentContext } from "../transaction/context.js"
import { unknownOfSettings } from "../unitOfWork/optionNames.js"
import { runDescribed } from "../unitOfWork/runUnit.js"
import { runPlain } from "./asyncContext.js"
import { addHeader, HeldResponse } from "./heldResponse.js"

/** How requests are run. */
export interface NodeOptions
  extends LabelOptions,
    Pick<UnitOfWork.Options<never, never>, "databases" | "order" | "checkFirst"> {
  /** How a status ends the unit of work. Default: below 400 commits, any other rolls back. */
  readonly outcome?: ((status: number) => UnitOfWork.Outcome) | undefined
  /** How the transactions of a request are to be; `"none"` for a request without a unit of work. */
  readonly transaction?:
    | ((request: IncomingMessage) => UnitOfWork.UnitSettings | "none")
    | UnitOfWork.UnitSettings
    | undefined
  /** Lets a client read what it has written, in its later requests too, from a replica that has it. */
  readonly readYourWrites?: ReadYourWrites | undefined
}

const known: KnownNames<NodeOptions> = {
  outcome: true,
  transaction: true,
  readYourWrites: true,
  databases: true,
  order: true,
  checkFirst: true,
  applicationName: true,
  sqlComment: true
}

/** Returns the refusal of options with a name that is not known; of settings by request that is found with the request. */
export const unknownOfNode = (options: NodeOptions): ConfigInvalid | undefined => {
  const { databases, transaction } = options
  const all = typeof transaction === "function" ? undefined : transaction
  return unknownOption("", options, known) ?? unknownOfSettings({ databases, transaction: all })
}

/** The client has gone before it was answered. */
const gone = Symbol("the client has gone")

const byStatus = (status: number): UnitOfWork.Outcome => (status < 400 ? "commit" : "rollback")

/** What a router has found out by now: Express puts it there. */
interface Routed {
  readonly baseUrl?: unknown
  readonly originalUrl?: unknown
  readonly route?: { readonly path?: unknown } | undefined
}

/** The pattern of its route, if that is known. */
const patternOf = ({ baseUrl, route }: Routed): string | undefined =>
  typeof route?.path === "string" ? `${typeof baseUrl === "string" ? baseUrl : ""}${route.path}` : undefined

const pathIn = ({ originalUrl, url = "" }: IncomingMessage & Routed): string =>
  pathOf(typeof originalUrl === "string" ? originalUrl : url)

const headerIn = ({ headers }: IncomingMessage, name: string): string | undefined => {
  const value = headers[name]
  return typeof value === "string" ? value : value?.join()
}

const asked = (request: IncomingMessage & Routed) => {
  const id = request.headers["x-request-id"]
  return {
    method: request.method ?? "",
    pattern: () => patternOf(request),
    path: () => pathIn(request),
    requestId: () => (typeof id === "string" ? id : undefined)
  }
}

/** HTTP/2 tells it of the stream only. */
const isClosed = ({ destroyed, stream }: ServerResponse & { readonly stream?: Pick<Writable, "destroyed"> }): boolean =>
  destroyed || stream?.destroyed === true

/** What frameworks take for an error: to some of them anything else is none. */
export const asError = (error: unknown): Error =>
  error instanceof Error ? error : new Error(String(error), { cause: error })

/**
 * One request in one unit of work, from `next` to the moment when its response is ready; that is sent, or another in its place, when the
 * unit has ended. It fails only where the handler was not asked to answer.
 */
export const inUnit = (
  request: IncomingMessage,
  response: ServerResponse,
  next: (error?: Error) => void,
  options: NodeOptions,
  tokens: SessionTokens | undefined
): Effect.Effect<void, unknown> => {
  const { outcome = byStatus, transaction } = options
  return Effect.withFiberRuntime((fiber) => {
    const settings = typeof transaction === "function" ? transaction(request) : transaction
    // whoever is around gives it back
    const session = sessionOf(fiber) === undefined ? tokens?.session((name) => headerIn(request, name)) : undefined
    if (settings === "none" && session === undefined)
      return currentContext(fiber) === undefined
        ? Effect.sync(() => next())
        : UnitOfWork.outside(runPlain(async () => next()))
    // also what a unit around this one stores after its end
    if (session !== undefined) session.onNews = () => addHeader(response, headerOf(session.takeReturned()))
    let held: HeldResponse | undefined
    let answered = false
    const handled = runPlain(
      () =>
        new Promise<number>((resolve) => {
          held = new HeldResponse(response, (status) => {
            answered = true
            resolve(status)
          })
          next()
        })
    )
    const closed = Effect.async<never, typeof gone>((resume) => {
      const tell = () => resume(Effect.fail(gone))
      // one that waits on its connection for those before it has no part in the end of that
      const connection = response.socket === null ? request.socket : undefined
      if (isClosed(response) || connection?.destroyed === true) return tell()
      if (connection !== undefined) setMaxListeners(0, connection)
      const all = connection === undefined ? [response] : [response, connection]
      for (const one of all) one.once("close", tell)
      return Effect.sync(() => {
        for (const one of all) one.off("close", tell)
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
            makeLabeler(request, asked, options)
          )
    return (session === undefined ? unit : withSession(unit, session)).pipe(
      Effect.matchCauseEffect({
        onSuccess: () => Effect.sync(() => held?.release()),
        onFailure: (cause) => {
          const error = Cause.squash(cause)
          if (error === gone) return Effect.sync(() => held?.discard())
          const response = held
          if (response === undefined) return Effect.fail(error)
          const instead = (problem: Problem) =>
            Effect.sync(() =>
              response.replace({ status: problem.status, type: problemType, body: JSON.stringify(problem) })
            )
          if (isDatabaseError(error)) return Effect.zipRight(Effect.logError(error.message), instead(problemOf(error)))
          // what was answered has been undone
          if (answered) return Effect.zipRight(Effect.logError(cause), instead(notStored))
          return Effect.sync(() => {
            response.release()
            next(asError(error))
          })
        }
      })
    )
  })
}
