/**
 * The ways to serve requests whose clients read their own writes: a site of each framework, with a
 * unit of work for each request.
 */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import {
  HttpApi,
  HttpApiBuilder,
  HttpApiEndpoint,
  HttpApiGroup,
  HttpRouter,
  HttpServer,
  HttpServerRequest,
  HttpServerResponse
} from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import { getRequestListener } from "@hono/node-server"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { DatabaseRuntime, RequestTransaction } from "effect-db"
import express from "express"
import { fastify } from "fastify"
import { Hono } from "hono"
import type { StatusCode } from "hono/utils/http-status"
import { Cluster } from "./cluster.js"
import { Db } from "./databases.js"
import { inUnit } from "./suites/requests/hono.js"
import { listening, portOf } from "./suites/requests/listen.js"
import type { Listening } from "./suites/requests/site.js"

export const secret = Redacted.make("a secret that is long enough for a test")

const older = Redacted.make("another one, which was in use before it")

/** The settings of causal sessions for each part of a server, by the first segment of its paths. */
const parts: Readonly<Record<string, RequestTransaction.ReadYourWrites>> = {
  // waits for a replica for as long as a test may last
  patient: { secret: [secret, older], maxWait: "20 seconds" },
  // waits for no replica
  hasty: { secret, maxWait: 0 },
  header: { secret, header: "X-Seen", maxWait: "20 seconds" },
  before: { secret: older, maxWait: 0 }
}

interface Answer {
  readonly status: number
  readonly body: string
}

/** Handles `POST /<part>/<what>/<id>`. */
export const act = (what: string, id: number): Effect.Effect<Answer, unknown, Db> =>
  Effect.gen(function* () {
    const insert = Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO item (id) VALUES (${id})`)
    switch (what) {
      case "write":
        return yield* Effect.as(insert, { status: 201, body: "" })
      case "refuse":
        return yield* Effect.as(insert, { status: 409, body: "" })
      case "keep":
        return yield* Effect.as(Db.independent(insert), { status: 500, body: "" })
      case "throw":
        return yield* Effect.zipRight(Db.independent(insert), Effect.die(new Error("a bug")))
      default: {
        const sql = yield* Db.reader
        const [row] = yield* sql`
          SELECT inet_server_port() AS port, EXISTS (SELECT 1 FROM item WHERE id = ${id}) AS there`
        return { status: 200, body: JSON.stringify(row) }
      }
    }
  })

/** A server of a test. */
export class Site extends Context.Tag("test/Site")<Site, { readonly port: number }>() {}

const databases = Layer.unwrapEffect(Effect.map(Cluster, (servers) => Db.layer(servers.settings("app"))))

export const own = "own=cookie"

const respond = ({ body, status }: Answer) =>
  HttpServerResponse.unsafeSetCookie(HttpServerResponse.text(body, { status }), "own", "cookie")

const actions = HttpRouter.empty.pipe(
  HttpRouter.post(
    "/:what/:id",
    Effect.flatMap(HttpRouter.params, ({ id, what }) => Effect.map(act(what ?? "", Number(id)), respond))
  )
)

type Middleware = ReturnType<typeof RequestTransaction.readYourWrites>

type Routes = HttpRouter.HttpRouter<unknown, Db>

const mounted = (use: (routes: Routes, keeps: Middleware) => Routes): Routes =>
  Object.entries(parts).reduce<Routes>(
    (all, [name, options]) =>
      HttpRouter.mount(all, `/${name}`, use(actions, RequestTransaction.readYourWrites(options))),
    HttpRouter.empty
  )

export const within = RequestTransaction.middleware()

export const listener = NodeHttpServer.layer(createServer, { port: 0, host: "127.0.0.1" })

export const siteOf = (serve: Layer.Layer<HttpServer.HttpServer, unknown, Db>): Layer.Layer<Site, never, Cluster> =>
  Layer.effect(
    Site,
    Effect.map(HttpServer.HttpServer, ({ address }) => ({ port: address._tag === "TcpAddress" ? address.port : 0 }))
  ).pipe(Layer.provide(serve), Layer.provide(databases), Layer.orDie)

const aroundHandlers = siteOf(
  Layer.provideMerge(
    HttpServer.serve(mounted((routes, keeps) => HttpRouter.use(HttpRouter.use(routes, within), keeps))),
    listener
  )
)

const insideOfUnit = siteOf(
  Layer.provideMerge(
    HttpServer.serve(mounted((routes, keeps) => HttpRouter.use(HttpRouter.use(routes, keeps), within))),
    listener
  )
)

/** The middleware of each part, to be selected by the path: only one can be around the server. */
const byPath = Object.entries(parts).map(
  ([name, options]) => [`/${name}/`, RequestTransaction.readYourWrites(options)] as const
)

const keepsByPath: Middleware = (app) =>
  Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ url }) => {
    const keeps = byPath.find(([prefix]) => url.startsWith(prefix))?.[1]
    return keeps === undefined ? app : keeps(app)
  })

const everywhere = HttpRouter.empty.pipe(
  HttpRouter.post(
    "/:part/:what/:id",
    Effect.flatMap(HttpRouter.params, ({ id, what }) => Effect.map(act(what ?? "", Number(id)), respond))
  )
)

const aroundServer = siteOf(
  Layer.provideMerge(
    HttpServer.serve(everywhere, (app) => keepsByPath(within(app))),
    listener
  )
)

const params = Schema.Struct({ part: Schema.String, what: Schema.String, id: Schema.NumberFromString })

class Acts extends HttpApi.make("acts").add(
  HttpApiGroup.make("acts")
    .add(HttpApiEndpoint.post("act", "/:part/:what/:id").setPath(params))
    .middleware(RequestTransaction.Api)
) {}

const api = siteOf(
  HttpApiBuilder.serve(keepsByPath).pipe(
    Layer.provide(HttpApiBuilder.api(Acts)),
    Layer.provide(
      HttpApiBuilder.group(Acts, "acts", (handlers) =>
        handlers.handleRaw("act", ({ path: { id, what } }) => Effect.orDie(Effect.map(act(what, id), respond)))
      )
    ),
    Layer.provide(RequestTransaction.layerApi()),
    Layer.provideMerge(listener)
  )
)

type Runtime = DatabaseRuntime.DatabaseRuntime<{ db: typeof Db }, Db>

export const opened = Effect.gen(function* () {
  const servers = yield* Cluster
  const runtime: Runtime = DatabaseRuntime.make({ db: Db }, Db.layer(servers.settings("app")))
  return yield* Effect.acquireRelease(Effect.promise(() => runtime.open()).pipe(Effect.as(runtime)), () =>
    Effect.promise(() => runtime.close())
  )
})

const plainSite = (serve: (runtime: Runtime) => Promise<Listening>): Layer.Layer<Site, never, Cluster> =>
  Layer.scoped(
    Site,
    Effect.gen(function* () {
      const runtime = yield* opened
      return yield* Effect.acquireRelease(
        Effect.promise(() => serve(runtime)),
        ({ close }) => Effect.promise(close)
      )
    })
  )

const expressSite = plainSite((runtime) => {
  const app = express()
  // in other environments Express prints the errors that the tests provoke
  app.set("env", "test")
  for (const [name, readYourWrites] of Object.entries(parts)) {
    app.post(`/${name}/:what/:id`, runtime.middleware({ readYourWrites }), async (request, response) => {
      const { body, status } = await runtime.runPromise(act(request.params.what, Number(request.params.id)))
      response.cookie("own", "cookie").status(status).send(body)
    })
  }
  return listening(app.listen(0, "127.0.0.1"))
})

interface Params {
  readonly what: string
  readonly id: string
}

const fastifySite = plainSite(async (runtime) => {
  const app = fastify({ forceCloseConnections: true })
  for (const [name, readYourWrites] of Object.entries(parts)) {
    const middleware = runtime.middleware({ readYourWrites })
    const preHandler = (request: { raw: IncomingMessage }, reply: { raw: ServerResponse }, done: () => void) =>
      middleware(request.raw, reply.raw, done)
    app.post<{ Params: Params }>(`/${name}/:what/:id`, { preHandler }, async (request, reply) => {
      const { body, status } = await runtime.runPromise(act(request.params.what, Number(request.params.id)))
      return reply.code(status).header("set-cookie", own).send(body)
    })
  }
  await app.listen({ port: 0, host: "127.0.0.1" })
  return { port: portOf(app.server), close: () => app.close() }
})

const honoSite = plainSite((runtime) => {
  const app = new Hono()
  app.onError((_, c) => c.text("an error", 500))
  for (const [name, readYourWrites] of Object.entries(parts)) {
    app.post(`/${name}/:what/:id`, inUnit(runtime, { readYourWrites }), async (c) => {
      const { body, status } = await runtime.runPromise(act(c.req.param("what"), Number(c.req.param("id"))))
      // the type of `c.status` lacks some numbers
      c.status(status as StatusCode)
      c.header("set-cookie", own)
      return c.body(body)
    })
  }
  return listening(createServer(getRequestListener(app.fetch)).listen(0, "127.0.0.1"))
})

/** Node's own server. Its handler passes the headers to `writeHead`, as an object or as a list. */
const nodeSite = plainSite((runtime) => {
  const middlewares = new Map(
    Object.entries(parts).map(([name, readYourWrites]) => [name, runtime.middleware({ readYourWrites })])
  )
  let calls = 0
  const server = createServer((request, response) => {
    const [, part = "", what = "", id] = (request.url ?? "").split("/")
    middlewares.get(part)?.(request, response, (error) => {
      if (error !== undefined) return void response.writeHead(500).end()
      void runtime.runPromise(act(what, Number(id))).then(
        ({ body, status }) =>
          (calls++ % 2 === 0
            ? response.writeHead(status, { "Set-Cookie": own, "content-type": "text/plain" })
            : response.writeHead(status, ["Set-Cookie", own, "content-type", "text/plain"])
          ).end(body),
        () => response.writeHead(500, "broken").end()
      )
    })
  })
  return listening(server.listen(0, "127.0.0.1"))
})

export interface Sent {
  readonly status: number
  readonly body: string
  readonly cookies: ReadonlyArray<string>
  readonly header: string | null
}

/** Sends a request with the headers that the client has kept from earlier answers. */
export const send = (path: string, headers: Readonly<Record<string, string>> = {}): Effect.Effect<Sent, never, Site> =>
  Effect.flatMap(Site, ({ port }) =>
    Effect.promise(async (signal) => {
      const response = await fetch(`http://127.0.0.1:${port}/${path}`, { method: "POST", headers, signal })
      return {
        status: response.status,
        body: await response.text(),
        cookies: response.headers.getSetCookie(),
        header: response.headers.get("x-seen")
      }
    })
  )

export const name = "effect-db"

export const sites = {
  "the Effect server, around its unit of work": aroundHandlers,
  "the Effect server, inside of its unit of work": insideOfUnit,
  "the Effect server, around the whole server": aroundServer,
  "an HttpApi": api,
  Express: expressSite,
  Fastify: fastifySite,
  Hono: honoSite,
  "Node's own server": nodeSite
}
