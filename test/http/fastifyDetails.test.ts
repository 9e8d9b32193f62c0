/** The ways in which Fastify answers, in a unit of work. */
import { Readable } from "node:stream"
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { type FastifyInstance, type FastifyReply, fastify } from "fastify"
import { idle, post, problem, sendAfterCommit, stored, textOf } from "../support/suites/requests/client.js"
import { portOf } from "../support/suites/requests/listen.js"
import { plainSite, type Serve, Site } from "../support/suites/requests/site.js"

const large = Buffer.alloc(10_000_000, "0123456789\n")

let app: FastifyInstance

const serve: Serve = async (runtime) => {
  const { db } = runtime.databases
  const add = async (name: string) => void (await db.writer`INSERT INTO item ${db.writer.insert({ name })}`)
  const orphan = async () => void (await db.writer`INSERT INTO late VALUES (-1)`)
  const middleware = runtime.middleware()

  app = fastify({ forceCloseConnections: true })
  const answering = (name: string, answer: (reply: FastifyReply) => unknown) =>
    app.post(`/${name}`, async (_, reply) => {
      await add(name)
      return answer(reply)
    })
  // after the body was read, and before it is validated
  app.addHook("preValidation", (request, reply, done) => middleware(request.raw, reply.raw, done))
  app.addHook("preValidation", async ({ url }) => (url === "/valid" ? add("valid") : undefined))
  app.addHook("onSend", async ({ url }) => (url === "/on-send" ? add("on-send: hook") : undefined))
  app.setErrorHandler<Error & { readonly isRefusal?: boolean }>((error, _, reply) =>
    error.isRefusal === true ? reply.code(409).send({ error: "refused" }) : reply.send(error)
  )

  answering("stream", (reply) => reply.send(Readable.from([large.subarray(0, 5_000_000), large.subarray(5_000_000)])))
  answering("web-stream", (reply) => reply.send(new Response("from the web").body))
  answering("null", (reply) => reply.code(200).send(null))
  answering("returned", () => ({ returned: true }))
  answering("on-send", (reply) => reply.send("on send"))
  answering("error", (reply) => reply.send(new Error("no")))
  answering("refused", () => {
    throw Object.assign(new Error("no"), { isRefusal: true })
  })
  answering("twice", (reply) => {
    reply.send("first")
    return "second"
  })
  answering("bad-header", (reply) => reply.header("x-bad", "a\nb").send("not this"))
  answering("broken-stream", (reply) =>
    reply.send(
      new Readable({
        read() {
          this.destroy(new Error("broken"))
        }
      })
    )
  )
  answering("hijacked", (reply) => {
    reply.hijack()
    reply.raw.writeHead(202, { "content-type": "text/plain" })
    reply.raw.end("by hand")
  })
  answering("hijacked-orphan", async (reply) => {
    await orphan()
    reply.hijack()
    reply.raw.end("by hand")
  })
  const name = { type: "object", required: ["name"], properties: { name: { type: "string" } } }
  app.post("/valid", { schema: { body: name } }, async () => "valid")
  const answer = { 200: { type: "object", required: ["n"], properties: { n: { type: "number" } } } }
  app.post("/serialized", { schema: { response: answer } }, async () => {
    await add("serialized")
    return {}
  })
  await app.listen({ port: 0, host: "127.0.0.1" })
  return { port: portOf(app.server), close: () => app.close() }
}

layer(plainSite(serve), { excludeTestServices: true, timeout: "30 seconds" })("the details of Fastify", (it) => {
  for (const [name, status, body, rows] of [
    ["web-stream", 200, "from the web", ["web-stream"]],
    ["null", 200, "", ["null"]],
    ["returned", 200, '{"returned":true}', ["returned"]],
    // an onSend hook is a part of the unit of work
    ["on-send", 200, "on send", ["on-send", "on-send: hook"]],
    ["error", 500, "no", []],
    ["refused", 409, "refused", []],
    ["twice", 200, "first", ["twice"]],
    ["bad-header", 500, "Internal Server Error", []],
    ["broken-stream", 500, "broken", []],
    ["hijacked", 202, "by hand", ["hijacked"]],
    ["hijacked-orphan", 500, "could not be stored", []],
    ["serialized", 500, "required", []]
  ] as const) {
    it.scoped(`POST ${name} is answered with ${status}, and is ${rows.length === 0 ? "rolled back" : "stored"}`, () =>
      Effect.gen(function* () {
        const response = yield* post(`/${name}`)
        assert.strictEqual(response.status, status)
        assert.include(yield* textOf(response), body)
        assert.deepStrictEqual(yield* stored(name), [...rows])
        yield* idle
      })
    )
  }

  it.scoped("10 MB by stream are sent after the commit", () =>
    Effect.gen(function* () {
      const { body, status } = yield* sendAfterCommit("stream")
      assert.strictEqual(status, 200)
      assert.isTrue(body.equals(large))
      assert.deepStrictEqual(yield* stored("stream"), ["stream"])
    })
  )

  it.scoped("a body that violates its schema is answered with 400, and the work before it is rolled back", () =>
    Effect.gen(function* () {
      const { port } = yield* Site
      const sent = (body: string) =>
        Effect.promise(() =>
          fetch(`http://127.0.0.1:${port}/valid`, {
            method: "POST",
            body,
            headers: { "content-type": "application/json" }
          })
        )
      assert.strictEqual((yield* sent("{}")).status, 400)
      assert.deepStrictEqual(yield* stored("valid"), [])
      assert.strictEqual((yield* sent('{"name":"a"}')).status, 200)
      assert.deepStrictEqual(yield* stored("valid"), ["valid"])
      yield* idle
    })
  )

  it.scoped("requests that are injected, without a socket, are transactional as well", () =>
    Effect.gen(function* () {
      const inject = (url: string) => Effect.promise(() => app.inject({ method: "POST", url }))
      const refused = yield* inject("/hijacked-orphan")
      assert.deepStrictEqual([refused.statusCode, refused.headers["content-type"]], [500, problem])
      const again = yield* inject("/refused")
      assert.strictEqual(again.statusCode, 409)
      const streamed = yield* inject("/stream")
      // its row is stored already by an earlier test, so its INSERT fails
      assert.strictEqual(streamed.statusCode, 500)
      yield* idle
    })
  )
})
