/** The ways in which Hono answers, in a unit of work. */
import { createServer } from "node:http"
import { assert, layer } from "@effect/vitest"
import { getRequestListener } from "@hono/node-server"
import * as Effect from "effect/Effect"
import { Hono } from "hono"
import { setCookie } from "hono/cookie"
import { HTTPException } from "hono/http-exception"
import { stream, streamSSE } from "hono/streaming"
import { idle, post, problem, send, stored, textOf } from "../support/suites/requests/client.js"
import { inUnit } from "../support/suites/requests/hono.js"
import { listening } from "../support/suites/requests/listen.js"
import { hear, hearing, tell } from "../support/suites/requests/messages.js"
import { plainSite, type Serve } from "../support/suites/requests/site.js"

const serve: Serve = (runtime) => {
  const { db } = runtime.databases
  const add = async (name: string) => void (await db.writer`INSERT INTO item ${db.writer.insert({ name })}`)
  const orphan = async () => void (await db.writer`INSERT INTO late VALUES (-1)`)

  const app = new Hono()
  app.use(async (c, next) => {
    await next()
    c.res.headers.set("x-outside", "yes")
  })
  app.use("/unit/*", inUnit(runtime))
  app.use("/unit/stacked", inUnit(runtime))
  app.use("/conflict", inUnit(runtime))
  app.use("/conflict", async (_, next) => {
    await add("conflict")
    await next()
  })
  app.use("/conflict", inUnit(runtime, { transaction: { isolation: "serializable" } }))
  app.use(
    "/faulty",
    inUnit(runtime, {
      outcome: () => {
        throw new Error("a fault in an option")
      }
    })
  )
  app.onError((error, c) => {
    if (error instanceof HTTPException) return error.getResponse()
    return error.message === "refused" ? c.text("refused", 409) : c.text("an error", 500)
  })
  app.notFound((c) => c.text("nothing here", 404))

  app.post("/conflict", (c) => c.text("not this"))
  app.post("/faulty", async (c) => {
    await add("faulty")
    return c.text("not this")
  })
  app.post("/unit/refused", async () => {
    await add("refused")
    throw new Error("refused")
  })
  app.post("/unit/forbidden", async () => {
    await add("forbidden")
    throw new HTTPException(403, { message: "forbidden" })
  })
  app.use("/unit/unknown", async (_, next) => {
    await add("unknown")
    await next()
  })
  app.post("/unit/redirect", async (c) => {
    await add("redirect")
    return c.redirect("/elsewhere", 303)
  })
  app.post("/unit/cookies", async (c) => {
    await add("cookies")
    setCookie(c, "one", "1")
    setCookie(c, "other", "2")
    return c.json({ stored: true })
  })
  app.post("/unit/stacked", async (c) => {
    await add("stacked")
    return c.text("stacked")
  })
  app.get("/unit/head", async (c) => {
    await add("head")
    return c.text("body")
  })
  app.post("/unit/events", async (c) => {
    await add("events: in time")
    return streamSSE(c, async (out) => {
      await hear("events: seen")
      await db.independent(() => add("events: own"))
      await out.writeSSE({ data: "1" })
    })
  })
  app.post("/unit/abandoned", async (c) => {
    await add("abandoned")
    await orphan()
    c.header("set-cookie", "stored=yes")
    return stream(c, async (out) => {
      out.onAbort(() => tell("abandoned"))
      await out.write("stored")
      await hear("abandoned")
    })
  })
  return listening(createServer(getRequestListener(app.fetch)).listen(0, "127.0.0.1"))
}

layer(plainSite(serve), { excludeTestServices: true, timeout: "30 seconds" })("the details of Hono", (it) => {
  for (const [path, status, body, rows] of [
    ["unit/refused", 409, "refused", []],
    ["unit/forbidden", 403, "forbidden", []],
    ["unit/unknown", 404, "nothing here", []],
    ["unit/stacked", 200, "stacked", ["stacked"]],
    ["conflict", 500, "an error", []],
    ["faulty", 500, "could not be stored", []]
  ] as const) {
    it.scoped(`POST ${path} is answered with ${status}, and is ${rows.length === 0 ? "rolled back" : "stored"}`, () =>
      Effect.gen(function* () {
        const response = yield* post(`/${path}`)
        assert.strictEqual(response.status, status)
        assert.include(yield* textOf(response), body)
        assert.strictEqual(response.headers.get("x-outside"), "yes")
        assert.deepStrictEqual(yield* stored(path.replace("unit/", "")), [...rows])
        yield* idle
      })
    )
  }

  it.scoped("a redirect, and cookies, are sent as they were set", () =>
    Effect.gen(function* () {
      const redirect = yield* post("/unit/redirect")
      assert.deepStrictEqual([redirect.status, redirect.headers.get("location")], [303, "/elsewhere"])
      const cookies = yield* post("/unit/cookies")
      assert.deepStrictEqual(cookies.headers.getSetCookie(), ["one=1; Path=/", "other=2; Path=/"])
      assert.deepStrictEqual(yield* stored("cookies"), ["cookies"])
    })
  )

  it.scoped("a HEAD request is stored, and its answer has no body", () =>
    Effect.gen(function* () {
      const { body, status } = yield* send({ method: "HEAD", path: "/unit/head" })
      assert.deepStrictEqual([status, body.length], [200, 0])
      assert.deepStrictEqual(yield* stored("head"), ["head"])
    })
  )

  it.scoped("server-sent events are sent after the commit", () =>
    Effect.gen(function* () {
      const response = yield* post("/unit/events")
      assert.deepStrictEqual(yield* stored("events"), ["events: in time"])
      tell("events: seen")
      assert.strictEqual(yield* textOf(response), "data: 1\n\n")
      assert.deepStrictEqual(yield* stored("events"), ["events: in time", "events: own"])
      yield* idle
    })
  )

  it.scoped("the body of a replaced answer is cancelled, and its writer is notified", () =>
    Effect.gen(function* () {
      const response = yield* post("/unit/abandoned")
      assert.deepStrictEqual([response.status, response.headers.get("content-type")], [500, problem])
      assert.isNull(response.headers.get("set-cookie"))
      assert.notInclude(yield* textOf(response), '"stored"')
      yield* hearing("abandoned")
      assert.deepStrictEqual(yield* stored("abandoned"), [])
      yield* idle
    })
  )
})
