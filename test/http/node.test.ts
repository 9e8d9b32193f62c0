/**
 * Servers of HTTP/1 and HTTP/2, by Node and by Fastify: pipelined requests, disconnects, aborted uploads,
 * trailers, early hints and closed streams.
 */
import { execFileSync } from "node:child_process"
import { once } from "node:events"
import * as http from "node:http"
import * as http2 from "node:http2"
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { fastify } from "fastify"
import { atOnce, idle, post, problem, send, stored } from "../support/suites/requests/client.js"
import { listening, portOf } from "../support/suites/requests/listen.js"
import { hear, hearing, tell } from "../support/suites/requests/messages.js"
import type { Runtime } from "../support/suites/requests/plain.js"
import { plainSite, type Serve, Site } from "../support/suites/requests/site.js"

/** The members of a request, and then of a response, that both versions of HTTP have. */
interface Ask {
  readonly url?: string | undefined
  readonly on: (event: "data" | "end" | "error", listener: (part: unknown) => void) => unknown
}
interface Reply {
  statusCode: number
  readonly setHeader: (name: string, value: string) => unknown
  readonly addTrailers: (trailers: Record<string, string>) => void
  readonly writeEarlyHints: (hints: { readonly link: string }) => void
  readonly write: (part: string) => boolean
  readonly end: { (): unknown; (part: string): unknown }
}

const bodyOf = (request: Ask): Promise<string> =>
  new Promise((resolve, reject) => {
    let text = ""
    request.on("data", (part) => {
      text += String(part)
    })
    request.on("end", () => resolve(text))
    request.on("error", reject)
  })

/** Returns the handler of all paths. It stores the name of the path, and parts of the name select the answer. */
const answering = ({ databases: { db } }: Runtime) => {
  const add = async (name: string) => void (await db.writer`INSERT INTO item ${db.writer.insert({ name })}`)
  const orphan = async () => void (await db.writer`INSERT INTO late VALUES (-1)`)
  return async (request: Ask, response: Reply): Promise<void> => {
    const name = (request.url ?? "").slice(1)
    await add(name)
    if (name.endsWith("orphan")) await orphan()
    if (name.endsWith("throws")) throw new Error("a bug")
    if (name.endsWith("waits")) {
      tell(`${name}: under way`)
      await hear(`${name}: go on`)
    }
    if (name.endsWith("upload")) {
      tell(`${name}: under way`)
      await bodyOf(request)
    }
    if (name.includes("hint")) response.writeEarlyHints({ link: "</style.css>; rel=preload; as=style" })
    if (name.includes("trailer")) {
      response.setHeader("trailer", "x-sum")
      response.write("in ")
      response.addTrailers({ "x-sum": "2" })
      response.end("parts")
    } else if (name.includes("empty")) {
      response.statusCode = 204
      response.end()
    } else {
      response.setHeader("x-name", name)
      response.end(name)
      if (name.endsWith("late-header")) response.setHeader("x-late", "yes")
    }
  }
}

const failing = (response: Reply) => (error: unknown) => {
  response.statusCode = 500
  response.end(String(error))
}

const serve: Serve = (runtime) => {
  const answer = answering(runtime)
  const middleware = runtime.middleware()
  const server = http.createServer((request, response) =>
    middleware(request, response, () => void answer(request, response).catch(failing(response)))
  )
  return listening(server.listen(0, "127.0.0.1"))
}

layer(plainSite(serve), { excludeTestServices: true, timeout: "30 seconds" })("a server of HTTP/1", (it) => {
  it.scoped("requests that are written at once are answered in order, each by its own transaction", () =>
    Effect.gen(function* () {
      tell("line-waits: go on")
      const paths = ["line-waits", "line-orphan", "line-throws", "line-trailer", "line-empty", "line-last"]
      const statuses = yield* atOnce(paths.map((path) => `/${path}`))
      assert.deepStrictEqual(statuses, [200, 500, 500, 200, 204, 200])
      assert.deepStrictEqual(yield* stored("line"), ["line-empty", "line-last", "line-trailer", "line-waits"])
      yield* idle
    })
  )

  it.scoped("a disconnect rolls back all pipelined requests, also those whose response waits for another", () =>
    Effect.gen(function* () {
      const underWay = Effect.all([hearing("gone-1-waits: under way"), hearing("gone-2-waits: under way")])
      yield* Effect.raceFirst(atOnce(["/gone-1-waits", "/gone-2-waits"]), underWay)
      yield* idle
      assert.deepStrictEqual(yield* stored("gone"), [])
    })
  )

  it.scoped("a request whose upload is aborted is rolled back, and the next request is served", () =>
    Effect.gen(function* () {
      const broken = yield* Effect.fork(
        send({ path: "/upload", headers: { "content-length": 10 } }, (request) => {
          request.write("half")
          hear("upload: under way").then(() => request.destroy())
        }).pipe(Effect.exit)
      )
      yield* broken
      yield* idle
      assert.deepStrictEqual(yield* stored("upload"), [])
      assert.strictEqual((yield* post("/after-upload")).status, 200)
    })
  )

  it.scoped("trailers and hints are sent with the response, and an error that replaces it has no trailers", () =>
    Effect.gen(function* () {
      const { port } = yield* Site
      const ask = (path: string) =>
        Effect.async<unknown>((resume) => {
          const hints: Array<unknown> = []
          const request = http.request({ host: "127.0.0.1", port, path, method: "POST" })
          request.on("information", ({ statusCode }) => hints.push(statusCode))
          request.once("response", (response) => {
            response.resume().once("end", () => {
              const { headers, statusCode, trailers } = response
              resume(Effect.succeed([hints, statusCode, headers.trailer, { ...trailers }]))
            })
          })
          request.end()
        })
      assert.deepStrictEqual(yield* ask("/trailer-hint"), [[103], 200, "x-sum", { "x-sum": "2" }])
      assert.deepStrictEqual(yield* ask("/trailer-hint-orphan"), [[103], 500, undefined, {}])
      assert.deepStrictEqual(yield* stored("trailer"), ["trailer-hint"])
    })
  )

  it.scoped("a header that is set while the response is held is sent with it", () =>
    Effect.gen(function* () {
      const { headers, status } = yield* post("/late-header")
      assert.deepStrictEqual([status, headers.get("x-late")], [200, "yes"])
    })
  )
})

const serveNode2: Serve = async (runtime) => {
  const answer = answering(runtime)
  const middleware = runtime.middleware()
  const server = http2.createServer(async (request, response) => {
    if (request.url.endsWith("closed-waits")) {
      const closed = once(response, "close")
      tell(`${request.url}: arrived`)
      await closed
    }
    middleware(request, response, () => void answer(request, response).catch(failing(response)))
  })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  return { port: portOf(server), close: () => new Promise((resolve) => server.close(() => resolve())) }
}

/** A key and its certificate, in one text. */
const pem = execFileSync(
  "openssl",
  "req -x509 -days 2 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -keyout - -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1".split(
    " "
  ),
  { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }
)
const serveFastify2: Serve = async (runtime) => {
  const answer = answering(runtime)
  const middleware = runtime.middleware()
  const app = fastify({ http2: true, https: { key: pem, cert: pem } })
  app.addHook("preHandler", (request, reply, done) => middleware(request.raw, reply.raw, done))
  app.post("/*", async (request, reply) => {
    await answer(request.raw, reply.raw)
    return reply.hijack()
  })
  await app.listen({ port: 0, host: "127.0.0.1" })
  return { port: portOf(app.server), close: () => app.close() }
}

for (const [name, scheme, site] of [
  ["Node", "http", plainSite(serveNode2)],
  ["Fastify", "https", plainSite(serveFastify2)]
] as const) {
  layer(site, { excludeTestServices: true, timeout: "30 seconds" })(`a server of HTTP/2, by ${name}`, (it) => {
    const session = Effect.flatMap(Site, ({ port }) =>
      Effect.acquireRelease(
        Effect.sync(() => http2.connect(`${scheme}://127.0.0.1:${port}`, { ca: pem })),
        (session) => Effect.sync(() => session.destroy())
      )
    )

    /** Sends a request, and returns the status, some headers and the body of its response. */
    const ask = (session: http2.ClientHttp2Session, path: string) =>
      Effect.async<ReadonlyArray<unknown>>((resume) => {
        const stream = session.request({ ":method": "POST", ":path": `/${path}` })
        let answer: ReadonlyArray<unknown> = []
        let text = ""
        stream.once("response", (headers) => {
          answer = [headers[":status"], headers["content-type"], headers["x-name"]]
        })
        stream.on("data", (part) => {
          text += String(part)
        })
        stream.once("error", (error) => resume(Effect.die(error)))
        stream.once("end", () => resume(Effect.succeed([...answer, text])))
        stream.end()
        return Effect.sync(() => stream.close())
      })

    it.scoped("a request over HTTP/2 is answered after its commit, or with an error", () =>
      Effect.gen(function* () {
        const client = yield* session
        const [one, refused, thrown, parts, empty] = yield* Effect.all(
          ["two-one", "two-orphan", "two-throws", "two-trailer", "two-empty"].map((path) => ask(client, path)),
          { concurrency: "unbounded" }
        )
        assert.deepStrictEqual(one, [200, undefined, "two-one", "two-one"])
        assert.deepStrictEqual(refused?.slice(0, 3), [500, problem, undefined])
        assert.include(refused?.[3], "could not be stored")
        assert.strictEqual(thrown?.[0], 500)
        assert.deepStrictEqual([parts?.[0], parts?.[3]], [200, "in parts"])
        assert.strictEqual(empty?.[0], 204)
        assert.deepStrictEqual(yield* stored("two"), ["two-empty", "two-one", "two-trailer"])
        yield* idle
      })
    )

    it.scoped("a request whose client closes its HTTP/2 stream is rolled back, and the connection stays open", () =>
      Effect.gen(function* () {
        const client = yield* session
        const path = `${name}-gone-waits`
        yield* Effect.raceFirst(ask(client, path), hearing(`${path}: under way`))
        yield* idle
        assert.deepStrictEqual(yield* stored(name), [])
        assert.strictEqual((yield* ask(client, `${name}-next`))[0], 200)
        assert.deepStrictEqual(yield* stored(name), [`${name}-next`])
      })
    )

    if (name !== "Node") return
    it.scoped("a request whose HTTP/2 stream is closed before the middleware is called is rolled back as well", () =>
      Effect.gen(function* () {
        const client = yield* session
        yield* Effect.raceFirst(ask(client, "closed-waits"), hearing("/closed-waits: arrived"))
        assert.strictEqual((yield* ask(client, "after-closed"))[0], 200)
        yield* idle
        assert.deepStrictEqual(yield* stored("closed"), [])
      })
    )
  })
}
