/**
 * With `retry` a body is read once and passed to each attempt, if its length is known and small.
 */
import * as http from "node:http"
import * as http2 from "node:http2"
import { HttpRouter, HttpServer, HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { DatabaseRuntime, RequestTransaction } from "effect-db"
import { describe } from "vitest"
import { Db, fresh, idle, insert, stored } from "../support/databases.js"
import { hear, tell } from "../support/suites/requests/messages.js"

const collision = "DO $$ BEGIN RAISE EXCEPTION 'collision' USING ERRCODE = 'serialization_failure'; END $$"
const collide = Effect.flatMap(Db.writer, (sql) => sql.unsafe(collision))

/** Returns a router whose handler stores the length of the body, and collides in its first run. */
const router = (name: string) => {
  let runs = 0
  const upload = Effect.gen(function* () {
    const request = yield* HttpServerRequest.HttpServerRequest
    runs++
    let length = 0
    yield* Stream.runForEach(request.stream, (part) =>
      Effect.sync(() => {
        length += part.length
        tell(`${name}: a part`)
      })
    )
    yield* insert(`run ${runs}: ${length}`)
    if (runs === 1) yield* collide
    return HttpServerResponse.empty({ status: 201 })
  })
  return HttpRouter.use(
    HttpRouter.empty.pipe(HttpRouter.all("/", upload)),
    RequestTransaction.middleware({ retry: true })
  )
}

/** Serves the router, and returns the port. */
const served = (name: string, make: () => http.Server) =>
  Effect.gen(function* () {
    const server = NodeHttpServer.layer(make, { port: 0, host: "127.0.0.1" })
    const context = yield* Layer.build(Layer.provideMerge(HttpServer.serve(router(name)), server))
    const { address } = yield* Effect.provide(HttpServer.HttpServer, context)
    return address._tag === "TcpAddress" ? address.port : 0
  })

// both kinds of server have the events and the methods that the platform needs
const http2Server = () => http2.createServer() as unknown as http.Server

/**
 * A request: its method, its headers, and the parts of its body. The second part is sent when the
 * handler has received the first.
 */
interface Sent {
  readonly method?: string
  readonly headers?: Readonly<Record<string, string>>
  readonly parts: ReadonlyArray<Buffer>
}

const write = async (
  name: string,
  { parts: [first, ...others] }: Sent,
  to: { readonly write: (part: Buffer) => unknown; readonly end: () => unknown }
) => {
  if (first !== undefined) to.write(first)
  if (others.length > 0) await hear(`${name}: a part`)
  for (const part of others) to.write(part)
  to.end()
}

const send1 = (name: string, port: number, sent: Sent) =>
  Effect.async<unknown>((resume) => {
    const request = http.request({ host: "127.0.0.1", port, method: sent.method ?? "POST", headers: sent.headers })
    request.once("error", (error) => resume(Effect.die(error)))
    request.once("response", (response) => {
      response.resume()
      resume(Effect.succeed(response.statusCode))
    })
    void write(name, sent, request)
  })

const send2 = (name: string, port: number, sent: Sent) =>
  Effect.async<unknown>((resume) => {
    const session = http2.connect(`http://127.0.0.1:${port}`)
    const stream = session.request(
      { ":method": sent.method ?? "POST", ":path": "/", ...sent.headers },
      { endStream: sent.parts.length === 0 }
    )
    stream.once("error", (error) => resume(Effect.die(error)))
    stream.once("response", (headers) => {
      session.destroy()
      resume(Effect.succeed(headers[":status"]))
    })
    if (sent.parts.length > 0) void write(name, sent, stream)
    return Effect.sync(() => session.destroy())
  })

const small = Buffer.alloc(1000, "x")
const large = Buffer.alloc(700_000, "x")

/** Requests, each with its number of attempts, and the length of the body in the last attempt. */
const cases: Readonly<Record<string, readonly [sent: Sent, runs: 1 | 2, length: number]>> = {
  "a short body of a known length": [{ headers: { "content-length": "1000" }, parts: [small] }, 2, 1000],
  "no body": [{ parts: [] }, 2, 0],
  "no body of a GET": [{ method: "GET", parts: [] }, 2, 0],
  "a body of an unknown length": [{ parts: [small, small] }, 1, 2000],
  "a long body of an unknown length": [{ parts: [large, large] }, 1, 1_400_000],
  "a long body of a known length": [{ headers: { "content-length": "1400000" }, parts: [large, large] }, 1, 1_400_000],
  "a body of a GET": [{ method: "GET", headers: { "content-length": "1000" }, parts: [small] }, 1, 1000]
}

for (const [version, make, send] of [
  ["HTTP/1", () => http.createServer(), send1],
  ["HTTP/2", http2Server, send2]
] as const) {
  describe(`a request of ${version} with retry`, () => {
    for (const [body, [sent, runs, length]] of Object.entries(cases)) {
      it.scopedLive(`a request of ${version} with retry is handled ${runs === 1 ? "once" : "twice"} with ${body}`, () =>
        Effect.gen(function* () {
          const name = `${version} ${body}`
          const status = yield* send(name, yield* served(name, make), sent)
          assert.strictEqual(status, runs === 1 ? 500 : 201)
          assert.deepStrictEqual(yield* stored, runs === 1 ? [] : [`run 2: ${length}`])
          yield* idle
        }).pipe(Effect.provide(fresh({ readers: [] })))
      )
    }
  })
}

/** Serves a handler with retry, inside of an outer middleware, and returns the answer to an empty POST. */
const answerToEmpty = (
  handler: Effect.Effect<unknown, unknown, HttpServerRequest.HttpServerRequest>,
  outer: Effect.Effect<unknown, unknown, HttpServerRequest.HttpServerRequest> = Effect.void
) =>
  Effect.gen(function* () {
    const app = Effect.flatMap(handler, (body) => HttpServerResponse.json({ body })).pipe(
      RequestTransaction.middleware({ retry: true }),
      (inner) => Effect.zipRight(outer, inner)
    )
    const server = NodeHttpServer.layer(() => http.createServer(), { port: 0, host: "127.0.0.1" })
    const context = yield* Layer.build(Layer.provideMerge(HttpServer.serve(app), server))
    const { address } = yield* Effect.provide(HttpServer.HttpServer, context)
    const port = address._tag === "TcpAddress" ? address.port : 0
    return yield* Effect.promise(async (signal) => {
      const response = await fetch(`http://127.0.0.1:${port}/`, { method: "POST", body: "", signal })
      return response.text()
    })
  })

describe("an empty body with retry", () => {
  const body = (part: "json" | "text") =>
    Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) => request[part])

  it.scopedLive("an empty body is null as JSON", () =>
    Effect.gen(function* () {
      assert.strictEqual(yield* answerToEmpty(body("json")), '{"body":null}')
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a request whose empty body an outer middleware has read is answered", () =>
    Effect.gen(function* () {
      assert.strictEqual(yield* answerToEmpty(body("text"), body("text")), '{"body":""}')
    }).pipe(Effect.provide(fresh()))
  )
})

describe("a web request with retry", () => {
  const streamed = (parts: ReadonlyArray<Buffer>) =>
    new ReadableStream<Uint8Array>({
      start: (controller) => {
        for (const part of parts) controller.enqueue(part)
        controller.close()
      }
    })
  // a stream as body needs `duplex`, which Node's types do not declare
  const half = { method: "POST", duplex: "half" } as const
  const requests: Readonly<Record<string, readonly [make: () => Request, runs: 1 | 2]>> = {
    "no body": [() => new Request("http://localhost/", { method: "POST" }), 2],
    "a short body of a known length": [
      () => new Request("http://localhost/", { method: "POST", body: small, headers: { "content-length": "1000" } }),
      2
    ],
    "a body of an unknown length": [() => new Request("http://localhost/", { ...half, body: streamed([small]) }), 1],
    "a length that is no number": [
      () => new Request("http://localhost/", { ...half, body: streamed([small]), headers: { "content-length": "x" } }),
      1
    ]
  }
  for (const [body, [make, expected]] of Object.entries(requests)) {
    it.scopedLive(`a web request with retry is handled ${expected === 1 ? "once" : "twice"} with ${body}`, () =>
      Effect.gen(function* () {
        const context = yield* Effect.context<Db>()
        const runtime = DatabaseRuntime.make({ db: Db }, Layer.succeedContext(context))
        yield* Effect.promise(() => runtime.open())
        let runs = 0
        const handle = runtime.handler(
          async (request) => {
            runs++
            await request.text()
            await runtime.runPromise(Effect.zipRight(insert(`run ${runs}`), runs === 1 ? collide : Effect.void))
            return new Response("stored")
          },
          { retry: true }
        )
        const answered = yield* Effect.promise(() =>
          handle(make()).then(
            ({ status }) => status,
            () => "thrown"
          )
        )
        assert.deepStrictEqual([answered, runs], expected === 1 ? ["thrown", 1] : [200, 2])
        yield* Effect.promise(() => runtime.close())
      }).pipe(Effect.provide(fresh()))
    )
  }
})
