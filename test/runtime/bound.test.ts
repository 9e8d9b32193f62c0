/**
 * Databases that are open for as long as something else runs: a program, a server, a framework, or
 * nothing that has an end.
 */
import * as http from "node:http"
import { HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { serve } from "@hono/node-server"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { DatabaseRuntime, RequestTransaction } from "effect-db"
import express from "express"
import { fastify } from "fastify"
import { Hono } from "hono"
import { startChild } from "../support/child.js"
import { Db, freshTable, insert, Place, stored } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { query } from "../support/server.js"
import { listening, portOf } from "../support/suites/requests/listen.js"
import { hear, hearing, tell, telling } from "../support/suites/requests/messages.js"

const sessions = Effect.flatMap(Place, ({ writer }) =>
  Effect.map(
    query<{ n: number }>(
      writer,
      "SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ),
    ([row]) => row?.n
  )
)

/** Waits until all sessions are gone; a server process needs time to end. */
const noSessions = eventually(sessions, (n) => n === 0)

const place = Layer.scoped(Place, freshTable)

/** Creates a runtime, and a handler that stores a row and answers when it is released. */
const fresh = (name: string) =>
  Effect.map(Place, ({ writer }) => {
    const runtime = DatabaseRuntime.make({ db: Db }, Db.layer({ writer }))
    const { db } = runtime.databases
    const handle = async () => {
      await db.writer`INSERT INTO item ${db.writer.insert({ name })}`
      tell(`${name}: under way`)
      await hear(`${name}: go on`)
      return "stored"
    }
    return { runtime, handle }
  })

interface Answer {
  readonly status: number | undefined
  readonly text: string
}

/** Sends a request whose connection is not kept, so that no server has to wait for that. */
const post = (port: number) =>
  Effect.async<Answer, Error>((resume) => {
    const request = http.request({ host: "127.0.0.1", port, method: "POST", agent: false }, (response) => {
      let text = ""
      response.setEncoding("utf8").on("data", (part: string) => {
        text += part
      })
      response.on("end", () => resume(Effect.succeed({ status: response.statusCode, text })))
    })
    request.on("error", (error) => resume(Effect.fail(error)))
    request.end()
  })

const hot = new URL("../support/hot.ts", import.meta.url).pathname

/** Stops a server in the middle of a request: the request is answered and stored, then all is closed. */
const stoppedIn = (name: string, port: number, stop: () => Promise<void>) =>
  Effect.gen(function* () {
    const request = yield* Effect.fork(post(port))
    yield* hearing(`${name}: under way`)
    const stopping = stop()
    tell(`${name}: go on`)
    const response = yield* request
    assert.deepStrictEqual([response.status, response.text], [200, "stored"])
    yield* Effect.promise(() => stopping)
    assert.deepStrictEqual(yield* stored, [name])
    yield* noSessions
  })

describe("databases that are bound to a lifetime", () => {
  it.scopedLive("databases bound to a program are closed at its end, or by a signal that ends it and rolls back", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const waiting = yield* startChild("program", ["wait"], writer)
      assert.strictEqual(yield* waiting.line, "under way")
      assert.strictEqual(yield* sessions, 1)
      yield* waiting.signal("SIGTERM")
      const stopped = yield* waiting.ended
      assert.strictEqual(stopped.stderr, "")
      assert.isNumber(stopped.code)
      yield* noSessions
      assert.deepStrictEqual(yield* stored, [])

      const ending = yield* startChild("program", [], writer)
      assert.deepStrictEqual(yield* ending.ended, { code: 0, lines: ["under way"], stderr: "" })
      yield* noSessions
      assert.deepStrictEqual(yield* stored, ["program: undone"])
    }).pipe(Effect.provide(place))
  )

  it.scopedLive("databases bound to an Effect server let a request be stored and answered, or neither", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const routes = HttpRouter.empty.pipe(
        HttpRouter.post(
          "/",
          insert("effect").pipe(
            Effect.zipRight(telling("effect: under way")),
            Effect.zipRight(hearing("effect: go on")),
            Effect.as(HttpServerResponse.text("stored"))
          )
        )
      )
      const live = HttpServer.serve(routes, RequestTransaction.middleware()).pipe(
        Layer.provideMerge(NodeHttpServer.layer(http.createServer, { port: 0, host: "127.0.0.1" })),
        Layer.provide(Db.layer({ writer }))
      )
      const scope = yield* Scope.make()
      const { address } = Context.get(yield* Layer.buildWithScope(live, scope), HttpServer.HttpServer)
      const port = address._tag === "TcpAddress" ? address.port : 0
      const request = yield* Effect.fork(Effect.option(post(port)))
      yield* hearing("effect: under way")
      const stopping = yield* Effect.fork(Scope.close(scope, Exit.void))
      tell("effect: go on")
      const response = yield* request
      yield* stopping
      const isStored = response._tag === "Some" && response.value.status === 200
      assert.deepStrictEqual(yield* stored, isStored ? ["effect"] : [])
      yield* noSessions
      assert.isTrue(Exit.isFailure(yield* Effect.exit(post(port))))
    }).pipe(Effect.provide(place))
  )

  it.scopedLive(
    "databases bound to Express let a request before the start and after the stop fail with DatabaseClosed",
    () =>
      Effect.gen(function* () {
        const { handle, runtime } = yield* fresh("express")
        const app = express()
        app.use(runtime.middleware())
        app.post("/", async (_, response) => void response.send(await handle()))
        const tell: express.ErrorRequestHandler = (error, _request, response, _next) =>
          void response.status(503).send(`${error._tag}: ${error.message}`)
        app.use(tell)
        const { close, port } = yield* Effect.promise(() => listening(app.listen(0, "127.0.0.1")))
        const early = yield* post(port)
        assert.strictEqual(early.status, 503)
        assert.include(early.text, 'DatabaseClosed: database "app" is not open yet')
        yield* Effect.promise(() => runtime.open())
        yield* stoppedIn("express", port, () => runtime.close())
        const late = yield* post(port)
        assert.strictEqual(late.status, 503)
        assert.include(late.text, 'DatabaseClosed: database "app" is closed')
        yield* Effect.promise(close)
      }).pipe(Effect.provide(place))
  )

  it.scopedLive("databases bound to the hooks of Fastify open and close with it", () =>
    Effect.gen(function* () {
      const { handle, runtime } = yield* fresh("fastify")
      const app = fastify()
      app.addHook("onReady", () => runtime.open())
      app.addHook("onClose", () => runtime.close())
      const middleware = runtime.middleware()
      app.addHook("preHandler", (request, reply, done) => middleware(request.raw, reply.raw, done))
      app.post("/", handle)
      yield* Effect.promise(() => app.listen({ port: 0, host: "127.0.0.1" }))
      yield* stoppedIn("fastify", portOf(app.server), () => app.close())
    }).pipe(Effect.provide(place))
  )

  it.scopedLive("databases bound to the server of Hono open and close with it", () =>
    Effect.gen(function* () {
      const { handle, runtime } = yield* fresh("hono")
      const app = new Hono()
      const answer = runtime.handler(async () => new Response(await handle()))
      app.post("/", (c) => answer(c.req.raw))
      yield* Effect.promise(() => runtime.open())
      const server = yield* Effect.async<ReturnType<typeof serve>>((resume) => {
        const server = serve({ fetch: app.fetch, port: 0, hostname: "127.0.0.1" }, () => resume(Effect.succeed(server)))
      })
      yield* stoppedIn("hono", portOf(server), async () => {
        await new Promise((resolve) => server.close(resolve))
        await runtime.close()
      })
    }).pipe(Effect.provide(place))
  )

  it.scopedLive("databases bound to nothing are opened once by the first request, and found by reloaded modules", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      process.env.HOT_DATABASE_URL = Redacted.value(writer)
      const load = (version: number) =>
        Effect.promise((): Promise<typeof import("../support/hot.js")> => import(`${hot}?${version}`))
      const one = yield* load(1)
      const get = ({ GET }: typeof one) => Effect.promise(() => GET(new Request("http://localhost/page")))
      assert.strictEqual(yield* sessions, 0)
      const first = yield* Effect.all([get(one), get(one)], { concurrency: 2 })
      const other = yield* load(2)
      assert.notStrictEqual(other.GET, one.GET)
      const pids = yield* Effect.forEach([...first, yield* get(other)], (page) => Effect.promise(() => page.text()))
      assert.strictEqual(new Set(pids).size, 1)
      assert.strictEqual(yield* sessions, 1)
      yield* Effect.promise(other.close)
      yield* noSessions
    }).pipe(Effect.provide(place))
  )
})
