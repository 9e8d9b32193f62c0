/**
 * Requests with an idempotency key, by HTTP: each is done once, however often its client sends it.
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
import { assert, it } from "@effect/vitest"
import { getRequestListener } from "@hono/node-server"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { type Database, DatabaseError, DatabaseRuntime, RequestTransaction, UnitOfWork } from "effect-db"
import express from "express"
import { describe } from "vitest"
import { Audit, Db } from "../support/databases.js"
import { answers, makeProxy, type Proxy, sends } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"
import { listening } from "../support/suites/requests/listen.js"

/** The work of a request: its path selects it, and its body is the name of an item. */
type Work = (
  path: string,
  name: string
) => Effect.Effect<{ readonly status: number; readonly text: string }, unknown, Db | Audit>

/** Serves the work with keys, and returns the address of the server. */
type Serve = (
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

const served = <E, R>(layer: Layer.Layer<never, E, R | HttpServer.HttpServer>, databases: Layer.Layer<R, unknown>) =>
  Effect.gen(function* () {
    const server = NodeHttpServer.layer(createServer, { port: 0, host: "127.0.0.1" })
    const context = yield* Layer.build(
      Layer.provideMerge(layer, Layer.merge(server, databases)).pipe(Layer.provide(Logger.remove(Logger.defaultLogger)))
    )
    const { address } = Context.get(context, HttpServer.HttpServer)
    return address._tag === "TcpAddress" ? `http://127.0.0.1:${address.port}` : assert.fail("no port")
  })

const router =
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

const listen = (start: () => Server) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.promise(() => listening(start())),
      ({ close }) => Effect.promise(close)
    ),
    ({ port }) => `http://127.0.0.1:${port}`
  )

const opened = (databases: Layer.Layer<Db | Audit, unknown>) =>
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

const places: ReadonlyArray<readonly [name: string, serve: Serve]> = [
  ["the middleware of a router", router("route", false)],
  ["the middleware of a router with retry", router("route", true)],
  ["the middleware of a server", router("server", false)],
  ["an HttpApi", httpApi(false)],
  ["an HttpApi with retry", httpApi(true)],
  ["Express", byExpress],
  ["a web handler", byWeb]
]

interface Sent {
  readonly path?: string
  readonly key?: string
  readonly body?: string
  readonly user?: string
  readonly method?: string
}

const given = (
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
    const state = { runs: 0 }
    const met = yield* Deferred.make<void>()
    const insert = (name: string) => Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO item VALUES (${name})`)
    const work: Work = (url, name) =>
      Effect.gen(function* () {
        const run = ++state.runs
        const path = url.replace(/\?.*/, "")
        if (path !== "/nothing") yield* insert(name)
        if (path === "/both") yield* Effect.flatMap(Audit.writer, (sql) => sql`INSERT INTO event VALUES (${name})`)
        if (path === "/meet" || path === "/both") {
          if (run === 2) yield* Deferred.succeed(met, undefined)
          yield* Deferred.await(met)
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
    const stored = Effect.map(query(writer, "SELECT name FROM item ORDER BY name"), (rows) =>
      rows.map(({ name }) => name)
    )
    const events = Effect.map(query(other, "SELECT name FROM event"), (rows) => rows.map(({ name }) => name))
    return { send, stored, events, state, writer }
  })

/** Adds a proxy in front of a server to a list, and returns its URL. */
const through = (proxies: Array<Proxy>, url: Redacted.Redacted<string>) =>
  Effect.map(makeProxy(url), (proxy) => {
    proxies.push(proxy)
    return proxy.url
  })

const replayed = "idempotent-replayed"

for (const [name, serve] of places) {
  describe(`idempotency keys with ${name}`, () => {
    it.scopedLive(`with ${name}, a repeated request gets the kept response and does not run`, () =>
      Effect.gen(function* () {
        const { send, state, stored } = yield* given(serve, { keepAnswer: true })
        const first = yield* send({ key: "one" })
        assert.deepStrictEqual([first.status, first.text, first.headers.get(replayed)], [201, "run 1", null])
        for (let n = 0; n < 2; n++) {
          const again = yield* send({ key: "one" })
          assert.deepStrictEqual([again.status, again.text], [201, "run 1"])
          assert.strictEqual(again.headers.get(replayed), "true")
          assert.strictEqual(again.headers.get("location"), "/there")
          assert.strictEqual(again.headers.get("content-type"), first.headers.get("content-type"))
          assert.strictEqual(again.headers.get("set-cookie"), null)
        }
        assert.strictEqual(state.runs, 1)
        assert.deepStrictEqual(yield* stored, ["a"])
      })
    )

    it.scopedLive(`with ${name}, a repeated request is 409 without a kept response, and 422 with other content`, () =>
      Effect.gen(function* () {
        const { send, state, stored } = yield* given(serve)
        assert.strictEqual((yield* send({ key: "one" })).status, 201)
        const again = yield* send({ key: "one" })
        assert.strictEqual(again.status, 409)
        assert.include(again.headers.get("content-type"), "application/problem+json")
        assert.deepInclude(JSON.parse(again.text), { type: "about:blank", status: 409 })
        assert.strictEqual((yield* send({ key: "one", body: "b" })).status, 422)
        assert.strictEqual((yield* send({ key: "one", path: "/items?x=1" })).status, 422)
        assert.strictEqual(state.runs, 1)
        // another key, path or user is another request
        assert.strictEqual((yield* send({ key: "two", body: "b" })).status, 201)
        assert.strictEqual((yield* send({ key: "one", path: "/nothing", body: "c" })).status, 201)
        assert.strictEqual((yield* send({ key: "one", user: "eve", body: "c" })).status, 201)
        assert.deepStrictEqual(yield* stored, ["a", "b", "c"])
      })
    )

    it.scopedLive(
      `with ${name}, a key that is missing or not valid is 400, and only with required if it is missing`,
      () =>
        Effect.gen(function* () {
          const { send, state } = yield* given(serve, { required: true })
          for (const key of [undefined, "", "a\tb", "x".repeat(256)])
            assert.strictEqual((yield* send(key === undefined ? {} : { key })).status, 400)
          assert.strictEqual(state.runs, 0)
          assert.strictEqual((yield* send({ key: "x".repeat(255) })).status, 201)
          const other = yield* given(serve)
          for (let n = 0; n < 2; n++) assert.strictEqual((yield* other.send({})).status, 201)
          assert.deepStrictEqual(yield* other.stored, ["a", "a"])
        })
    )

    it.scopedLive(`with ${name}, a request that rolls back leaves no key, and one that writes nothing leaves it`, () =>
      Effect.gen(function* () {
        const { send, state, stored } = yield* given(serve, { keepAnswer: true })
        assert.strictEqual((yield* send({ key: "one", path: "/refused" })).status, 422)
        assert.deepStrictEqual(yield* stored, [])
        assert.strictEqual((yield* send({ key: "one", path: "/refused" })).text, "run 2")
        assert.deepStrictEqual(yield* stored, ["a"])
        assert.strictEqual((yield* send({ key: "one", path: "/nothing" })).text, "run 3")
        assert.strictEqual((yield* send({ key: "one", path: "/nothing" })).text, "run 3")
        assert.strictEqual(state.runs, 3)
      })
    )

    it.scopedLive(`with ${name}, of two requests at the same time one is stored, on all databases`, () =>
      Effect.gen(function* () {
        for (const [path, keepAnswer] of [
          ["/meet", true],
          ["/meet", false],
          ["/both", true]
        ] as const) {
          const { events, send, state, stored } = yield* given(serve, { keepAnswer })
          const both = yield* Effect.all([send({ key: "one", path }), send({ key: "one", path })], { concurrency: 2 })
          assert.strictEqual(state.runs, 2)
          if (keepAnswer) {
            assert.deepStrictEqual(
              both.map(({ status }) => status),
              [201, 201]
            )
            assert.strictEqual(both[0].text, both[1].text)
            assert.strictEqual(both.filter(({ headers }) => headers.get(replayed) === "true").length, 1)
          } else assert.deepStrictEqual(both.map(({ status }) => status).sort(), [201, 409])
          assert.deepStrictEqual(yield* stored, ["a"])
          assert.deepStrictEqual(yield* events, path === "/both" ? ["a"] : [])
        }
      })
    )

    it.scopedLive(
      `with ${name}, a request whose COMMIT loses its connection is done once when its client repeats it`,
      () =>
        Effect.gen(function* () {
          const proxies: Array<Proxy> = []
          const { send, state, stored } = yield* given(
            serve,
            { keepAnswer: true },
            { resolveWithin: "200 millis", acquireTimeout: "200 millis" },
            (url) => through(proxies, url)
          )
          const proxy = proxies[0] ?? assert.fail("no proxy")
          for (const [key, point] of [
            ["stored", answers("COMMIT")],
            ["lost", sends("COMMIT")]
          ] as const) {
            const before = state.runs
            const cut = yield* proxy.when(point, "cut")
            const [first] = yield* Effect.all([send({ key, body: key }), Effect.zipRight(cut, proxy.refuse)], {
              concurrency: 2
            })
            assert.strictEqual(first.status, 503)
            yield* proxy.accept
            const again = yield* Effect.repeat(send({ key, body: key }), {
              until: ({ status }) => status !== 503,
              times: 100
            })
            const runs = key === "stored" ? before + 1 : state.runs
            assert.deepStrictEqual([again.status, again.text], [201, `run ${runs}`])
            assert.strictEqual((yield* send({ key, body: key })).text, again.text)
          }
          assert.deepStrictEqual(yield* stored, ["lost", "stored"])
        })
    )
  })
}

describe("the storage of idempotency keys", () => {
  it.scopedLive("a key costs the look-up alone, because it is stored in the exchange of COMMIT", () =>
    Effect.gen(function* () {
      const proxies: Array<Proxy> = []
      const { send } = yield* given(router("route", false), { keepAnswer: true }, {}, (url) => through(proxies, url))
      const proxy = proxies[0] ?? assert.fail("no proxy")
      const trips = (sent: Sent) =>
        Effect.suspend(() => {
          const before = proxy.roundTrips
          return Effect.map(send(sent), () => proxy.roundTrips - before)
        })
      yield* send({ key: "warm" })
      // after the deletion of old rows, which follows the first transaction
      yield* send({})
      const plain = yield* trips({})
      assert.strictEqual(yield* trips({ key: "one" }), plain + 1)
      assert.strictEqual(yield* trips({ key: "one" }), 1)
    })
  )

  it.scopedLive("the body of a kept response is bounded", () =>
    Effect.gen(function* () {
      const { send } = yield* given(router("route", false), { keepAnswer: { maxBytes: 4 } })
      assert.strictEqual((yield* send({ key: "one" })).status, 201)
      assert.strictEqual((yield* send({ key: "one" })).status, 409)
    })
  )

  it.scopedLive("old keys are deleted with old markers", () =>
    Effect.gen(function* () {
      const { send, writer } = yield* given(router("route", false), {}, { startup: "lazy" })
      yield* Effect.scoped(Layer.build(Db.layer({ writer, outcome: "marker" })))
      yield* query(
        writer,
        `INSERT INTO effect_db.outcome (id, at, fingerprint) SELECT gen_random_uuid(), now() - days * interval '1 day', 'x'
         FROM generate_series(0, 2) AS days`
      )
      yield* send({})
      const left = query(writer, "SELECT 1 FROM effect_db.outcome WHERE fingerprint IS NOT NULL")
      yield* Effect.repeat(left, { until: (rows) => rows.length === 1, times: 100 })
      assert.lengthOf(yield* left, 1)
    })
  )

  it.scopedLive("a database without markers, and a unit of work around, refuse a request with a key", () =>
    Effect.gen(function* () {
      const { send, state } = yield* given(router("route", false), {}, { outcome: "status" })
      assert.strictEqual((yield* send({ key: "one" })).status, 500)
      assert.strictEqual((yield* send({})).status, 201)
      assert.strictEqual(state.runs, 1)
      const inner = RequestTransaction.middleware({ idempotencyKey: { database: Db } })
      const { writer } = yield* freshDatabase
      const request = HttpServerRequest.fromWeb(
        new Request("http://localhost/", { method: "POST", headers: { "idempotency-key": "one" } })
      )
      const response = yield* UnitOfWork.run(Effect.scoped(inner(Effect.dieMessage("the handler has run")))).pipe(
        Effect.provideService(HttpServerRequest.HttpServerRequest, request),
        Effect.provide(Db.layer({ writer, outcome: "marker" })),
        Effect.provide(Logger.remove(Logger.defaultLogger))
      )
      assert.strictEqual(response.status, 500)
    })
  )

  it("options that are not valid are refused", () => {
    const make = (keys: object) => () =>
      // the cast: a program without types may pass anything
      RequestTransaction.middleware({ idempotencyKey: keys as RequestTransaction.IdempotencyKey<Db, unknown> })
    for (const keys of [
      {},
      { database: "app" },
      { database: Db, heeder: "x" },
      { database: Db, keepAnswer: { maxBytes: -1 } }
    ])
      assert.throws(make(keys), DatabaseError.ConfigInvalid)
    const runtime = DatabaseRuntime.make({ db: Db }, Db.layer({ writer: Redacted.make("postgres://localhost/x") }))
    assert.throws(() => runtime.middleware({ idempotencyKey: { database: Audit } }), DatabaseError.ConfigInvalid)
    assert.throws(
      () => runtime.handler(() => new Response(), { idempotencyKey: { database: Audit } }),
      /of the runtime/
    )
  })
})
