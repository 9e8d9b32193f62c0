import { HttpClient, HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { RequestTransaction } from "effect-db"
import { describe } from "vitest"
import { event } from "../support/audit.js"
import { Audit, active, Db, fresh, idle, insert, Place, stored } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { answers, makeProxy } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"

const respond = (status: number) => HttpServerResponse.empty({ status })

const routes = HttpRouter.empty.pipe(
  HttpRouter.post(
    "/status/:status",
    Effect.gen(function* () {
      const { status } = yield* HttpRouter.params
      yield* insert(`status ${status}`)
      return respond(Number(status))
    })
  ),
  HttpRouter.post("/fail", Effect.zipRight(insert("fail"), Effect.fail("no"))),
  HttpRouter.post("/die", Effect.zipRight(insert("die"), Effect.die("bug"))),
  HttpRouter.post("/nothing", Effect.succeed(respond(204))),
  HttpRouter.post(
    "/deferred",
    Effect.flatMap(Db.writer, (sql) => Effect.as(sql`INSERT INTO late VALUES (1)`, respond(201)))
  ),
  HttpRouter.post("/ignored", Effect.as(Effect.zipRight(insert("x"), Effect.ignore(insert("x"))), respond(200)))
)

const post = (path: string) => Effect.flatMap(HttpClient.HttpClient, (client) => client.post(path))

const table = Effect.flatMap(Place, ({ writer }) =>
  query(writer, "CREATE TABLE late (n int REFERENCES item DEFERRABLE INITIALLY DEFERRED)")
)

/** Declares the tests that are the same for each place of the middleware. */
const suite = (name: string, serve: Layer.Layer<never, never, HttpServer.HttpServer | Db>) => {
  const app = Layer.provideMerge(serve, Layer.merge(NodeHttpServer.layerTest, fresh()))

  describe(name, () => {
    it.scopedLive("a status below 400 commits before the response is sent, and 400 and above roll back", () =>
      Effect.gen(function* () {
        for (const status of [200, 201, 204, 301, 304, 399]) {
          assert.strictEqual((yield* post(`/status/${status}`)).status, status)
          assert.include(yield* stored, `status ${status}`)
        }
        for (const status of [400, 404, 500, 503]) {
          assert.strictEqual((yield* post(`/status/${status}`)).status, status)
          assert.notInclude(yield* stored, `status ${status}`)
        }
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(app))
    )

    it.scopedLive("a failure and a defect roll back the request", () =>
      Effect.gen(function* () {
        assert.strictEqual((yield* post("/fail")).status, 500)
        assert.strictEqual((yield* post("/die")).status, 500)
        assert.deepStrictEqual(yield* stored, [])
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(app))
    )

    it.scopedLive("a failed commit is answered with an error", () =>
      Effect.gen(function* () {
        yield* table
        const deferred = yield* post("/deferred")
        assert.strictEqual(deferred.status, 500)
        assert.include(deferred.headers["content-type"], "application/problem+json")
        assert.notInclude(yield* deferred.text, "late")
        assert.strictEqual((yield* post("/ignored")).status, 500)
        assert.deepStrictEqual(yield* stored, [])
      }).pipe(Effect.provide(app))
    )

    it.scopedLive("a request that uses no database checks out no connection", () =>
      Effect.gen(function* () {
        const before = yield* Db.status
        assert.strictEqual((yield* post("/nothing")).status, 204)
        assert.deepStrictEqual(yield* Db.status, before)
      }).pipe(Effect.provide(app))
    )
  })
}

const transactional = RequestTransaction.middleware()

describe("RequestTransaction", () => {
  suite("RequestTransaction around the handlers", HttpServer.serve(HttpRouter.use(routes, transactional)))
  suite("RequestTransaction around the server", HttpServer.serve(routes, transactional))

  it.scopedLive("a client that disconnects interrupts its request, which rolls back", () =>
    Effect.gen(function* () {
      const inserted = yield* Deferred.make<void>()
      const ended = yield* Deferred.make<void>()
      const hanging = HttpRouter.empty.pipe(
        HttpRouter.post(
          "/hang",
          insert("gone").pipe(
            Effect.zipRight(Deferred.succeed(inserted, undefined)),
            Effect.zipRight(Effect.never),
            Effect.onInterrupt(() => Deferred.succeed(ended, undefined))
          )
        ),
        HttpRouter.use(transactional)
      )
      yield* Layer.build(HttpServer.serve(hanging))
      const request = yield* Effect.fork(post("/hang"))
      yield* Deferred.await(inserted)
      yield* Fiber.interrupt(request)
      yield* Deferred.await(ended)
      yield* idle
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(Layer.merge(NodeHttpServer.layerTest, fresh())))
  )

  it.scopedLive("a disconnect during the check before two COMMITs leaves nothing stored and nothing checked out", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      yield* query(writer, "CREATE TABLE event (what text, amount int)")
      const proxy = yield* makeProxy(writer)
      const checking = yield* proxy.when(answers("SET CONSTRAINTS"), "freeze")
      const both = HttpRouter.empty.pipe(
        HttpRouter.post("/both", insert("a").pipe(Effect.zipRight(event("b")), Effect.as(respond(201))))
      )
      // other code around the middleware may make it interruptible
      const served = HttpServer.serve(both, (app) => Effect.interruptible(transactional(app)))
      const context = yield* Layer.build(Layer.provideMerge(served, Audit.layer({ writer: proxy.url })))
      const request = yield* Effect.fork(post("/both"))
      yield* checking
      yield* Fiber.interrupt(request)
      yield* idle
      yield* proxy.thaw
      yield* eventually(Effect.provide(Audit.status, context), ({ servers }) => servers[0]?.writes?.active === 0)
      assert.deepStrictEqual(yield* stored, [])
      assert.deepStrictEqual(yield* query(writer, "SELECT FROM event"), [])
    }).pipe(Effect.provide(Layer.merge(NodeHttpServer.layerTest, fresh())))
  )

  const fault = (): never => {
    throw new Error("a fault in an option")
  }
  for (const [name, options, path] of [
    ["outcome", { outcome: fault }, "/status/200"],
    ["onCommitFailed", { onCommitFailed: fault }, "/deferred"],
    ["requestId", { requestId: fault }, "/status/200"],
    ["sqlComment", { sqlComment: fault }, "/status/200"],
    ["transaction", { transaction: fault }, "/status/200"]
  ] as const) {
    it.scopedLive(`a defect in the option ${name} is a 500, stores nothing and leaves nothing checked out`, () =>
      Effect.gen(function* () {
        yield* table
        const faulty = RequestTransaction.middleware(options)
        for (const serve of [
          HttpServer.serve(HttpRouter.use(routes, faulty)),
          HttpServer.serve(HttpRouter.use(routes, RequestTransaction.middleware({ ...options, retry: true }))),
          HttpServer.serve(routes, faulty)
        ]) {
          yield* Effect.gen(function* () {
            assert.strictEqual((yield* post(path)).status, 500)
            assert.deepStrictEqual(yield* stored, [])
            assert.strictEqual(yield* active, 0)
          }).pipe(Effect.provide(Layer.provideMerge(serve, NodeHttpServer.layerTest)))
        }
      }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
    )
  }

  it.scopedLive("the options outcome and onCommitFailed replace the choice by status and the error response", () =>
    Effect.gen(function* () {
      yield* table
      const custom = RequestTransaction.middleware({
        outcome: (response) => (response.status === 404 ? "commit" : "rollback"),
        onCommitFailed: (error) => HttpServerResponse.text(error._tag, { status: 418 })
      })
      const failing = HttpRouter.empty.pipe(
        HttpRouter.post(
          "/late",
          Effect.flatMap(Db.writer, (sql) => Effect.as(sql`INSERT INTO late VALUES (99)`, respond(404)))
        )
      )
      yield* Layer.build(HttpServer.serve(HttpRouter.use(HttpRouter.concat(routes, failing), custom)))
      yield* post("/status/404")
      yield* post("/status/200")
      assert.deepStrictEqual(yield* stored, ["status 404"])
      const refused = yield* post("/late")
      assert.strictEqual(refused.status, 418)
      assert.strictEqual(yield* refused.text, "CommitFailed")
    }).pipe(Effect.provide(Layer.merge(NodeHttpServer.layerTest, fresh())))
  )
})
