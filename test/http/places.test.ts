/**
 * The places of the middleware. In each of them a unit of work has the work of the handler, and none
 * of the code around it.
 */
import {
  HttpApp,
  HttpClient,
  HttpLayerRouter,
  HttpRouter,
  HttpServer,
  type HttpServerRequest,
  HttpServerResponse
} from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import * as SqlClient from "@effect/sql/SqlClient"
import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FiberId from "effect/FiberId"
import * as FiberRef from "effect/FiberRef"
import * as FiberRefs from "effect/FiberRefs"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { DatabaseError, RequestTransaction } from "effect-db"
import { describe } from "vitest"
import { Db, fresh, idle, insert, Place, stored } from "../support/databases.js"
import { query } from "../support/server.js"

const gate = <A>() => Deferred.unsafeMake<A>(FiberId.none)

/**
 * Creates a handler, and middleware around it. Each waits for the other, so that their steps have
 * this order: `inside`, `before`, `after`, `late`. If `touches` is false, the handler itself does not
 * use the database.
 */
const makeParts = (status: number, touches: boolean) => {
  const inside = gate<void>()
  const before = gate<void>()
  const after = gate<void>()
  const late = gate<string>()
  const write = (name: string) => Effect.orDie(Effect.asVoid(insert(name)))
  const handler = Effect.gen(function* () {
    if (touches) yield* write("inside")
    // this fiber outlives the request
    yield* Effect.forkDaemon(
      Effect.zipRight(
        Deferred.await(after),
        Effect.matchEffect(DatabaseError.refine(insert("late")), {
          onFailure: ({ _tag }) => Deferred.succeed(late, _tag),
          onSuccess: () => Deferred.succeed(late, "stored")
        })
      )
    )
    const db = yield* Db
    yield* HttpApp.appendPreResponseHandler((_, response) =>
      Effect.as(Effect.provideService(write("session"), Db, db), response)
    )
    yield* Deferred.succeed(inside, undefined)
    yield* Deferred.await(before)
    return HttpServerResponse.empty({ status })
  })
  /** Middleware around the handler, with a fiber that works beside the handler, and a write after it. */
  const around = <E, R>(app: HttpApp.Default<E, R>): HttpApp.Default<E, R | Db> =>
    Effect.gen(function* () {
      yield* Effect.forkDaemon(
        Effect.zipRight(Deferred.await(inside), Effect.zipRight(write("before"), Deferred.succeed(before, undefined)))
      )
      yield* HttpApp.appendPreResponseHandler((_, response) =>
        Effect.succeed(HttpServerResponse.setHeader(response, "x-around", "yes"))
      )
      const response = yield* app
      yield* write("after")
      yield* Deferred.succeed(after, undefined)
      return response
    })
  return { handler, around, late }
}

const transactional = RequestTransaction.middleware()

type Parts = ReturnType<typeof makeParts>

const route = ({ handler }: Parts) => HttpRouter.empty.pipe(HttpRouter.post("/", handler))

const places: Record<string, (parts: Parts) => Layer.Layer<never, unknown, Db | HttpServer.HttpServer>> = {
  "a handler, under middleware around the server": (parts) =>
    HttpServer.serve(HttpRouter.use(route(parts), transactional), parts.around),
  "a handler, under middleware around the router": (parts) =>
    HttpServer.serve(parts.around(HttpRouter.use(route(parts), transactional))),
  "a handler, under middleware around the handler": (parts) =>
    HttpServer.serve(HttpRouter.use(HttpRouter.use(route(parts), transactional), parts.around)),
  "a handler of its own": (parts) =>
    HttpServer.serve(HttpRouter.empty.pipe(HttpRouter.post("/", transactional(parts.handler))), parts.around),
  "a router that is mounted": (parts) =>
    HttpServer.serve(HttpRouter.empty.pipe(HttpRouter.mountApp("/", transactional(route(parts)))), parts.around),
  "a router": (parts) => HttpServer.serve(parts.around(transactional(route(parts)))),
  "a server": (parts) => HttpServer.serve(route(parts), (app) => parts.around(transactional(app))),
  "a route of HttpLayerRouter": (parts) =>
    HttpLayerRouter.serve(
      HttpLayerRouter.use((router) => router.add("POST", "/", parts.handler)).pipe(
        Layer.provide(HttpLayerRouter.middleware(transactional).layer)
      ),
      { middleware: parts.around, disableListenLog: true, disableLogger: true }
    ),
  "all of HttpLayerRouter": (parts) =>
    HttpLayerRouter.serve(
      Layer.merge(
        HttpLayerRouter.use((router) => router.add("POST", "/", parts.handler)),
        HttpLayerRouter.middleware(transactional, { global: true })
      ),
      { middleware: parts.around, disableListenLog: true, disableLogger: true }
    )
}

describe("middleware around the unit of work", () => {
  for (const [place, server] of Object.entries(places)) {
    for (const [status, touches] of [
      [200, true],
      [500, true],
      [200, false]
    ] as const) {
      it.scopedLive(`the unit of ${place} ends before code around it, ${status}${touches ? "" : ", unused"}`, () =>
        Effect.gen(function* () {
          const parts = makeParts(status, touches)
          yield* Layer.build(server(parts))
          const client = yield* HttpClient.HttpClient
          const response = yield* client.post("/")
          assert.strictEqual(response.status, status)
          assert.strictEqual(response.headers["x-around"], "yes")
          assert.strictEqual(yield* Deferred.await(parts.late), "TransactionEnded")
          yield* idle
          const kept = ["after", "before", "session"]
          assert.deepStrictEqual(yield* stored, status === 200 && touches ? [...kept, "inside"].sort() : kept)
        }).pipe(Effect.provide(Layer.merge(NodeHttpServer.layerTest, fresh({ maxConnections: 3 }))))
      )
    }
  }

  for (const [status, touches] of [
    [200, true],
    [500, true],
    [200, false]
  ] as const) {
    it.scopedLive(`the unit of a server ends before a log inside of it, ${status}${touches ? "" : ", unused"}`, () =>
      Effect.gen(function* () {
        const logged = gate<void>()
        const handler = Effect.as(touches ? insert("inside") : Effect.void, HttpServerResponse.empty({ status }))
        // the response is sent inside of this middleware, and the unit ends before that
        const logging = <E, R>(app: HttpApp.Default<E, R>) =>
          Effect.tap(app, () => Effect.zipRight(Effect.orDie(insert("log")), Deferred.succeed(logged, undefined)))
        yield* Layer.build(
          HttpServer.serve(HttpRouter.empty.pipe(HttpRouter.post("/", handler)), (app) => transactional(logging(app)))
        )
        const client = yield* HttpClient.HttpClient
        assert.strictEqual((yield* client.post("/")).status, status)
        yield* Deferred.await(logged)
        yield* idle
        assert.deepStrictEqual(yield* stored, status === 200 && touches ? ["inside", "log"] : ["log"])
      }).pipe(Effect.provide(Layer.merge(NodeHttpServer.layerTest, fresh())))
    )
  }

  it.scopedLive("a handler that a route runs repeatedly is a unit of its own each time", () =>
    Effect.gen(function* () {
      let times = 0
      const handler = transactional(
        Effect.suspend(() =>
          Effect.as(insert(`${++times}`), HttpServerResponse.empty({ status: times < 3 ? 500 : 200 }))
        )
      )
      const own = HttpRouter.empty.pipe(
        HttpRouter.post(
          "/",
          Effect.gen(function* () {
            const context = yield* Effect.context<Db | HttpServerRequest.HttpServerRequest>()
            const { route } = yield* HttpRouter.RouteContext
            const mine = Context.add(context, HttpRouter.RouteContext, {
              [HttpRouter.RouteContextTypeId]: HttpRouter.RouteContextTypeId,
              params: {},
              route: { ...route, handler }
            })
            const all = Effect.all([handler, handler, handler, handler])
            return yield* Effect.provide(
              Effect.as(Effect.zipRight(all, insert("after")), HttpServerResponse.empty()),
              mine
            )
          })
        )
      )
      yield* Layer.build(HttpServer.serve(own))
      const client = yield* HttpClient.HttpClient
      assert.strictEqual((yield* client.post("/")).status, 204)
      assert.deepStrictEqual(yield* stored, ["3", "4", "after"])
    }).pipe(Effect.provide(Layer.merge(NodeHttpServer.layerTest, fresh())))
  )

  it.scopedLive("a middleware around a single handler runs its hooks before and after the commit", () =>
    Effect.gen(function* () {
      const handler = Effect.gen(function* () {
        yield* insert("inside")
        yield* Db.beforeCommit(insert("before"))
        yield* Db.afterCommit(Effect.flatMap(stored, (rows) => insert(`after ${rows.join(" and ")}`)))
        return HttpServerResponse.empty()
      })
      yield* Layer.build(HttpServer.serve(HttpRouter.empty.pipe(HttpRouter.post("/", transactional(handler)))))
      const client = yield* HttpClient.HttpClient
      assert.strictEqual((yield* client.post("/")).status, 204)
      assert.deepStrictEqual(yield* stored, ["after before and inside", "before", "inside"])
    }).pipe(Effect.provide(Layer.merge(NodeHttpServer.layerTest, fresh())))
  )

  it.scopedLive("a middleware around a single handler logs a failed commit outside of the unit", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      yield* query(writer, "CREATE TABLE late (n int REFERENCES item DEFERRABLE INITIALLY DEFERRED)")
      const handler = Effect.flatMap(Db.writer, (sql) =>
        Effect.as(sql`INSERT INTO late VALUES (1)`, HttpServerResponse.empty())
      )
      const inTransaction: Array<boolean> = []
      const listening = Logger.make(({ context }) => {
        const { unsafeMap } = FiberRefs.getOrDefault(context, FiberRef.currentContext)
        inTransaction.push(unsafeMap.has(SqlClient.TransactionConnection.key))
      })
      yield* Layer.build(
        HttpServer.serve(HttpRouter.empty.pipe(HttpRouter.post("/", transactional(handler)))).pipe(
          Layer.provide(Logger.replace(Logger.defaultLogger, listening))
        )
      )
      const client = yield* HttpClient.HttpClient
      assert.strictEqual((yield* client.post("/")).status, 500)
      assert.deepStrictEqual(inTransaction, [false])
    }).pipe(Effect.provide(Layer.merge(NodeHttpServer.layerTest, fresh())))
  )
})
