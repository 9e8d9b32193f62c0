import {
  FetchHttpClient,
  HttpApi,
  HttpApiBuilder,
  HttpApiEndpoint,
  HttpApiGroup,
  HttpApp,
  HttpBody,
  HttpClient,
  HttpClientRequest,
  HttpLayerRouter,
  HttpMiddleware,
  HttpRouter,
  HttpServer,
  HttpServerRequest,
  HttpServerResponse
} from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import { Rpc, RpcClient, RpcGroup, RpcMiddleware, RpcSerialization, RpcServer } from "@effect/rpc"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Ref from "effect/Ref"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { DatabaseError, RequestTransaction, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { audit } from "../support/audit.js"
import { Audit, active, Db, fresh, idle, insert, Place, stored } from "../support/databases.js"
import { collideAtCommit } from "../support/lateCollision.js"
import { answers, makeProxy } from "../support/proxy.js"
import { query } from "../support/server.js"

const respond = (status: number) => HttpServerResponse.empty({ status })

const send = (method: "GET" | "POST" | "PUT" | "HEAD", path: string, body?: HttpBody.HttpBody, headers = {}) =>
  Effect.flatMap(HttpClient.HttpClient, (client) =>
    client.execute(
      HttpClientRequest.make(method)(path).pipe(
        HttpClientRequest.setHeaders(headers),
        body === undefined ? (request) => request : HttpClientRequest.setBody(body)
      )
    )
  )

const servers = (options: Parameters<typeof fresh>[0] = {}) => Layer.merge(NodeHttpServer.layerTest, fresh(options))

const serve = <E, R>(router: HttpRouter.HttpRouter<E, R>, options: RequestTransaction.Options) =>
  Layer.build(HttpServer.serve(HttpRouter.use(router, RequestTransaction.middleware(options))))

const rows = <A extends object>(kind: "writer" | "reader", text: string) =>
  Effect.flatMap(Db[kind], (sql) => sql.unsafe<A>(text))

const asJson = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.flatMap(self, (value) => HttpServerResponse.json(value))

const whoami = "SELECT application_name AS name, query FROM pg_stat_activity WHERE pid = pg_backend_pid()"

describe("the settings of a request", () => {
  const routes = HttpRouter.empty.pipe(
    HttpRouter.all("/write", Effect.as(insert("x"), respond(200))),
    HttpRouter.all(
      "/isolation",
      asJson(rows("writer", "SELECT current_setting('transaction_isolation') AS isolation"))
    ),
    HttpRouter.all(
      "/stricter",
      asJson(
        UnitOfWork.run(rows("writer", "SELECT current_setting('transaction_isolation') AS isolation"), {
          transaction: { isolation: "serializable" }
        })
      )
    )
  )

  it.scopedLive("GET and HEAD are read-only with readOnlyWhenSafe, and POST is not", () =>
    Effect.gen(function* () {
      yield* serve(routes, { transaction: RequestTransaction.readOnlyWhenSafe })
      assert.strictEqual((yield* send("GET", "/write")).status, 500)
      assert.strictEqual((yield* send("HEAD", "/write")).status, 500)
      assert.deepStrictEqual(yield* stored, [])
      assert.strictEqual((yield* send("POST", "/write")).status, 200)
      assert.deepStrictEqual(yield* stored, ["x"])
    }).pipe(Effect.provide(servers()))
  )

  it.scopedLive("the isolation level may depend on the request, and a route may raise it", () =>
    Effect.gen(function* () {
      yield* serve(routes, {
        transaction: ({ method }) => ({ isolation: method === "PUT" ? "repeatable read" : "read committed" })
      })
      assert.deepStrictEqual(yield* (yield* send("PUT", "/isolation")).json, [{ isolation: "repeatable read" }])
      assert.deepStrictEqual(yield* (yield* send("POST", "/isolation")).json, [{ isolation: "read committed" }])
      assert.deepStrictEqual(yield* (yield* send("POST", "/stricter")).json, [{ isolation: "serializable" }])
    }).pipe(Effect.provide(servers()))
  )

  it.scopedLive("the setting none commits each statement by itself, whatever the response is", () =>
    Effect.gen(function* () {
      const failing = HttpRouter.empty.pipe(HttpRouter.post("/fail", Effect.as(insert("kept"), respond(500))))
      yield* serve(failing, { transaction: () => "none" })
      assert.strictEqual((yield* send("POST", "/fail")).status, 500)
      assert.deepStrictEqual(yield* stored, ["kept"])
    }).pipe(Effect.provide(servers()))
  )
})

describe("a request that is handled again", () => {
  const collision = "DO $$ BEGIN RAISE EXCEPTION 'collision' USING ERRCODE = 'serialization_failure'; END $$"

  /** Creates routes that store the body, and run `collide` in the first `times` attempts. */
  const storing = (times: number, collide: Effect.Effect<unknown, unknown, Db>) =>
    Effect.map(Ref.make(0), (attempts) => ({
      attempts,
      routes: HttpRouter.empty.pipe(
        HttpRouter.post(
          "/text",
          Effect.gen(function* () {
            const request = yield* HttpServerRequest.HttpServerRequest
            const attempt = yield* Ref.updateAndGet(attempts, (n) => n + 1)
            yield* insert((yield* request.text).slice(0, 100))
            if (attempt <= times) yield* collide
            return respond(201)
          })
        ),
        HttpRouter.post(
          "/caught",
          Effect.gen(function* () {
            const request = yield* HttpServerRequest.HttpServerRequest
            yield* insert(JSON.stringify(yield* request.json))
            if ((yield* Ref.updateAndGet(attempts, (n) => n + 1)) <= times) yield* collide
            return respond(201)
          }).pipe(Effect.catchAll(() => Effect.succeed(respond(503))))
        ),
        HttpRouter.post(
          "/form",
          Effect.gen(function* () {
            const request = yield* HttpServerRequest.HttpServerRequest
            const form = yield* request.multipart
            yield* insert(String(form.name))
            if ((yield* Ref.updateAndGet(attempts, (n) => n + 1)) <= times) yield* collide
            return respond(201)
          })
        )
      )
    }))

  const refused = rows("writer", collision)
  const text = HttpBody.text("body", "text/plain")

  it.scopedLive("a request is handled again with its body, also if the handler has answered with an error", () =>
    Effect.gen(function* () {
      const { attempts, routes } = yield* storing(2, refused)
      yield* serve(routes, { retry: true })
      assert.strictEqual((yield* send("POST", "/text", text)).status, 201)
      assert.strictEqual(yield* Ref.getAndSet(attempts, 0), 3)
      assert.strictEqual((yield* send("POST", "/caught", HttpBody.unsafeJson({ a: 1 }))).status, 201)
      assert.strictEqual(yield* Ref.getAndSet(attempts, 0), 3)
      const part = '--x\r\ncontent-disposition: form-data; name="name"\r\n\r\nfrom a form\r\n--x--\r\n'
      const form = HttpBody.text(part, "multipart/form-data; boundary=x")
      assert.strictEqual((yield* send("POST", "/form", form)).status, 201)
      assert.strictEqual(yield* Ref.get(attempts), 3)
      assert.deepStrictEqual(yield* stored, ["body", "from a form", '{"a":1}'])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(servers()))
  )

  for (const [failure, fail] of [
    ["turned into an error of the handler", Effect.mapError(refused, () => "mine")],
    ["turned into a defect", Effect.orDie(refused)],
    ["replaced by a defect of the handler", Effect.catchAll(refused, () => Effect.die(new Error("a bug")))],
    [
      "turned into an error of the handler after a nested transaction",
      Effect.mapError(Db.withTransaction(refused), () => "mine")
    ]
  ] as const) {
    it.scopedLive(`a request is handled again if a collision was ${failure}`, () =>
      Effect.gen(function* () {
        const { attempts, routes } = yield* storing(2, fail)
        yield* serve(routes, { retry: true })
        assert.strictEqual((yield* send("POST", "/text", text)).status, 201)
        assert.strictEqual(yield* Ref.get(attempts), 3)
        assert.deepStrictEqual(yield* stored, ["body"])
      }).pipe(Effect.provide(servers()))
    )
  }

  it.scopedLive("a request is handled once if the handler fails or dies for a reason of its own", () =>
    Effect.gen(function* () {
      for (const fail of [Effect.fail("mine"), Effect.die(new Error("a bug"))]) {
        const { attempts, routes } = yield* storing(2, fail)
        yield* Effect.scoped(
          Effect.zipRight(
            serve(routes, { retry: true }),
            Effect.map(send("POST", "/text", text), ({ status }) => assert.strictEqual(status, 500))
          )
        )
        assert.strictEqual(yield* Ref.get(attempts), 1)
      }
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(servers()))
  )

  it.scopedLive("a request is not handled again if its body is too long, nor more often than the schedule allows", () =>
    Effect.gen(function* () {
      const { attempts, routes } = yield* storing(Number.POSITIVE_INFINITY, refused)
      yield* serve(routes, { retry: Schedule.recurs(2) })
      const long = HttpBody.text("x".repeat(1_048_577), "text/plain")
      assert.strictEqual((yield* send("POST", "/text", long)).status, 500)
      assert.strictEqual(yield* Ref.getAndSet(attempts, 0), 1)
      // the handler expects JSON, and fails by itself
      assert.strictEqual((yield* send("POST", "/caught", text)).status, 503)
      assert.strictEqual(yield* Ref.getAndSet(attempts, 0), 0)
      assert.strictEqual((yield* send("POST", "/text", text)).status, 500)
      assert.strictEqual(yield* Ref.get(attempts), 3)
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(servers()))
  )

  it.scopedLive("a request is handled again also if code around the handler has read the body before", () =>
    Effect.gen(function* () {
      const { attempts, routes } = yield* storing(1, refused)
      const reading = HttpMiddleware.make((app) =>
        Effect.zipRight(
          Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) => request.text),
          app
        )
      )
      const transactional = HttpRouter.use(routes, RequestTransaction.middleware({ retry: true }))
      yield* Layer.build(HttpServer.serve(HttpRouter.use(transactional, reading)))
      assert.strictEqual((yield* send("POST", "/text", text)).status, 201)
      assert.strictEqual(yield* Ref.get(attempts), 2)
      assert.deepStrictEqual(yield* stored, ["body"])
    }).pipe(Effect.provide(servers()))
  )

  it.scopedLive("a request is handled again without the pre-response handlers of the attempt before", () =>
    Effect.gen(function* () {
      let attempts = 0
      const ran: Array<number> = []
      const router = HttpRouter.empty.pipe(
        HttpRouter.post(
          "/",
          Effect.gen(function* () {
            const attempt = ++attempts
            yield* HttpApp.appendPreResponseHandler((_, response) =>
              Effect.sync(() => {
                ran.push(attempt)
                return response
              })
            )
            const sql = yield* Db.writer
            if (attempt === 1) yield* sql.unsafe(collision)
            return respond(201)
          })
        )
      )
      yield* Layer.build(HttpServer.serve(RequestTransaction.middleware({ retry: true })(router)))
      assert.strictEqual((yield* send("POST", "/")).status, 201)
      assert.deepStrictEqual(ran, [2])
    }).pipe(Effect.provide(servers()))
  )

  it.scopedLive(
    "a middleware around the whole server does not handle a request again, because the first answer is sent already",
    () =>
      Effect.gen(function* () {
        const { attempts, routes } = yield* storing(1, refused)
        yield* Layer.build(HttpServer.serve(routes, RequestTransaction.middleware({ retry: Schedule.recurs(1) })))
        assert.strictEqual((yield* send("POST", "/text", text)).status, 500)
        // the next request succeeds
        assert.strictEqual((yield* send("POST", "/text", text)).status, 201)
        assert.strictEqual(yield* Ref.get(attempts), 2)
        assert.deepStrictEqual(yield* stored, ["body"])
      }).pipe(Effect.provide(servers()))
  )

  it.scopedLive("a request is handled again if its COMMIT is refused because another request has committed first", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      yield* query(writer, "INSERT INTO item (name, amount) VALUES ('a', 1), ('b', 1)")
      const read = yield* Deferred.make<void>()
      const both = yield* Ref.make(0)
      // each request reads both rows and empties one, and together they would break the rule that one is left
      const withdraw = (name: string) =>
        Effect.gen(function* () {
          const sql = yield* Db.writer
          const [row] = yield* sql<{ sum: number }>`SELECT sum(amount)::int AS sum FROM item`
          if ((yield* Ref.updateAndGet(both, (n) => n + 1)) === 2) yield* Deferred.succeed(read, undefined)
          yield* Deferred.await(read)
          if ((row?.sum ?? 0) < 2) return respond(409)
          yield* sql`UPDATE item SET amount = 0 WHERE name = ${name}`
          return respond(200)
        })
      const routes = HttpRouter.empty.pipe(HttpRouter.post("/a", withdraw("a")), HttpRouter.post("/b", withdraw("b")))
      yield* serve(routes, { transaction: { isolation: "serializable" }, retry: true })
      const answers = yield* Effect.all([send("POST", "/a"), send("POST", "/b")], { concurrency: 2 })
      assert.deepStrictEqual(answers.map(({ status }) => status).sort(), [200, 409])
    }).pipe(Effect.provide(servers()))
  )

  it.scopedLive("a refused COMMIT without retry is answered with 409, and an unknown outcome with 503", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      yield* query(writer, "CREATE TABLE late (n int)")
      yield* collideAtCommit(writer, "late")
      const proxy = yield* makeProxy(writer)
      const routes = HttpRouter.empty.pipe(
        HttpRouter.post("/late", Effect.as(rows("writer", "INSERT INTO late VALUES (1)"), respond(201))),
        HttpRouter.post("/lost", Effect.as(insert("perhaps"), respond(201)))
      )
      yield* Effect.gen(function* () {
        yield* serve(routes, {})
        const collided = yield* send("POST", "/late")
        assert.strictEqual(collided.status, 409)
        assert.include(collided.headers["content-type"], "application/problem+json")
        yield* proxy.when(answers("COMMIT"), "cut")
        const lost = yield* send("POST", "/lost")
        assert.strictEqual(lost.status, 503)
        assert.deepInclude(yield* lost.json, { status: 503, type: "about:blank" })
      }).pipe(Effect.provide(Db.layer({ writer: proxy.url, outcome: "unknown" })))
    }).pipe(Effect.provide(servers()))
  )
})

describe("the request in its statements", () => {
  const routes = HttpRouter.empty.pipe(HttpRouter.get("/items/:id", asJson(rows("writer", whoami))))
  const Seen = Schema.Tuple(Schema.Struct({ name: Schema.String, query: Schema.String }))
  const ask = (headers = {}) =>
    Effect.flatMap(send("GET", "/items/7?secret=1", undefined, headers), (answer) =>
      Effect.flatMap(answer.json, Schema.decodeUnknown(Seen))
    )

  it.scopedLive("statements carry nothing of the request by default", () =>
    Effect.gen(function* () {
      yield* serve(routes, {})
      const [{ name, query }] = yield* ask()
      assert.deepStrictEqual([name, query], ["effect-db", whoami])
    }).pipe(Effect.provide(servers()))
  )

  it.scopedLive("statements carry method and route as application name and in a comment if that is set", () =>
    Effect.gen(function* () {
      yield* serve(routes, { applicationName: true, sqlComment: "route" })
      const [{ name, query }] = yield* ask()
      assert.strictEqual(name, "GET /items/:id")
      assert.strictEqual(query, `${whoami}\n/*method='GET',route='%2Fitems%2F%3Aid'*/`)
    }).pipe(Effect.provide(servers()))
  )

  it.scopedLive("statements carry the request's id and the trace if sqlComment is trace, and no unsafe id", () =>
    Effect.gen(function* () {
      yield* serve(routes, { sqlComment: "trace" })
      const [{ query }] = yield* ask({ "x-request-id": "r-1" })
      assert.match(query, /\/\*method='GET',request_id='r-1',route='[^']+',traceparent='00-\w{32}-\w{16}-0[01]'\*\/$/)
      const [other] = yield* ask({ "x-request-id": "*/ DROP TABLE item" })
      assert.notInclude(other.query, "DROP")
    }).pipe(Effect.provide(servers()))
  )

  it.scopedLive(
    "a hook has the label of the request at its registration, and sqlComment is not called again for it",
    () =>
      Effect.gen(function* () {
        const hooked = HttpRouter.empty.pipe(
          HttpRouter.post(
            "/hooked/:name",
            insert("a").pipe(Effect.zipRight(Audit.afterCommit(insert("after a"))), Effect.as(respond(201)))
          )
        )
        const sqlComment = ({ route }: RequestTransaction.LabeledRequest) => {
          // outside of the router `route` is the path
          if (route !== "/hooked/:name") throw new Error("nameless")
          return { route }
        }
        yield* Layer.build(HttpServer.serve(hooked, RequestTransaction.middleware({ sqlComment })))
        assert.strictEqual((yield* send("POST", "/hooked/a")).status, 201)
        assert.deepStrictEqual(yield* stored, ["a", "after a"])
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(Layer.merge(servers(), audit)))
  )

  it.scopedLive("the observation of a transaction's end has method, route and id in its label", () =>
    Effect.gen(function* () {
      yield* serve(routes, {})
      const heard = yield* Deferred.make<string | undefined>()
      const ended = Db.observations.pipe(
        Stream.runForEach((fact) =>
          fact._tag === "TransactionEnded" ? Deferred.succeed(heard, fact.label) : Effect.void
        )
      )
      yield* Effect.forkScoped(ended)
      yield* Effect.repeat(Effect.zipRight(ask({ "x-request-id": "r-1" }), Deferred.isDone(heard)), {
        until: (done) => done
      })
      assert.strictEqual(yield* Deferred.await(heard), "GET /items/:id r-1")
    }).pipe(Effect.provide(servers()))
  )
})

describe("work after the response", () => {
  const names = Stream.unwrap(
    Effect.map(Db.reader, (sql) => sql<{ name: string }>`SELECT name FROM item ORDER BY name`.stream)
  ).pipe(
    Stream.map(({ name }) => `data: ${name}\n\n`),
    Stream.encodeText
  )

  const bodies = HttpRouter.empty.pipe(
    // a stream with the context of the handler
    HttpRouter.post(
      "/captured",
      Effect.gen(function* () {
        yield* insert("a")
        const context = yield* Effect.context<Db>()
        return HttpServerResponse.stream(Stream.provideContext(names, context), { contentType: "text/event-stream" })
      })
    ),
    HttpRouter.post(
      "/detached",
      Effect.gen(function* () {
        yield* insert("b")
        return HttpServerResponse.stream(yield* UnitOfWork.detach(names), { contentType: "text/event-stream" })
      })
    ),
    HttpRouter.post(
      "/refused",
      Effect.gen(function* () {
        yield* insert("c")
        return HttpServerResponse.stream(yield* UnitOfWork.detach(names), { status: 400 })
      })
    )
  )

  const places = [
    ["around the handlers", HttpServer.serve(HttpRouter.use(bodies, RequestTransaction.middleware()))],
    ["around the server", HttpServer.serve(bodies, RequestTransaction.middleware())]
  ] as const

  for (const [place, served] of places) {
    it.scopedLive(`a streaming body is read after the commit, outside of the transaction (${place})`, () =>
      Effect.gen(function* () {
        const detached = yield* send("POST", "/detached")
        assert.strictEqual(yield* detached.text, "data: b\n\n")
        assert.strictEqual((yield* send("POST", "/refused")).status, 400)
        assert.deepStrictEqual(yield* stored, ["b"])
        yield* idle
      }).pipe(Effect.provide(Layer.provideMerge(served, servers({ readers: [] }))))
    )

    it.scopedLive(`a streaming body with the handler's context fails, and leaves nothing checked out (${place})`, () =>
      Effect.gen(function* () {
        const captured = yield* Effect.flatMap(send("POST", "/captured"), (answer) => answer.text).pipe(Effect.either)
        assert.isTrue(captured._tag === "Left" || captured.right === "")
        assert.deepStrictEqual(yield* stored, ["a"])
        yield* idle
      }).pipe(Effect.provide(Layer.provideMerge(served, servers({ readers: [] }))))
    )
  }

  it.scopedLive("background work has a connection of its own, and is stored whatever the response", () =>
    Effect.gen(function* () {
      const go = yield* Deferred.make<void>()
      const done = yield* Deferred.make<void>()
      const routes = HttpRouter.empty.pipe(
        HttpRouter.post(
          "/background",
          Effect.gen(function* () {
            yield* insert("request")
            const work = Effect.zipRight(Deferred.await(go), UnitOfWork.run(insert("background")))
            yield* Effect.forkDaemon(UnitOfWork.outside(Effect.ensuring(work, Deferred.succeed(done, undefined))))
            return respond(500)
          })
        )
      )
      yield* serve(routes, {})
      assert.strictEqual((yield* send("POST", "/background")).status, 500)
      yield* Deferred.succeed(go, undefined)
      yield* Deferred.await(done)
      assert.deepStrictEqual(yield* stored, ["background"])
    }).pipe(Effect.provide(servers()))
  )
})

describe("other ways to serve a request", () => {
  const api = HttpApi.make("test").add(
    HttpApiGroup.make("items")
      .add(HttpApiEndpoint.post("add", "/items/:name").setPath(Schema.Struct({ name: Schema.String })))
      .add(
        HttpApiEndpoint.post("refuse", "/refuse/:name")
          .setPath(Schema.Struct({ name: Schema.String }))
          .addError(Schema.String, { status: 422 })
      )
      .add(HttpApiEndpoint.post("die", "/die/:name").setPath(Schema.Struct({ name: Schema.String })))
      .add(HttpApiEndpoint.post("late", "/late"))
      .add(HttpApiEndpoint.get("hang", "/hang"))
      .middleware(RequestTransaction.Api)
  )

  it.scopedLive("an HttpApi with RequestTransaction.Api commits or rolls back by the status of its response", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      yield* query(writer, "CREATE TABLE late (n int REFERENCES item DEFERRABLE INITIALLY DEFERRED)")
      const inserted = yield* Deferred.make<void>()
      const items = HttpApiBuilder.group(api, "items", (handlers) =>
        handlers
          .handle("add", ({ path }) => Effect.orDie(Effect.asVoid(insert(path.name))))
          .handle("refuse", ({ path }) => Effect.zipRight(Effect.orDie(insert(path.name)), Effect.fail("no")))
          .handle("die", ({ path }) => Effect.zipRight(Effect.orDie(insert(path.name)), Effect.die(new Error("bug"))))
          .handle("late", () => Effect.orDie(Effect.asVoid(rows("writer", "INSERT INTO late VALUES (7)"))))
          .handle("hang", () =>
            Effect.orDie(insert("gone")).pipe(
              Effect.zipRight(Deferred.succeed(inserted, undefined)),
              Effect.zipRight(Effect.never)
            )
          )
      )
      yield* Layer.build(
        HttpApiBuilder.serve().pipe(
          Layer.provide(HttpApiBuilder.api(api)),
          Layer.provide(items),
          Layer.provide(RequestTransaction.layerApi({ applicationName: true }))
        )
      )
      assert.strictEqual((yield* send("POST", "/items/a")).status, 204)
      assert.strictEqual((yield* send("POST", "/refuse/b")).status, 422)
      assert.strictEqual((yield* send("POST", "/die/c")).status, 500)
      const late = yield* send("POST", "/late")
      assert.strictEqual(late.status, 500)
      assert.include(late.headers["content-type"], "application/problem+json")
      const hanging = yield* Effect.fork(send("GET", "/hang"))
      yield* Deferred.await(inserted)
      yield* Fiber.interrupt(hanging)
      yield* idle
      assert.deepStrictEqual(yield* stored, ["a"])
    }).pipe(Effect.provide(servers()))
  )

  it.scopedLive("HttpLayerRouter commits or rolls back by the status with a global middleware", () =>
    Effect.gen(function* () {
      const route = HttpLayerRouter.use((router) =>
        router.add(
          "POST",
          "/items/:status",
          Effect.gen(function* () {
            const { params } = yield* HttpRouter.RouteContext
            yield* Effect.orDie(insert(params.status ?? ""))
            return respond(Number(params.status))
          })
        )
      )
      const transactional = HttpLayerRouter.middleware(RequestTransaction.middleware(), { global: true })
      yield* Layer.build(HttpLayerRouter.serve(Layer.provide(Layer.mergeAll(route, transactional), Layer.empty)))
      assert.strictEqual((yield* send("POST", "/items/201")).status, 201)
      assert.strictEqual((yield* send("POST", "/items/404")).status, 404)
      assert.deepStrictEqual(yield* stored, ["201"])
    }).pipe(Effect.provide(servers()))
  )

  it.scopedLive("@effect/rpc commits a success and rolls back a failure in a unit of work of its middleware", () =>
    Effect.gen(function* () {
      class InUnit extends RpcMiddleware.Tag<InUnit>()("test/InUnit", { wrap: true }) {}
      const group = RpcGroup.make(
        Rpc.make("add", { payload: { name: Schema.String } }),
        Rpc.make("refuse", { payload: { name: Schema.String }, error: Schema.String })
      ).middleware(InUnit)
      const handlers = group.toLayer({
        add: ({ name }) => Effect.orDie(Effect.asVoid(insert(name))),
        refuse: ({ name }) => Effect.zipRight(Effect.orDie(insert(name)), Effect.fail("no"))
      })
      // these RPCs do not declare the error of a commit, so it is a defect
      const inUnit = Layer.succeed(InUnit, ({ next }) =>
        Effect.catchIf(
          UnitOfWork.run(next),
          (error): error is DatabaseError.TransactionError => DatabaseError.isDatabaseError(error),
          Effect.die
        )
      )
      const server = RpcServer.layerHttpRouter({ group, path: "/rpc", protocol: "http" }).pipe(
        Layer.provide([handlers, inUnit, RpcSerialization.layerJson])
      )
      yield* Layer.build(HttpLayerRouter.serve(server))
      const { address } = yield* HttpServer.HttpServer
      const url = address._tag === "TcpAddress" ? `http://127.0.0.1:${address.port}/rpc` : ""
      const client = yield* RpcClient.make(group).pipe(
        Effect.provide(
          Layer.provide(RpcClient.layerProtocolHttp({ url }), [FetchHttpClient.layer, RpcSerialization.layerJson])
        )
      )
      yield* client.add({ name: "a" })
      assert.strictEqual(yield* Effect.flip(client.refuse({ name: "b" })), "no")
      assert.deepStrictEqual(yield* stored, ["a"])
    }).pipe(Effect.provide(servers()))
  )
})
