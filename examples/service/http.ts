import { randomUUID } from "node:crypto"
import {
  FileSystem,
  HttpApiBuilder,
  HttpApiError,
  HttpApiSwagger,
  type HttpApp,
  HttpIncomingMessage,
  HttpServerError,
  HttpServerRequest,
  HttpServerResponse
} from "@effect/platform"
import { Array as Arr, Cause, Effect, Layer, Option } from "effect"
import { RequestTransaction } from "effect-db"
import { Api } from "./api.js"
import * as Audit from "./audit.js"
import { answer, brokenResponse, fromDatabase, respond, Unavailable } from "./failures.js"
import * as Records from "./records.js"
import { signed } from "./served.js"
import * as Todos from "./todos.js"

type Ask = { readonly headers: { readonly "x-request-id"?: string | undefined } }

const change =
  ({ headers }: Ask) =>
  <A, E, R>(self: Effect.Effect<A, E, R>) =>
    answer(signed(self)).pipe(Effect.provideService(Audit.RequestId, headers["x-request-id"] ?? randomUUID()))

const todos = HttpApiBuilder.group(Api, "todos", (handlers) =>
  handlers
    .handle("list", ({ urlParams }) => answer(Todos.fresh(signed(Todos.list(urlParams.done)))))
    .handle("get", ({ path }) => answer(Todos.fresh(signed(Todos.get(path.id)))))
    .handle("create", (ask) => Todos.create(ask.payload).pipe(change(ask)))
    .handle("update", (ask) => Todos.update(ask.path.id, ask.payload).pipe(change(ask)))
    .handle("remove", (ask) => Todos.remove(ask.path.id).pipe(change(ask)))
)

const records = HttpApiBuilder.group(Api, "records", (handlers) =>
  handlers.handle("page", ({ urlParams }) => answer(signed(Records.page(urlParams))))
)

const audit = HttpApiBuilder.group(Api, "audit", (handlers) =>
  handlers.handle("events", ({ urlParams }) => answer(Audit.latest(urlParams.subject)))
)

const problem = (status: number, _tag: string, message: string, more: object = {}) =>
  HttpServerResponse.unsafeJson({ _tag, message, ...more }, { status })

/** Names each wrong part once: of what a schema tried, the first is what was meant. */
const badInput = (error: HttpApiError.HttpApiDecodeError) => {
  const issues = Arr.dedupeWith(error.issues, (a, b) => a.path.join() === b.path.join())
  const message = issues.map(({ message, path }) => `${path.join(".") || "the request"}: ${message}`).join("; ")
  return problem(400, error._tag, message, { issues })
}

/** A word for those whom no handler answers: wrong input, a path that is not there, a fault. */
const lastWord = (cause: Cause.Cause<never>): Effect.Effect<HttpServerResponse.HttpServerResponse> => {
  const error: unknown = Cause.squash(cause)
  if (error instanceof HttpApiError.HttpApiDecodeError) return Effect.succeed(badInput(error))
  if (HttpServerError.isServerError(error)) {
    if (error._tag === "RouteNotFound") {
      return Effect.succeed(problem(404, error._tag, "there is nothing here; /docs shows what there is"))
    }
    return Effect.succeed(problem(400, error._tag, "the body cannot be read: it must be JSON"))
  }
  return Cause.isDie(cause) ? Effect.as(Effect.logError(Cause.pretty(cause)), brokenResponse) : Effect.failCause(cause)
}

const mostBytes = 1_000_000

/** Refuses what is too long before it is read; what does not say how long it is ends when it is too long. */
const notTooLong = (app: HttpApp.Default) =>
  Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ headers }) =>
    Number(headers["content-length"] ?? 0) > mostBytes
      ? Effect.succeed(problem(413, "TooLong", `the body is longer than ${mostBytes} bytes`))
      : Effect.provideService(app, HttpIncomingMessage.MaxBodySize, Option.some(FileSystem.Size(mostBytes)))
  )

/**
 * A unit of work per request: all databases or none. Handlers have a time limit of their own, after which nothing is stored; this one is
 * for a COMMIT that is not answered.
 */
const requests = (app: HttpApp.Default) =>
  notTooLong(app).pipe(
    RequestTransaction.middleware({ onCommitFailed: (error) => respond(fromDatabase(error)) }),
    Effect.interruptible,
    Effect.timeoutTo({
      duration: "8 seconds",
      onSuccess: (response) => response,
      onTimeout: () => respond(Unavailable.because("Timeout", "unknown"))
    }),
    Effect.catchAllCause(lastWord)
  )

const api = HttpApiBuilder.api(Api).pipe(Layer.provide([todos, records, audit]))

/** The service's handlers, on whatever server there is. */
export const layer = HttpApiBuilder.serve().pipe(
  Layer.provide([HttpApiSwagger.layer(), HttpApiBuilder.middlewareOpenApi(), HttpApiBuilder.middleware(requests)]),
  Layer.provide(api)
)
