/**
 * Requests with an idempotency key of which another one was stored first, and answers that cannot
 * be kept.
 */
import { createServer } from "node:http"
import { gzipSync } from "node:zlib"
import { HttpApp, HttpRouter, HttpServer, HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { type DatabaseRuntime, RequestTransaction } from "effect-db"
import { describe } from "vitest"
import { Audit, Db } from "../support/databases.js"
import type { Message, Proxy } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"
import { given, listen, opened, places, replayed, served, through } from "../support/suites/requests/keyed.js"

/** Returns databases, the first of which has a table of items. */
const databases = Effect.gen(function* () {
  const { writer } = yield* freshDatabase
  yield* query(writer, "CREATE TABLE item (name text)")
  const layer = Layer.merge(Db.layer({ writer, outcome: "marker" }), Audit.layer({ writer, startup: "lazy" }))
  return { layer, items: Effect.map(query(writer, "SELECT name FROM item"), (rows) => rows.map(({ name }) => name)) }
})

const insert = Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO item VALUES ('a')`)

const post = (init: RequestInit & { readonly duplex?: "half" } = {}, url = "http://localhost/items") =>
  new Request(url, { method: "POST", headers: { "idempotency-key": "one" }, ...init })

/** Sends a request with a key to a server. */
const sendTo = (url: string, init: RequestInit = {}) =>
  Effect.promise(async () => {
    const response = await fetch(`${url}/items`, { method: "POST", headers: { "idempotency-key": "one" }, ...init })
    return { status: response.status, text: await response.text(), headers: response.headers }
  })

const stored = RequestTransaction.middleware({ idempotencyKey: { database: Db, keepAnswer: true } })

describe("a request with an idempotency key whose work is undone", () => {
  for (const [name, serve] of places) {
    for (const path of ["/paid", "/broken"])
      it.scopedLive(
        `with ${name}, the failure of the second of two requests on ${path} is the answer of the first`,
        () =>
          Effect.gen(function* () {
            const { finished, send, state, stored } = yield* given(serve, { keepAnswer: true })
            const one = Effect.tap(send({ key: "one", path }), () => Deferred.succeed(finished, undefined))
            const both = yield* Effect.all([one, one], { concurrency: 2 })
            assert.deepStrictEqual(
              both.map(({ status, text }) => [status, text]),
              [
                [201, "run 1"],
                [201, "run 1"]
              ]
            )
            assert.lengthOf(
              both.filter(({ headers }) => headers.get(replayed) === "true"),
              1
            )
            assert.strictEqual(state.runs, 2)
            assert.deepStrictEqual(yield* stored, ["a"])
          })
      )

    it.scopedLive(`with ${name}, a look-up that fails after a collision is answered with 409`, () =>
      Effect.gen(function* () {
        const proxies: Array<Proxy> = []
        const { send, state, stored } = yield* given(
          serve,
          { keepAnswer: true },
          { acquireTimeout: "200 millis" },
          (url) => through(proxies, url)
        )
        const proxy = proxies[0] ?? assert.fail("no proxy")
        let hasCollided = false
        const isLookUp = ({ bytes, from, type }: Message) => {
          if (from === "server" && type === "E" && bytes.includes("outcome_pkey")) hasCollided = true
          return hasCollided && from === "client" && type === "B"
        }
        state.beforeMeeting = Effect.asVoid(proxy.when(isLookUp, "cut", 1000))
        const one = send({ key: "one", path: "/meet" })
        const both = yield* Effect.all([one, one], { concurrency: 2 })
        assert.deepStrictEqual(both.map(({ status }) => status).sort(), [201, 409])
        assert.deepStrictEqual(yield* stored, ["a"])
      })
    )
  }
})

describe("the answers of requests with idempotency keys", () => {
  const handling = (
    respond: () => Response,
    options: DatabaseRuntime.WebOptions<Record<never, never>>["transaction"] = undefined
  ) =>
    Effect.gen(function* () {
      const { items, layer } = yield* databases
      const runtime = yield* opened(layer)
      const handle = runtime.handler(
        async () => {
          if (options === undefined) await runtime.runPromise(insert)
          return respond()
        },
        {
          ...(options === undefined ? {} : { transaction: options }),
          idempotencyKey: { database: Db, keepAnswer: { maxBytes: 64 } }
        }
      )
      return { items, send: (request: Request) => Effect.promise(() => handle(request)) }
    })

  for (const [kind, first] of [
    ["has no end", "data: 1\n\n"],
    ["is longer than the limit", "x".repeat(65)]
  ] as const)
    it.scopedLive(`a web response whose body ${kind} is sent and not kept`, () =>
      Effect.gen(function* () {
        const { items, send } = yield* handling(
          () =>
            new Response(
              new ReadableStream({ start: (controller) => controller.enqueue(new TextEncoder().encode(first)) })
            )
        )
        const response = yield* send(post())
        const reader = response.body?.getReader() ?? assert.fail("no body")
        const read = yield* Effect.promise(() => reader.read())
        assert.strictEqual(new TextDecoder().decode(read.value), first)
        yield* Effect.promise(() => reader.cancel())
        assert.strictEqual((yield* send(post())).status, 409)
        assert.deepStrictEqual(yield* items, ["a"])
      })
    )

  it.scopedLive("a compressed response is kept with the headers that describe it", () =>
    Effect.gen(function* () {
      const headers = { "content-encoding": "gzip", "content-disposition": "attachment", vary: "accept-encoding" }
      const body = new Uint8Array(gzipSync("a"))
      const { send } = yield* handling(() => new Response(body, { headers }))
      yield* send(post())
      const again = yield* send(post())
      assert.strictEqual(again.headers.get(replayed), "true")
      for (const [name, value] of Object.entries(headers)) assert.strictEqual(again.headers.get(name), value)
      assert.deepStrictEqual(new Uint8Array(yield* Effect.promise(() => again.arrayBuffer())), body)
    })
  )

  it.scopedLive("a body of unknown length is not compared with another one", () =>
    Effect.gen(function* () {
      const { items, send } = yield* handling(() => new Response("done"))
      const body = new Blob(["a"]).stream()
      assert.strictEqual((yield* send(post({ body, duplex: "half" }))).status, 200)
      const headers = { "idempotency-key": "one", "content-length": "1" }
      const again = yield* send(post({ body: "a", headers }))
      assert.deepStrictEqual([again.status, again.headers.get(replayed)], [200, "true"])
      assert.strictEqual((yield* send(post({}, "http://localhost/items?x=1"))).status, 422)
      assert.deepStrictEqual(yield* items, ["a"])
    })
  )

  it.scopedLive("a request in a read-only transaction stores no key", () =>
    Effect.gen(function* () {
      const { send } = yield* handling(() => new Response("read"), { access: "read only" })
      for (let n = 0; n < 2; n++) {
        const response = yield* send(post())
        assert.deepStrictEqual([response.status, response.headers.get(replayed)], [200, null])
      }
    })
  )

  it.scopedLive("headers of a list are kept", () =>
    Effect.gen(function* () {
      const { items, layer } = yield* databases
      const runtime = yield* opened(layer)
      const middleware = runtime.middleware({ idempotencyKey: { database: Db, keepAnswer: true } })
      const url = yield* listen(() =>
        createServer((request, response) =>
          middleware(request, response, () => {
            void runtime.runPromise(insert).then(() => {
              response.writeHead(201, ["content-type", "text/x", "location", "/there"])
              response.end("done")
            })
          })
        ).listen(0, "127.0.0.1")
      )
      yield* sendTo(url)
      const again = yield* sendTo(url)
      assert.deepStrictEqual([again.status, again.text, again.headers.get(replayed)], [201, "done", "true"])
      assert.deepStrictEqual([again.headers.get("content-type"), again.headers.get("location")], ["text/x", "/there"])
      assert.deepStrictEqual(yield* items, ["a"])
    })
  )
})

describe("requests of @effect/platform with idempotency keys", () => {
  const inserted = Effect.as(insert, HttpServerResponse.text("done", { status: 201 }))

  it.scopedLive("a request of Node whose body was read by outer code is done once", () =>
    Effect.gen(function* () {
      const { items, layer } = yield* databases
      const app = HttpRouter.empty.pipe(HttpRouter.all("*", Effect.orDie(inserted)), HttpRouter.use(stored))
      const reading = Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ text }) => Effect.zipRight(text, app))
      const url = yield* served(HttpServer.serve(reading), layer)
      for (const isReplayed of [null, "true"]) {
        const { headers, status } = yield* sendTo(url, { body: "a" })
        assert.deepStrictEqual([status, headers.get(replayed)], [201, isReplayed])
      }
      assert.deepStrictEqual(yield* items, ["a"])
    })
  )

  it.scopedLive("a web request whose body was read by outer code is done once, with any host", () =>
    Effect.gen(function* () {
      const { items, layer } = yield* databases
      const reading = Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ text }) =>
        Effect.zipRight(text, stored(inserted))
      )
      const { handler, dispose } = HttpApp.toWebHandlerLayer(
        Effect.orDie(reading),
        Layer.provide(layer, Logger.remove(Logger.defaultLogger))
      )
      yield* Effect.addFinalizer(() => Effect.promise(dispose))
      const headers = { "idempotency-key": "one", "content-length": "1" }
      for (const [host, isReplayed] of [
        ["http://a", null],
        ["https://b:8080", "true"]
      ] as const) {
        const response = yield* Effect.promise(() => handler(post({ body: "a", headers }, `${host}/items`)))
        assert.deepStrictEqual([response.status, response.headers.get(replayed)], [201, isReplayed])
      }
      assert.deepStrictEqual(yield* items, ["a"])
    })
  )

  it.scopedLive("the middleware of a server sends one response to a request with a key", () =>
    Effect.gen(function* () {
      const { layer } = yield* databases
      let sent = 0
      const send = () => Effect.sync(() => ++sent)
      yield* HttpApp.toHandled(Effect.orDie(inserted), send, stored).pipe(
        Effect.provideService(
          HttpServerRequest.HttpServerRequest,
          HttpServerRequest.fromWeb(post({ body: "a", headers: { "idempotency-key": "one", "content-length": "1" } }))
        ),
        Effect.provide(layer)
      )
      assert.strictEqual(sent, 1)
    })
  )
})
