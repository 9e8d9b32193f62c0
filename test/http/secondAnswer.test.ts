/** A handler that answers once more, or throws after its answer: the first answer decides, as it does without the middleware. */
import type { ServerResponse } from "node:http"
import * as http from "node:http"
import * as http2 from "node:http2"
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import express from "express"
import { fastify } from "fastify"
import { idle, post, problem, send, stored } from "../support/suites/requests/client.js"
import { listening, portOf } from "../support/suites/requests/listen.js"
import { hearing, tell } from "../support/suites/requests/messages.js"
import type { Runtime } from "../support/suites/requests/plain.js"
import { plainSite, type Serve, Site } from "../support/suites/requests/site.js"

const large = Buffer.alloc(10_000_000, "0123456789\n")

const writesOf = ({ databases: { db } }: Runtime) => ({
  add: async (name: string) => void (await db.writer`INSERT INTO item ${db.writer.insert({ name })}`),
  orphan: async () => void (await db.writer`INSERT INTO late VALUES (-1)`)
})

/** Calls a method of the response, and returns the exception or the error of its callback. */
const errorOf = (call: (done: (error?: unknown) => void) => unknown): Promise<unknown> =>
  new Promise((resolve) => {
    try {
      call((error) => resolve(codeOf(error)))
    } catch (error) {
      resolve(codeOf(error))
    }
  })

const codeOf = (error: unknown): unknown => (error instanceof Error && "code" in error ? error.code : error)

// --- Express

/**
 * The handlers by their names, and their results: the status, the body, and if the row is stored.
 */
const inExpress: Readonly<
  Record<
    string,
    readonly [number, string, boolean, (response: express.Response, next: express.NextFunction) => unknown]
  >
> = {
  "send-twice": [200, "one", true, (response) => response.send("one") && response.send("more")],
  "send-refused-then-fine": [404, "one", false, (_) => _.status(404).send("one") && _.status(200).send("more")],
  "send-fine-then-refused": [200, "one", true, (_) => _.send("one") && _.status(500).send("more")],
  "json-twice": [200, '{"a":1}', true, (_) => _.json({ a: 1 }) && _.status(201).json({ a: 12345 })],
  "send-then-json": [200, "one", true, (_) => _.type("text").send("one") && _.json({ a: 1 })],
  "redirect-twice": [303, "/first", true, (_) => [_.redirect(303, "/first"), _.redirect(301, "/another-one")]],
  "send-then-redirect": [200, "one", true, (_) => _.send("one") && _.redirect("/elsewhere")],
  "status-then-send": [204, "", true, (_) => _.status(204).end() && _.status(500).send("more")],
  "send-then-throw": [
    200,
    "one",
    true,
    (response) => {
      response.send("one")
      throw new Error("a bug")
    }
  ],
  "refuse-then-throw": [
    404,
    "one",
    false,
    (response) => {
      response.status(404).send("one")
      throw new Error("a bug")
    }
  ],
  "send-then-next": [200, "one", true, (response, next) => response.send("one") && next(new Error("a bug"))],
  "send-then-handled": [
    200,
    "one",
    true,
    (response) => {
      response.send("one")
      throw Object.assign(new Error("a bug"), { isHandled: true })
    }
  ],
  "send-then-destroy": [200, "one", true, (response) => response.send("one") && response.destroy()],
  "send-then-destroy-request": [200, "one", true, (response) => response.send("one") && response.req.destroy()]
}

const serveExpress: Serve = (runtime) => {
  const { add, orphan } = writesOf(runtime)
  const app = express()
  app.set("env", "test")
  app.use(runtime.middleware())
  for (const [name, [, , , answer]] of Object.entries(inExpress)) {
    app.post(`/${name}`, async (_, response, next) => {
      await add(name)
      await answer(response, next)
    })
  }
  app.post("/large-then-throw", async (_, response) => {
    await add("large-then-throw")
    response.send(large)
    throw new Error("a bug")
  })
  app.post("/orphan-then-throw", async (_, response) => {
    await add("orphan-then-throw")
    await orphan()
    response.send("one")
    throw new Error("a bug")
  })
  app.post("/write-then-throw", async (_, response) => {
    await add("write-then-throw")
    response.write("half")
    throw new Error("a bug")
  })
  app.post("/seen", async (_, response) => {
    await add("seen")
    response.send("one")
    tell("seen: the second end", await errorOf((done) => response.end("more", done)))
    tell("seen: a write", await errorOf((done) => response.write("more", done)))
    tell("seen: an empty end", await errorOf((done) => response.end(done)))
  })
  app.post("/closed", async (_, response) => {
    await add("closed")
    response.once("close", async () => {
      tell("closed: the second end", await errorOf((done) => response.end("more", done)))
    })
    response.send("one")
  })
  const handle: express.ErrorRequestHandler = (error, _request, response, next) =>
    error.isHandled === true ? void response.status(500).json({ error: "handled" }) : next(error)
  app.use(handle)
  return listening(app.listen(0, "127.0.0.1"))
}

layer(plainSite(serveExpress), { excludeTestServices: true, timeout: "30 seconds" })(
  "an Express handler that answers more than once",
  (it) => {
    for (const [name, [status, body, isStored]] of Object.entries(inExpress)) {
      it.scoped(`the handler ${name} sends its first answer, and its row is ${isStored ? "stored" : "undone"}`, () =>
        Effect.gen(function* () {
          const answer = yield* send({ path: `/${name}`, agent: false })
          assert.strictEqual(answer.status, status)
          assert.strictEqual(answer.headers.location ?? answer.body.toString(), body)
          if (name === "send-then-json") assert.include(answer.headers["content-type"], "text/plain")
          assert.deepStrictEqual(yield* stored(name), isStored ? [name] : [])
          yield* idle
        })
      )
    }

    it.scoped("a large answer is sent to its end before the error handler closes the connection", () =>
      Effect.gen(function* () {
        const { body, status } = yield* send({ path: "/large-then-throw", agent: false })
        assert.strictEqual(status, 200)
        assert.isTrue(body.equals(large))
        assert.deepStrictEqual(yield* stored("large-then-throw"), ["large-then-throw"])
      })
    )

    it.scoped("a refused commit replaces the first answer although the handler has thrown since", () =>
      Effect.gen(function* () {
        const { headers, status } = yield* send({ path: "/orphan-then-throw", agent: false })
        assert.deepStrictEqual([status, headers["content-type"]], [500, problem])
        assert.deepStrictEqual(yield* stored("orphan-then-throw"), [])
        yield* idle
      })
    )

    it.scoped("an answer that was begun is aborted by an error, and its row is stored because of its status", () =>
      Effect.gen(function* () {
        const { port } = yield* Site
        const ask = Effect.async<unknown>((resume) => {
          const request = http.request({
            host: "127.0.0.1",
            port,
            path: "/write-then-throw",
            method: "POST",
            agent: false
          })
          request.once("error", () => resume(Effect.succeed("no answer")))
          request.once("response", (response) => {
            response.resume().once("error", (error) => resume(Effect.succeed([response.statusCode, codeOf(error)])))
            response.once("end", () => resume(Effect.succeed([response.statusCode, "whole"])))
          })
          request.end()
        })
        assert.deepStrictEqual(yield* ask, [200, "ECONNRESET"])
        assert.deepStrictEqual(yield* stored("write-then-throw"), ["write-then-throw"])
        yield* idle
      })
    )

    it.scoped("a write after the end reports to its callback that it came too late", () =>
      Effect.gen(function* () {
        const { body } = yield* send({ path: "/seen", agent: false })
        assert.strictEqual(body.toString(), "one")
        assert.strictEqual(yield* hearing("seen: the second end"), "ERR_STREAM_WRITE_AFTER_END")
        assert.strictEqual(yield* hearing("seen: a write"), "ERR_STREAM_WRITE_AFTER_END")
        // Node calls the callback at the end of the answer, or reports that the answer has ended
        assert.include([undefined, "ERR_STREAM_ALREADY_FINISHED"], yield* hearing("seen: an empty end"))
        const closed = yield* send({ path: "/closed", agent: false })
        assert.strictEqual(closed.body.toString(), "one")
        assert.strictEqual(yield* hearing("closed: the second end"), "ERR_STREAM_WRITE_AFTER_END")
      })
    )

    it.scoped("the server still serves after all of these requests", () =>
      Effect.gen(function* () {
        assert.strictEqual((yield* post("/none-of-these")).status, 404)
        yield* idle
      })
    )
  }
)

// --- Node and Fastify

type Reply = Pick<ServerResponse, "end" | "on" | "setHeader" | "statusCode" | "write" | "writeHead">

/** The handlers of Node's own response, and their results. */
const inNode: Readonly<Record<string, readonly [number, string, boolean, (response: Reply) => unknown]>> = {
  "end-twice": [200, "one", true, (response) => response.end("one") && response.end("more")],
  "end-and-nothing": [200, "one", true, (response) => response.end("one") && response.end()],
  "end-refused-then-fine": [
    404,
    "one",
    false,
    (response) => {
      response.statusCode = 404
      response.end("one")
      response.statusCode = 200
      response.end("more")
    }
  ],
  "end-with-length-twice": [
    200,
    "one",
    true,
    (response) => {
      response.setHeader("content-length", 3)
      response.end("one")
      response.setHeader("content-length", 4)
      response.end("more")
    }
  ],
  "write-after-end": [200, "one", true, (response) => response.end("one") && response.write("more")],
  "head-twice": [
    200,
    "one",
    true,
    (response) => response.writeHead(200) && response.writeHead(500) && response.end("one")
  ],
  "head-after-end": [200, "one", true, (response) => response.end("one") && response.writeHead(500)],
  "head-after-write": [
    200,
    "one",
    true,
    (response) => [response.write("o"), response.writeHead(500), response.end("ne")]
  ],
  "length-after-write": [
    200,
    "one",
    true,
    (response) => [response.write("o"), response.setHeader("content-length", 99), response.end("ne")]
  ]
}

/** Returns the handler of the paths of the table, and of `later`. */
const answering = (runtime: Runtime) => {
  const { add } = writesOf(runtime)
  return async (url: string, response: Reply): Promise<void> => {
    const name = url.slice(1)
    await add(name)
    if (name === "later") {
      for (const event of ["finish", "close"]) {
        response.on(event, async () => {
          const late = errorOf((done) => response.end("more", done))
          tell(`later: ${event}`, [await late, response.write("more")])
        })
      }
      response.end("one")
      return
    }
    const [, , , answer] = inNode[name] ?? [0, "", false, () => response.end("no such path")]
    await answer(response)
  }
}

const serveNode: Serve = (runtime) => {
  const answer = answering(runtime)
  const middleware = runtime.middleware()
  const server = http.createServer((request, response) =>
    middleware(request, response, () => void answer(request.url ?? "", response))
  )
  return listening(server.listen(0, "127.0.0.1"))
}

const serveFastify: Serve = async (runtime) => {
  const answer = answering(runtime)
  const { add } = writesOf(runtime)
  const middleware = runtime.middleware()
  const app = fastify({ forceCloseConnections: true })
  app.addHook("preHandler", (request, reply, done) => middleware(request.raw, reply.raw, done))
  app.post("/*", async (request, reply) => {
    reply.hijack()
    await answer(request.url, reply.raw)
  })
  app.post("/reply/send-twice", async (_, reply) => {
    await add("reply-send-twice")
    reply.send("one")
    reply.code(500).send("more")
    return reply
  })
  app.post("/reply/send-then-throw", async (_, reply) => {
    await add("reply-send-then-throw")
    reply.send("one")
    throw new Error("a bug")
  })
  await app.listen({ port: 0, host: "127.0.0.1" })
  return { port: portOf(app.server), close: () => app.close() }
}

const serveHttp2: Serve = async (runtime) => {
  const answer = answering(runtime)
  const middleware = runtime.middleware()
  const server = http2.createServer((request, response) =>
    // an HTTP/2 response has the methods that are called here
    middleware(request, response, () => void answer(request.url, response as unknown as Reply))
  )
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  return { port: portOf(server), close: () => new Promise((resolve) => server.close(() => resolve())) }
}

const ask1 = (path: string) =>
  Effect.map(send({ path: `/${path}`, agent: false }), ({ body, status }) => [status, body.toString()])

const ask2 = (path: string) =>
  Effect.flatMap(Site, ({ port }) =>
    Effect.async<ReadonlyArray<unknown>>((resume) => {
      const session = http2.connect(`http://127.0.0.1:${port}`)
      const stream = session.request({ ":method": "POST", ":path": `/${path}` })
      let status: unknown
      let text = ""
      const settle = (answer: ReadonlyArray<unknown>) => {
        session.destroy()
        resume(Effect.succeed(answer))
      }
      stream.once("response", (headers) => {
        status = headers[":status"]
      })
      stream.on("data", (part) => {
        text += String(part)
      })
      stream.once("error", (error) => settle([status, text, codeOf(error)]))
      stream.once("end", () => settle([status, text]))
      stream.end()
      return Effect.sync(() => session.destroy())
    })
  )

for (const [server, serve, ask] of [
  ["Node", serveNode, ask1],
  ["Fastify", serveFastify, ask1],
  ["HTTP/2", serveHttp2, ask2]
] as const) {
  layer(plainSite(serve), { excludeTestServices: true, timeout: "30 seconds" })(
    `a handler that ends Node's response more than once, by ${server}`,
    (it) => {
      for (const [name, [status, body, isStored]] of Object.entries(inNode)) {
        it.scoped(`the handler ${name} sends its first answer, and its row is ${isStored ? "stored" : "undone"}`, () =>
          Effect.gen(function* () {
            assert.deepStrictEqual(yield* ask(name), [status, body])
            assert.deepStrictEqual(yield* stored(name), isStored ? [name] : [])
            yield* idle
          })
        )
      }

      it.scoped("a second answer on the event finish or close of the first changes nothing", () =>
        Effect.gen(function* () {
          assert.deepStrictEqual(yield* ask("later"), [200, "one"])
          yield* hearing("later: finish")
          yield* hearing("later: close")
          assert.deepStrictEqual(yield* stored("later"), ["later"])
          yield* idle
        })
      )

      if (server !== "Fastify") return
      for (const name of ["send-twice", "send-then-throw"]) {
        it.scoped(`the reply ${name} sends its first answer, and its row is stored`, () =>
          Effect.gen(function* () {
            assert.deepStrictEqual(yield* ask(`reply/${name}`), [200, "one"])
            assert.deepStrictEqual(yield* stored(`reply-${name}`), [`reply-${name}`])
            yield* idle
          })
        )
      }
    }
  )
}
