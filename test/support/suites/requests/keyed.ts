/**
 * Servers whose requests have idempotency keys, one for each place of the middleware.
 */
import { createServer, type Server } from "node:http"
import {
  HttpApi,
  HttpApiBuilder,
  HttpApiEndpoint,
  HttpApiGroup,
  HttpLayerRouter,
  HttpRouter,
  HttpServer,
  HttpServerRequest,
  HttpServerResponse
} from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import { assert } from "@effect/vitest"
import { getRequestListener } from "@hono/node-server"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import type * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { type Database, DatabaseRuntime, RequestTransaction } from "effect-db"
import express from "express"
import { Audit, Db, insert, namesIn } from "../../databases.js"
import { makeProxy, type Proxy } from "../../proxy.js"
import { freshDatabase, query } from "../../server.js"
import { listening } from "./listen.js"

/** The work of a request: its path selects it, and its body is the name of an item. */
type Work = (
  path: string,
  name: string
) => Effect.Effect<{ readonly status: number; readonly text: string }, unknown, Db | Audit>

/** Serves the work with keys, and returns the address of the server. */
export type Serve = (
  work: Work,
  databases: Layer.Layer<Db | Audit, unknown>,
  keys: Pick<RequestTransaction.IdempotencyKey<Db, unknown>, "keepAnswer" | "required">
) => Effect.Effect<string, unknown, Scope.Scope>

const cookie = ["set-cookie", "session=secret"] as const

const handler = (work: Work) =>
  Effect.gen(function* () {
    const request = yield* HttpServerRequest.HttpServerRequest
    const { status, text } = yield* work(request.url, yield* request.text)
    return HttpServerResponse.text(text, { status, headers: { location: "/there", [cookie[0]]: cookie[1] } })
  })

export const served = <E, R>(
  layer: Layer.Layer<never, E, R | HttpServer.HttpServer>,
  databases: Layer.Layer<R, unknown>
) =>
  Effect.gen(function* () {
    const server = NodeHttpServer.layer(createServer, { port: 0, host: "127.0.0.1" })
    const context = yield* Layer.build(
      Layer.provideMerge(layer, Layer.merge(server, databases)).pipe(Layer.provide(Logger.remove(Logger.defaultLogger)))
    )
    const { address } = Context.get(context, HttpServer.HttpServer)
    return address._tag === "TcpAddress" ? `http://127.0.0.1:${address.port}` : assert.fail("no port")
  })

export const router =
  (place: "route" | "server", retry: boolean): Serve =>
  (work, databases, keys) => {
    const once = RequestTransaction.middleware({
      retry,
      idempotencyKey: {
        database: Db,
        scope: ({ headers }) => headers["x-user"] ?? "",
        ...keys
      }
    })
    const app = HttpRouter.empty.pipe(HttpRouter.all("*", handler(work)))
    return served(
      place === "route" ? HttpServer.serve(HttpRouter.use(app, once)) : HttpServer.serve(app, once),
      databases
    )
  }

const httpApi =
  (retry: boolean): Serve =>
  (work, databases, keys) => {
    const path = Schema.Struct({ path: Schema.String })
    const group = HttpApiGroup.make("work").add(HttpApiEndpoint.post("work", "/:path").setPath(path))
    const api = HttpApi.make("work").add(group.middleware(RequestTransaction.Api))
    const handlers = HttpApiBuilder.group(api, "work", (all) => all.handleRaw("work", () => handler(work) as never))
    const live = HttpLayerRouter.addHttpApi(api).pipe(
      Layer.provide(handlers),
      Layer.provide(
        RequestTransaction.layerApi({
          retry,
          idempotencyKey: { database: Db, scope: ({ headers }) => headers["x-user"] ?? "", ...keys }
        })
      )
    )
    return served(HttpLayerRouter.serve(live) as never, databases)
  }

export const listen = (start: () => Server) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.promise(() => listening(start())),
      ({ close }) => Effect.promise(close)
    ),
    ({ port }) => `http://127.0.0.1:${port}`
  )

export const opened = (databases: Layer.Layer<Db | Audit, unknown>) =>
  Effect.gen(function* () {
    const runtime = DatabaseRuntime.make(
      { db: Db, audit: Audit },
      databases.pipe(Layer.provide(Logger.remove(Logger.defaultLogger)))
    )
    yield* Effect.acquireRelease(
      Effect.promise(() => runtime.open()),
      () => Effect.promise(() => runtime.close())
    )
    return runtime
  })

const byExpress: Serve = (work, databases, keys) =>
  Effect.gen(function* () {
    const runtime = yield* opened(databases)
    const app = express()
    app.set("env", "test")
    app.use(express.text({ type: () => true }))
    app.use(
      runtime.middleware({
        idempotencyKey: { database: Db, scope: ({ headers }) => String(headers["x-user"] ?? ""), ...keys }
      })
    )
    app.all("/*path", async (request, response) => {
      const body: unknown = request.body
      const { status, text } = await runtime.runPromise(work(request.url, typeof body === "string" ? body : ""))
      response
        .status(status)
        .set("location", "/there")
        .set(...cookie)
        .type("text")
        .send(text)
    })
    return yield* listen(() => app.listen(0, "127.0.0.1"))
  })

const byWeb: Serve = (work, databases, keys) =>
  Effect.gen(function* () {
    const runtime = yield* opened(databases)
    const handle = runtime.handler(
      async (request) => {
        const { pathname, search } = new URL(request.url)
        const { status, text } = await runtime.runPromise(work(pathname + search, await request.text()))
        return new Response(text, {
          status,
          headers: { "content-type": "text/plain", location: "/there", [cookie[0]]: cookie[1] }
        })
      },
      {
        retry: true,
        idempotencyKey: { database: Db, scope: ({ headers }) => headers.get("x-user") ?? "", ...keys }
      }
    )
    const listener = getRequestListener((request) => handle(request).catch(() => new Response(null, { status: 500 })))
    return yield* listen(() => createServer(listener).listen(0, "127.0.0.1"))
  })

export const places: ReadonlyArray<readonly [name: string, serve: Serve]> = [
  ["the middleware of a router", router("route", false)],
  ["the middleware of a router with retry", router("route", true)],
  ["the middleware of a server", router("server", false)],
  ["an HttpApi", httpApi(false)],
  ["an HttpApi with retry", httpApi(true)],
  ["Express", byExpress],
  ["a web handler", byWeb]
]

export interface Sent {
  readonly path?: string
  readonly key?: string
  readonly body?: string
  readonly user?: string
  readonly method?: string
}

export const given = (
  serve: Serve,
  keys: Parameters<Serve>[2] = {},
  options: Partial<Database.Options> = {},
  behind: (
    url: Redacted.Redacted<string>
  ) => Effect.Effect<Redacted.Redacted<string>, never, Scope.Scope> = Effect.succeed
) =>
  Effect.gen(function* () {
    const { writer } = yield* freshDatabase
    const { writer: other } = yield* freshDatabase
    yield* query(writer, "CREATE TABLE item (name text)")
    yield* query(other, "CREATE TABLE event (name text)")
    const databases = Layer.merge(
      Db.layer({ writer: yield* behind(writer), outcome: "marker", ...options }),
      Audit.layer({ writer: other })
    )
    const state: { runs: number; beforeMeeting: Effect.Effect<void> } = { runs: 0, beforeMeeting: Effect.void }
    const finished = yield* Deferred.make<void>()
    const met = yield* Deferred.make<void>()
    const work: Work = (url, name) =>
      Effect.gen(function* () {
        const run = ++state.runs
        const path = url.replace(/\?.*/, "")
        if (path !== "/nothing") yield* insert(name)
        if (path === "/both") yield* Effect.flatMap(Audit.writer, (sql) => sql`INSERT INTO event VALUES (${name})`)
        if (path === "/meet" || path === "/both") {
          if (run === 2)
            yield* Effect.zipRight(
              Effect.suspend(() => state.beforeMeeting),
              Deferred.succeed(met, undefined)
            )
          yield* Deferred.await(met)
        }
        // the second of two requests fails after the first one was answered
        if (path === "/paid" || path === "/broken") {
          yield* run === 1 ? Deferred.await(met) : Deferred.succeed(met, undefined)
          if (run > 1) yield* Deferred.await(finished)
          if (run > 1 && path === "/broken") return yield* Effect.fail(new Error("broken"))
          if (run > 1) return { status: 402, text: "no money" }
        }
        return path === "/refused" && run === 1 ? { status: 422, text: "no" } : { status: 201, text: `run ${run}` }
      })
    const url = yield* serve(work, databases, keys)
    const send = ({ body = "a", key, method = "POST", path = "/items", user }: Sent) =>
      Effect.promise(async () => {
        const headers = {
          ...(key === undefined ? {} : { "idempotency-key": key }),
          ...(user === undefined ? {} : { "x-user": user })
        }
        const response = await fetch(url + path, { method, headers, ...(method === "GET" ? {} : { body }) })
        return { status: response.status, text: await response.text(), headers: response.headers }
      })
    const events = Effect.map(query(other, "SELECT name FROM event"), (rows) => rows.map(({ name }) => name))
    return { send, stored: namesIn(writer), events, state, writer, finished }
  })

/** Adds a proxy in front of a server to a list, and returns its URL. */
export const through = (proxies: Array<Proxy>, url: Redacted.Redacted<string>) =>
  Effect.map(makeProxy(url), (proxy) => {
    proxies.push(proxy)
    return proxy.url
  })

export const replayed = "idempotent-replayed"
