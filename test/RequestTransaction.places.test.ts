/** Wherever the middleware stands, a request's unit of work is what its handler does, and nothing around that. */
import { HttpApp, HttpClient, HttpLayerRouter, HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FiberId from "effect/FiberId"
import * as Layer from "effect/Layer"
import { DatabaseError, RequestTransaction } from "effect-db"
import { describe } from "vitest"
import { Db, fresh, idle, insert, stored } from "./fixtures/databases.js"

const gate = <A>() => Deferred.unsafeMake<A>(FiberId.none)

/** What a request and those around it do, in this order, each as soon as what is before it is done. */
const scene = (status: number, touches: boolean) => {
  const inside = gate<void>()
  const before = gate<void>()
  const after = gate<void>()
  const late = gate<string>()
  const write = (name: string) => Effect.orDie(Effect.asVoid(insert(name)))
  const handler = Effect.gen(function* () {
    if (touches) yield* write("inside")
    // outlives the request
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
  /** Somebody around the handler, with a fiber of his own beside it, and something to do after it. */
  const around = <E, R>(app: HttpApp.Default<E, R>): HttpApp.Default<E, R | Db> =>
    Effect.gen(function* () {
      yield* Effect.forkDaemon(
        Effect.zipRight(Deferred.await(inside), Effect.zipRight(write("before"), Deferred.succeed(before, undefined)))
      )
      const response = yield* app
      yield* write("after")
      yield* Deferred.succeed(after, undefined)
      return response
    })
  return { handler, around, late }
}

const transactional = RequestTransaction.middleware()

type Scene = ReturnType<typeof scene>

const route = ({ handler }: Scene) => HttpRouter.empty.pipe(HttpRouter.post("/", handler))

const places: Record<string, (scene: Scene) => Layer.Layer<never, unknown, Db | HttpServer.HttpServer>> = {
  "a handler, under somebody around the server": (scene) =>
    HttpServer.serve(HttpRouter.use(route(scene), transactional), scene.around),
  "a handler, under somebody around the router": (scene) =>
    HttpServer.serve(scene.around(HttpRouter.use(route(scene), transactional))),
  "a handler, under somebody around the handler": (scene) =>
    HttpServer.serve(HttpRouter.use(HttpRouter.use(route(scene), transactional), scene.around)),
  "a handler of its own": (scene) =>
    HttpServer.serve(HttpRouter.empty.pipe(HttpRouter.post("/", transactional(scene.handler))), scene.around),
  "a router that is mounted": (scene) =>
    HttpServer.serve(HttpRouter.empty.pipe(HttpRouter.mountApp("/", transactional(route(scene)))), scene.around),
  "a router": (scene) => HttpServer.serve(scene.around(transactional(route(scene)))),
  "a server": (scene) => HttpServer.serve(route(scene), (app) => scene.around(transactional(app))),
  "a route of HttpLayerRouter": (scene) =>
    HttpLayerRouter.serve(
      HttpLayerRouter.use((router) => router.add("POST", "/", scene.handler)).pipe(
        Layer.provide(HttpLayerRouter.middleware(transactional).layer)
      ),
      { middleware: scene.around, disableListenLog: true, disableLogger: true }
    ),
  "all of HttpLayerRouter": (scene) =>
    HttpLayerRouter.serve(
      Layer.merge(
        HttpLayerRouter.use((router) => router.add("POST", "/", scene.handler)),
        HttpLayerRouter.middleware(transactional, { global: true })
      ),
      { middleware: scene.around, disableListenLog: true, disableLogger: true }
    )
}

describe("the middleware around", () => {
  for (const [place, server] of Object.entries(places)) {
    for (const [status, touches] of [
      [200, true],
      [500, true],
      [200, false]
    ] as const) {
      it.scopedLive(`${place}, with a response of ${status}${touches ? "" : ", untouched"}`, () =>
        Effect.gen(function* () {
          const played = scene(status, touches)
          yield* Layer.build(server(played))
          const client = yield* HttpClient.HttpClient
          const response = yield* client.post("/")
          assert.strictEqual(response.status, status)
          assert.strictEqual(yield* Deferred.await(played.late), "TransactionEnded")
          yield* idle
          const kept = ["after", "before", "session"]
          assert.deepStrictEqual(yield* stored, status === 200 && touches ? [...kept, "inside"].sort() : kept)
        }).pipe(Effect.provide(Layer.merge(NodeHttpServer.layerTest, fresh({ maxConnections: 3 }))))
      )
    }
  }
})
