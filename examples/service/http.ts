import { randomUUID } from "node:crypto"
import {
  HttpApiBuilder,
  HttpApiError,
  HttpApiSwagger,
  type HttpApp,
  HttpServerError,
  HttpServerRequest,
  HttpServerResponse
} from "@effect/platform"
import { Array as Arr, Cause, Effect, Fiber, Layer, Option } from "effect"
import { RequestTransaction } from "effect-db"
import { Api, EmbeddedApi } from "./api.js"
import * as Audit from "./audit.js"
import { type Actions, Cluster, type Member } from "./cluster.js"
import * as Databases from "./databases.js"
import { answer, broken, brokenResponse, fromDatabase, respond, Unavailable } from "./failures.js"
import * as History from "./history.js"
import * as Members from "./members.js"
import { allowed } from "./methods.js"
import * as Page from "./page.js"
import { type Acts, noState, Playground } from "./playground.js"
import * as Records from "./records.js"
import { notCrossSite, notInParts, notTooLong } from "./refusals.js"
import { signed } from "./served.js"
import type { ServersFailed } from "./servers.js"
import * as Todos from "./todos.js"
import * as Traffic from "./traffic.js"

const byApp = signed(Databases.Db)
const byAudit = signed(Databases.Audit)

type Ask = { readonly headers: { readonly "x-request-id"?: string | undefined } }

const change =
  ({ headers }: Ask) =>
  <A, E, R>(self: Effect.Effect<A, E, R>) =>
    answer(byApp(self)).pipe(Effect.provideService(Audit.RequestId, headers["x-request-id"] ?? randomUUID()))

const todos = HttpApiBuilder.group(Api, "todos", (handlers) =>
  handlers
    .handle("list", ({ urlParams }) => answer(Todos.fresh(byApp(Todos.list(urlParams.done)))))
    .handle("get", ({ path }) => answer(Todos.fresh(byApp(Todos.get(path.id)))))
    .handle("create", (ask) => Todos.create(ask.payload).pipe(change(ask)))
    .handle("update", (ask) => Todos.update(ask.path.id, ask.payload).pipe(change(ask)))
    .handle("remove", (ask) => Todos.remove(ask.path.id).pipe(change(ask)))
)

const records = HttpApiBuilder.group(Api, "records", (handlers) =>
  handlers.handle("page", ({ urlParams }) => answer(byApp(Records.page(urlParams))))
)

const audit = HttpApiBuilder.group(Api, "audit", (handlers) =>
  handlers.handle("events", ({ urlParams }) => answer(byAudit(Audit.latest(urlParams.subject))))
)

const servers = HttpApiBuilder.group(Api, "servers", (handlers) =>
  handlers.handle("state", () =>
    Effect.flatMap(Playground, Option.match({ onNone: () => Effect.succeed(noState), onSome: ({ state }) => state }))
  )
)

const asBroken = ({ message }: ServersFailed) => Effect.zipRight(Effect.logError(message), Effect.fail(broken))

const playground = ({ freeze, kill, state, thaw }: Acts) =>
  HttpApiBuilder.group(EmbeddedApi, "playground", (handlers) =>
    handlers
      .handle("kill", () =>
        Effect.catchAll(
          Effect.map(kill, (killed) => ({ killed })),
          asBroken
        )
      )
      .handle("freeze", () => Effect.catchAll(Effect.zipRight(freeze, state), asBroken))
      .handle("thaw", () => Effect.catchAll(Effect.zipRight(thaw, state), asBroken))
  )

const cluster = HttpApiBuilder.group(Api, "cluster", (handlers) =>
  handlers.handle("view", () =>
    Effect.gen(function* () {
      const { latest } = yield* History.History
      const embedded = Option.isSome(yield* Cluster)
      return { embedded, servers: yield* Members.all, events: yield* latest }
    })
  )
)

const failover = ({ killPrimary, promote, start }: Actions, { thaw }: Acts) =>
  HttpApiBuilder.group(EmbeddedApi, "failover", (handlers) =>
    Effect.gen(function* () {
      const { add } = yield* History.History
      /** Runs an action, and adds what it has done to the history. A frozen server would not take part, so it is thawed. */
      const act = <E>(action: Effect.Effect<ReadonlyArray<Member>, E>, done: string) =>
        Effect.catchAll(thaw, asBroken).pipe(
          Effect.zipRight(action),
          Effect.map((members) => members.map(({ name }) => name)),
          Effect.tap((names) => Effect.forEach(names, (name) => add(`${name} ${done}`))),
          Effect.map((servers) => ({ servers })),
          // a visitor who leaves ends the wait and not the action
          Effect.forkDaemon,
          Effect.flatMap(Fiber.join)
        )
      return handlers
        .handle("killPrimary", () => act(Effect.map(killPrimary, Arr.of), "was killed"))
        .handle("promote", () => act(Effect.map(promote, Arr.of), "was promoted"))
        .handle("start", () => act(start, "was started"))
    })
  )

const load = ({ figures, set }: Traffic.Traffic) =>
  HttpApiBuilder.group(EmbeddedApi, "load", (handlers) =>
    handlers
      .handle("figures", () => figures)
      .handle("set", ({ payload }) => Effect.zipRight(set(payload.rate), figures))
  )

const problem = (status: number, _tag: string, message: string, more: object = {}) =>
  HttpServerResponse.unsafeJson({ _tag, message, ...more }, { status })

/** Answers wrong input with the first issue of each part: further issues belong to other alternatives of a schema. */
const badInput = (error: HttpApiError.HttpApiDecodeError) => {
  const issues = Arr.dedupeWith(error.issues, (a, b) => a.path.join() === b.path.join())
  const message = issues.map(({ message, path }) => `${path.join(".") || "the request"}: ${message}`).join("; ")
  return problem(400, error._tag, message, { issues })
}

/** Answers a request with an unknown or malformed path, or with a method that the path does not take. */
const notFound = ({ request }: HttpServerError.RouteNotFound) =>
  Effect.map(allowed(request), (methods) => {
    if (methods.length === 0) return problem(404, "RouteNotFound", "there is no such path; /docs lists the paths")
    if (Arr.contains(methods, request.method))
      return problem(400, "BadPath", "the percent-encoding of the path is not valid")
    const allow = methods.join(", ")
    const message = `the path does not accept ${request.method}, only ${allow}; /docs lists the paths`
    return HttpServerResponse.setHeader(problem(405, "MethodNotAllowed", message), "allow", allow)
  })

/** Answers a request that no handler has answered: because of wrong input, an unknown path or a fault. */
const lastWord = (cause: Cause.Cause<never>) => {
  const error: unknown = Cause.squash(cause)
  if (error instanceof HttpApiError.HttpApiDecodeError) return Effect.succeed(badInput(error))
  if (HttpServerError.isServerError(error)) {
    if (error._tag === "RouteNotFound") return notFound(error)
    return Effect.succeed(
      problem(400, "HttpApiDecodeError", "the body cannot be read: it must be JSON", { issues: [] })
    )
  }
  return Cause.isDie(cause) ? Effect.as(Effect.logError(Cause.pretty(cause)), brokenResponse) : Effect.failCause(cause)
}

/** The servers need seconds to change their roles, and longer on a busy machine. */
const limitOf = ({ url }: HttpServerRequest.HttpServerRequest) =>
  url.startsWith("/cluster/") ? "1 minute" : "8 seconds"

/**
 * Runs each request as one unit of work: all databases commit, or none. A unit that was undone, as by a lost connection, runs again.
 * Handlers have a shorter time limit, after which nothing is stored; the limit here is for a COMMIT without an answer.
 */
const requests = (app: HttpApp.Default) =>
  Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
    notCrossSite(notInParts(notTooLong(app))).pipe(
      RequestTransaction.middleware({ retry: true, onCommitFailed: (error) => respond(fromDatabase(error)) }),
      Effect.interruptible,
      Effect.timeoutTo({
        duration: limitOf(request),
        onSuccess: (response) => response,
        onTimeout: () => respond(Unavailable.because("Timeout", "unknown"))
      }),
      Effect.catchAllCause(lastWord)
    )
  )

const groups = Layer.mergeAll(todos, records, audit, servers, cluster)

const api = Layer.unwrapScoped(
  Effect.gen(function* () {
    const own = Option.all([yield* Playground, yield* Cluster])
    if (Option.isNone(own)) return HttpApiBuilder.api(Api).pipe(Layer.provide(groups))
    const [acts, actions] = own.value
    const more = [playground(acts), failover(actions, acts), load(yield* Traffic.make)] as const
    return HttpApiBuilder.api(EmbeddedApi).pipe(Layer.provide([groups, ...more]))
  })
).pipe(Layer.provide(History.layer))

/** The service's handlers and its page, on the HTTP server that the layer is provided with. */
export const layer = HttpApiBuilder.serve().pipe(
  Layer.provide([
    HttpApiSwagger.layer(),
    HttpApiBuilder.middlewareOpenApi(),
    HttpApiBuilder.middleware(requests, { withContext: true }),
    Page.layer
  ]),
  Layer.provide(HttpApiBuilder.Router.Live),
  Layer.provide(api)
)
