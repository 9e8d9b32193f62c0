/** The ways in which Express answers, in a unit of work. */
import * as fs from "node:fs"
import { Agent } from "node:http"
import * as os from "node:os"
import * as path from "node:path"
import { Readable } from "node:stream"
import { pipeline } from "node:stream/promises"
import { createGzip } from "node:zlib"
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import express from "express"
import { afterAll } from "vitest"
import { sends } from "../support/proxy.js"
import { idle, post, problem, send, sendAfterCommit, stored, textOf } from "../support/suites/requests/client.js"
import { listening } from "../support/suites/requests/listen.js"
import { hear, hearing, tell } from "../support/suites/requests/messages.js"
import { plainSite, type Serve, Site } from "../support/suites/requests/site.js"

const size = 10_000_000
const content = Buffer.alloc(size, "0123456789\n")
const folder = fs.mkdtempSync(path.join(os.tmpdir(), "effect-db-"))
const file = path.join(folder, "large.txt")
fs.writeFileSync(file, content)
afterAll(() => fs.rmSync(folder, { recursive: true }))

/**
 * Compresses as `compression` does: the written body goes through gzip, and the headers change when
 * they are written.
 */
const compress: express.RequestHandler = (_, response, next) => {
  const { end, write, writeHead } = response
  const gzip = createGzip()
  gzip.on("data", (part) => void (write.call(response, part, "utf8") || gzip.pause()))
  gzip.on("end", () => end.call(response, undefined, "utf8"))
  const { on } = response
  on.call(response, "drain", () => gzip.resume())
  const begin = () => void (response.headersSent || response.writeHead(response.statusCode))
  Object.assign(response, {
    writeHead: (status: number, headers: Record<string, string> = {}) => {
      for (const [name, value] of Object.entries(headers)) response.setHeader(name, value)
      response.removeHeader("content-length")
      response.setHeader("content-encoding", "gzip")
      return writeHead.call(response, status)
    },
    write: (part: string | Buffer) => {
      begin()
      return gzip.write(part)
    },
    end: (part?: string | Buffer) => {
      begin()
      gzip.end(part)
      return response
    },
    // gzip receives the body, so it emits "drain" for the writer
    on: (name: string, listener: () => void) => {
      if (name === "drain") gzip.on(name, listener)
      else on.call(response, name, listener)
      return response
    }
  })
  next()
}

/**
 * Writes the headers again with each part of the body, as some handlers do.
 */
const eager: express.RequestHandler = (_, response, next) => {
  const { write } = response
  response.write = (part: unknown) => {
    response.writeHead(response.statusCode)
    return write.call(response, part, "utf8")
  }
  next()
}

let produced = 0

/** Responses that a test looks at from outside of their handlers. */
const held: Array<express.Response> = []

const serve: Serve = (runtime) => {
  const { db } = runtime.databases
  const add = async (name: string) => void (await db.writer`INSERT INTO item ${db.writer.insert({ name })}`)
  const orphan = async () => void (await db.writer`INSERT INTO late VALUES (-1)`)
  const unit = runtime.middleware()

  const app = express()
  app.set("env", "test")
  const compressing = express.Router()
  compressing.get("/text", async (request, response) => {
    await add(`zip-text ${request.baseUrl}`)
    response.type("text").send("some text")
  })
  compressing.get("/orphan", async (_, response) => {
    await add("zip-orphan")
    await orphan()
    response.type("text").send("some text")
  })
  compressing.get("/file", (_, response) => response.sendFile(file))
  compressing.get("/slow", (_, response) => {
    const parts = async function* () {
      yield "one "
      await hear("slow: first seen")
      yield "two"
    }
    Readable.from(parts()).pipe(response)
  })
  app.use("/zip-outside", compress, unit, compressing)
  app.use("/zip-inside", unit, compress, compressing)

  app.use("/eager", unit, eager, async (_, response) => {
    await add("eager")
    response.write("one ")
    response.write("two")
    response.end()
  })

  // a write that Node refuses must fail while another answer is still possible
  app.use("/no-chunk", unit, async (request, response) => {
    await add("no-chunk")
    const nothing = null as never
    if (request.query.by === "write") response.write(nothing)
    else response.end(42 as never)
  })

  const conflicting = runtime.middleware({ transaction: { isolation: "serializable" } })
  app.use("/stacked", unit, unit, async (request, response) => {
    const name = request.path.slice(1)
    await add(name)
    if (name === "stacked-orphan") await orphan()
    if (name === "looks-sent") held.push(response)
    response.send("stacked")
    tell(name, [response.headersSent, response.writableEnded])
  })
  app.use(
    "/conflict",
    unit,
    async (_request, _response, next) => {
      await add("conflict")
      next()
    },
    conflicting,
    (_, response) => void response.send("not this")
  )

  const answering = async (_: unknown, response: express.Response) => {
    await add("faulty")
    response.send("not this")
  }
  const fault = (): never => {
    throw new Error("a fault in an option")
  }
  app.use("/faulty-outcome", runtime.middleware({ outcome: fault }), answering)
  app.use("/faulty-transaction", runtime.middleware({ transaction: fault }), answering)

  app.use(express.json(), unit)
  app.post("/continue", async (request, response) => {
    await add(String(request.body.name))
    response.sendStatus(201)
  })
  app.get("/send-file", async (_, response) => {
    await add("send-file")
    response.sendFile(file)
  })
  app.get("/download", async (_, response) => {
    await add("download")
    response.download(file, "other.txt")
  })
  app.get("/pipe", async (_, response) => {
    await add("pipe")
    fs.createReadStream(file).pipe(response)
  })
  app.get("/pipeline", async (_, response) => {
    await add("pipeline")
    await pipeline(fs.createReadStream(file), response)
    tell("pipeline")
  })
  app.get("/measured", async (_, response) => {
    await add("measured")
    const parts = function* () {
      for (let at = 0; at < size; at += 100_000) {
        produced += 100_000
        yield content.subarray(at, at + 100_000)
      }
    }
    Readable.from(parts()).pipe(response)
  })
  app.post("/redirect", async (_, response) => {
    await add("redirect")
    response.redirect(303, "/elsewhere")
  })
  app.get("/head", async (_, response) => {
    await add("head")
    response.send("body")
  })
  app.get("/head-orphan", async (_, response) => {
    await orphan()
    response.send("body")
  })
  app.post("/teapot", async (_, response) => {
    await add("teapot")
    await orphan()
    response.statusMessage = "All Is Well"
    response.setHeader("set-cookie", "stored=yes")
    await new Promise<void>((resolve) => response.end("stored", () => resolve()))
    tell("teapot")
  })
  app.post("/sync", () => {
    throw new Error("thrown")
  })
  app.post("/async", async () => {
    await add("async")
    throw new Error("rejected")
  })
  app.post("/refused", async () => {
    await add("refused")
    throw Object.assign(new Error("no"), { isRefusal: true })
  })
  app.post("/status-after", async (_, response) => {
    await add("status-after")
    response.status(500).end()
    response.statusCode = 200
  })
  app.post("/bad-header", async (_, response) => {
    await add("bad-header")
    response.writeHead(200, { "x-bad": "a\nb" })
    response.end()
  })
  app.post("/events", async (_, response) => {
    await add("events: in time")
    response.type("text/event-stream").flushHeaders()
    await hear("events: seen")
    response.write("data: 1\n\n")
    response.end("data: 2\n\n")
  })
  const refuse: express.ErrorRequestHandler = (error, _request, response, next) =>
    error.isRefusal === true ? void response.status(422).json({ error: "refused" }) : next(error)
  app.use(refuse)
  return listening(app.listen(0, "127.0.0.1"))
}

layer(plainSite(serve), { excludeTestServices: true, timeout: "30 seconds" })("the details of Express", (it) => {
  for (const where of ["outside", "inside"]) {
    it.scoped(`compression ${where} of the unit compresses the body, and that of a response that replaces it`, () =>
      Effect.gen(function* () {
        const { port } = yield* Site
        const get = (name: string) => Effect.promise(() => fetch(`http://127.0.0.1:${port}/zip-${where}/${name}`))
        const text = yield* get("text")
        assert.strictEqual(text.headers.get("content-encoding"), "gzip")
        assert.strictEqual(yield* textOf(text), "some text")
        const refused = yield* get("orphan")
        assert.strictEqual(refused.status, 500)
        assert.include(yield* textOf(refused), "could not be stored")
        const file = yield* get("file")
        assert.strictEqual(file.headers.get("content-encoding"), "gzip")
        assert.strictEqual((yield* textOf(file)).length, size)
        const slow = yield* get("slow")
        tell("slow: first seen")
        assert.strictEqual(yield* textOf(slow), "one two")
        assert.deepStrictEqual(yield* stored("zip-orphan"), [])
        assert.include(yield* stored("zip-text"), `zip-text /zip-${where}`)
        yield* idle
      })
    )
  }

  it.scoped("headers that are written with each part of the body are sent once", () =>
    Effect.gen(function* () {
      const response = yield* post("/eager")
      assert.strictEqual(yield* textOf(response), "one two")
      assert.deepStrictEqual(yield* stored("eager"), ["eager"])
    })
  )

  for (const name of ["send-file", "download", "pipe", "pipeline"]) {
    it.scoped(`10 MB by ${name} are sent after the commit`, () =>
      Effect.gen(function* () {
        const { body, headers, status } = yield* sendAfterCommit(name, { method: "GET" })
        assert.strictEqual(status, 200)
        assert.isTrue(body.equals(content))
        if (name === "download") assert.include(headers["content-disposition"], "other.txt")
        if (name === "pipeline") yield* hearing("pipeline")
        assert.include(yield* stored(name), name)
        yield* idle
      })
    )
  }

  it.scoped("the source of a response is not read to its end while the commit is under way", () =>
    Effect.gen(function* () {
      const { front } = yield* Site
      const committing = yield* front.when(sends("COMMIT"), "freeze")
      const sending = yield* Effect.fork(send({ method: "GET", path: "/measured" }))
      yield* committing
      assert.deepStrictEqual(yield* stored("measured"), [])
      assert.isAtMost(produced, 1_000_000)
      yield* front.thaw
      const { body } = yield* sending
      assert.isTrue(body.equals(content))
      assert.deepStrictEqual(yield* stored("measured"), ["measured"])
    })
  )

  it.scoped("a redirect is sent as it was set", () =>
    Effect.gen(function* () {
      const { headers, status } = yield* send({ path: "/redirect" })
      assert.deepStrictEqual([status, headers.location], [303, "/elsewhere"])
      assert.deepStrictEqual(yield* stored("redirect"), ["redirect"])
    })
  )

  it.scoped("the answer to HEAD has the headers and no body, also if it is replaced", () =>
    Effect.gen(function* () {
      const one = yield* send({ method: "HEAD", path: "/head" })
      assert.deepStrictEqual([one.status, one.headers["content-length"], one.body.length], [200, "4", 0])
      const other = yield* send({ method: "HEAD", path: "/head-orphan" })
      assert.deepStrictEqual([other.status, other.headers["content-type"], other.body.length], [500, problem, 0])
      assert.deepStrictEqual(yield* stored("head"), ["head"])
    })
  )

  it.scoped("a replaced answer leaves none of its headers and body, and the callback of its end is called", () =>
    Effect.gen(function* () {
      const response = yield* post("/teapot")
      assert.deepStrictEqual([response.status, response.statusText], [500, "Internal Server Error"])
      assert.isNull(response.headers.get("set-cookie"))
      assert.notInclude(yield* textOf(response), '"stored"')
      yield* hearing("teapot")
      assert.deepStrictEqual(yield* stored("teapot"), [])
    })
  )

  for (const [name, status] of [
    ["sync", 500],
    ["async", 500],
    ["refused", 422],
    ["status-after", 500],
    ["bad-header", 500],
    ["no-chunk?by=write", 500],
    ["no-chunk?by=end", 500],
    ["conflict", 500],
    ["faulty-outcome", 500],
    ["faulty-transaction", 500]
  ] as const) {
    it.scoped(`POST ${name} is answered with ${status}, and rolled back`, () =>
      Effect.gen(function* () {
        const response = yield* post(`/${name}`)
        assert.strictEqual(response.status, status)
        assert.notInclude(yield* textOf(response), "not this")
        assert.deepStrictEqual(yield* stored(name.replace(/^faulty.*/, "faulty").replace(/\?.*/, "")), [])
        yield* idle
      })
    )
  }

  it.scoped("a middleware inside of another one joins its unit of work", () =>
    Effect.gen(function* () {
      const response = yield* post("/stacked/stacked")
      assert.deepStrictEqual([response.status, yield* textOf(response)], [200, "stacked"])
      // the response looks sent to its handler, while it is held
      assert.deepStrictEqual(yield* hearing("stacked"), [true, true])
      const refused = yield* post("/stacked/stacked-orphan")
      assert.strictEqual(refused.status, 500)
      assert.deepStrictEqual(yield* stored("stacked"), ["stacked"])
      yield* idle
    })
  )

  it.scoped("a response under two middlewares looks sent during the commit, although it is held", () =>
    Effect.gen(function* () {
      const { front } = yield* Site
      const committing = yield* front.when(sends("COMMIT"), "freeze")
      const sending = yield* Effect.fork(post("/stacked/looks-sent"))
      yield* committing
      const [response] = held
      assert.deepStrictEqual([response?.headersSent, response?.writableEnded], [true, true])
      assert.deepStrictEqual(yield* stored("looks-sent"), [])
      yield* front.thaw
      assert.strictEqual((yield* sending).status, 200)
      assert.deepStrictEqual(yield* stored("looks-sent"), ["looks-sent"])
    })
  )

  it.scoped("an HTTP connection is kept for the next request, however the one before has ended", () =>
    Effect.gen(function* () {
      const agent = yield* Effect.acquireRelease(
        Effect.sync(() => new Agent({ keepAlive: true, maxSockets: 1 })),
        (agent) => Effect.sync(() => agent.destroy())
      )
      const seen: Array<unknown> = []
      for (const path of ["/redirect", "/teapot", "/async", "/stacked/kept-alive"]) {
        const { reused, status } = yield* send({ agent, path })
        seen.push([status, reused])
      }
      // the row of the first is stored already by an earlier test, so its INSERT fails
      assert.deepStrictEqual(seen, [
        [500, false],
        [500, true],
        [500, true],
        [200, true]
      ])
      yield* idle
    })
  )

  it.scoped("a client that sends Expect: 100-continue gets its reply, and then its body is stored", () =>
    Effect.gen(function* () {
      const body = JSON.stringify({ name: "continue" })
      const headers = { expect: "100-continue", "content-type": "application/json", "content-length": body.length }
      const { status } = yield* send({ path: "/continue", headers }, (request) => {
        request.once("continue", () => request.end(body))
        request.flushHeaders()
      })
      assert.strictEqual(status, 201)
      assert.deepStrictEqual(yield* stored("continue"), ["continue"])
    })
  )

  it.scoped("headers that are sent ahead of the body come after the commit", () =>
    Effect.gen(function* () {
      const response = yield* post("/events")
      assert.deepStrictEqual(yield* stored("events"), ["events: in time"])
      tell("events: seen")
      assert.strictEqual(yield* textOf(response), "data: 1\n\ndata: 2\n\n")
      yield* idle
    })
  )
})
