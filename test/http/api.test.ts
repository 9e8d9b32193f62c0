/**
 * An `HttpApi` whose handlers fail with declared errors: the completion of their units of work, and
 * their retries.
 */
import {
  HttpApi,
  HttpApiBuilder,
  HttpApiEndpoint,
  HttpApiGroup,
  HttpApiSchema,
  HttpApiSecurity,
  HttpClient,
  HttpClientRequest,
  HttpLayerRouter,
  HttpMiddleware,
  type HttpRouter,
  type HttpServer
} from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { RequestTransaction } from "effect-db"
import { describe } from "vitest"
import { Db, fresh, idle, insert, Place, stored } from "../support/databases.js"
import { query } from "../support/server.js"

class Insufficient extends Schema.TaggedError<Insufficient>()(
  "Insufficient",
  { missing: Schema.Number },
  HttpApiSchema.annotations({ status: 409 })
) {}
class Unavailable extends Schema.TaggedError<Unavailable>()(
  "Unavailable",
  {},
  HttpApiSchema.annotations({ status: 503 })
) {}
class Accepted extends Schema.TaggedError<Accepted>()("Accepted", {}, HttpApiSchema.annotations({ status: 202 })) {}

const named = Schema.Struct({ name: Schema.String })
const Transfer = Schema.Struct({ from: Schema.String, to: Schema.String, amount: Schema.Number })

/** The endpoints, in a group to which `within` adds the unit of work as middleware. */
const endpoints = HttpApiGroup.make("bank")
  .add(HttpApiEndpoint.post("transfer", "/transfer").setPayload(Transfer).addError(Insufficient).addError(Unavailable))
  .add(HttpApiEndpoint.post("refuse", "/refuse").setPayload(named).addError(Insufficient))
  .add(HttpApiEndpoint.post("accept", "/accept").setPayload(named).addError(Accepted))
  .add(
    HttpApiEndpoint.post("collide", "/collide/:as")
      .setPath(Schema.Struct({ as: Schema.String }))
      .setPayload(named)
      .addError(Unavailable)
  )
  .add(HttpApiEndpoint.post("cookie", "/cookie").setPayload(named).addError(Unavailable))

const around = HttpApi.make("bank").add(endpoints)
const within = HttpApi.make("bank").add(endpoints.middleware(RequestTransaction.Api))

const collision = "DO $$ BEGIN RAISE EXCEPTION 'collision' USING ERRCODE = 'serialization_failure'; END $$"
const session = HttpApiSecurity.apiKey({ in: "cookie", key: "session" })

/** Creates the handlers, and a record of the runs of `collide` and `cookie`. */
const bank = (api: typeof around) => {
  const runs: Array<string> = []
  const add = (name: string) => Effect.orDie(Effect.asVoid(insert(name)))
  const layer = HttpApiBuilder.group(api, "bank", (handlers) =>
    handlers
      .handle("transfer", ({ payload: { amount, from, to } }) =>
        Effect.gen(function* () {
          const sql = yield* Db.writer
          const [row] = yield* sql<{ amount: number }>`SELECT amount FROM item WHERE name = ${from}`
          const missing = amount - (row?.amount ?? 0)
          if (missing > 0) return yield* new Insufficient({ missing })
          const [other] = yield* sql<{ amount: number }>`SELECT amount FROM item WHERE name = ${to}`
          yield* sql`UPDATE item SET amount = ${-missing} WHERE name = ${from}`
          yield* sql`UPDATE item SET amount = ${(other?.amount ?? 0) + amount} WHERE name = ${to}`
        }).pipe(Effect.catchTag("SqlError", () => new Unavailable()))
      )
      .handle("refuse", ({ payload: { name } }) => Effect.zipRight(add(name), new Insufficient({ missing: 1 })))
      .handle("accept", ({ payload: { name } }) => Effect.zipRight(add(name), new Accepted()))
      .handle("collide", ({ path, payload: { name } }) =>
        Effect.gen(function* () {
          runs.push(path.as)
          const attempt = runs.filter((run) => run === path.as).length
          yield* add(attempt < 3 ? `undone ${attempt}` : name)
          if (attempt >= 3) return
          const collide = Effect.flatMap(Db.writer, (sql) => sql.unsafe(collision))
          return yield* path.as === "a-defect"
            ? Effect.orDie(collide)
            : Effect.mapError(collide, () => new Unavailable())
        }).pipe(Effect.asVoid)
      )
      .handle("cookie", ({ payload: { name } }) =>
        Effect.gen(function* () {
          runs.push("cookie")
          yield* add(`${name} ${runs.length}`)
          yield* HttpApiBuilder.securitySetCookie(session, Redacted.make(`session-${runs.length}`))
          if (runs.length === 1) yield* Effect.orDie(Effect.flatMap(Db.writer, (sql) => sql.unsafe(collision)))
        })
      )
  )
  return { layer, runs }
}

type Served = Layer.Layer<never, unknown, Db | HttpServer.HttpServer | HttpRouter.HttpRouter.DefaultServices>

/** The ways to serve the API, each with the unit of work in another place. */
const ways: Readonly<
  Record<string, (options: RequestTransaction.ApiOptions) => { served: Served; runs: Array<string> }>
> = {
  "around HttpApiBuilder's handlers": (options) => {
    const { layer, runs } = bank(around)
    const served = HttpApiBuilder.serve().pipe(
      Layer.provide(HttpApiBuilder.middleware(RequestTransaction.middleware(options))),
      Layer.provide(HttpApiBuilder.api(around)),
      Layer.provide(layer)
    )
    return { served, runs }
  },
  "as RequestTransaction.Api": (options) => {
    const { layer, runs } = bank(within as unknown as typeof around)
    const served = HttpApiBuilder.serve().pipe(
      Layer.provide(HttpApiBuilder.api(within)),
      Layer.provide(layer),
      Layer.provide(RequestTransaction.layerApi(options))
    )
    return { served: served as Served, runs }
  },
  "as RequestTransaction.Api in an HttpLayerRouter": (options) => {
    const { layer, runs } = bank(within as unknown as typeof around)
    const served = HttpLayerRouter.serve(
      HttpLayerRouter.addHttpApi(within).pipe(
        Layer.provide(layer),
        Layer.provide(RequestTransaction.layerApi(options))
      ),
      { disableListenLog: true, disableLogger: true }
    )
    return { served: served as unknown as Served, runs }
  },
  "as a middleware of an HttpLayerRouter": (options) => {
    const { layer, runs } = bank(around)
    const routes = HttpLayerRouter.addHttpApi(around).pipe(
      Layer.provide(layer),
      Layer.provide(HttpLayerRouter.middleware(RequestTransaction.middleware(options)).layer)
    )
    return {
      served: HttpLayerRouter.serve(routes, { disableListenLog: true, disableLogger: true }) as unknown as Served,
      runs
    }
  }
}

const send = (path: string, body: unknown) =>
  Effect.flatMap(HttpClient.HttpClient, (client) =>
    client.execute(HttpClientRequest.bodyUnsafeJson(HttpClientRequest.post(path), body))
  )

const servers = Layer.merge(NodeHttpServer.layerTest, fresh({ readers: [] }))

for (const [place, serve] of Object.entries(ways)) {
  describe(`a unit of work ${place}`, () => {
    it.scopedLive("a unit of work commits or rolls back by the status of a declared error", () =>
      Effect.gen(function* () {
        yield* Layer.build(serve({}).served)
        const refused = yield* send("/refuse", { name: "refused" })
        assert.strictEqual(refused.status, 409)
        assert.deepStrictEqual(yield* refused.json, { _tag: "Insufficient", missing: 1 })
        const accepted = yield* send("/accept", { name: "accepted" })
        assert.strictEqual(accepted.status, 202)
        assert.deepStrictEqual(yield* accepted.json, { _tag: "Accepted" })
        assert.deepStrictEqual(yield* stored, ["accepted"])
        yield* idle
      }).pipe(Effect.provide(servers))
    )

    it.scopedLive("the option outcome of a unit of work receives the response to a declared error", () =>
      Effect.gen(function* () {
        const seen: Array<readonly [number, string]> = []
        const { served } = serve({
          outcome: (response) => {
            const { body, status } = response
            seen.push([status, body._tag === "Uint8Array" ? new TextDecoder().decode(body.body) : ""])
            return status === 409 ? "commit" : "rollback"
          }
        })
        yield* Layer.build(served)
        assert.strictEqual((yield* send("/refuse", { name: "kept" })).status, 409)
        assert.strictEqual((yield* send("/accept", { name: "undone" })).status, 202)
        assert.deepStrictEqual(
          seen.map(([status, body]) => [status, JSON.parse(body)._tag]),
          [
            [409, "Insufficient"],
            [202, "Accepted"]
          ]
        )
        assert.deepStrictEqual(yield* stored, ["kept"])
        yield* idle
      }).pipe(Effect.provide(servers))
    )

    for (const [failure, title] of [
      ["an-error", "an error"],
      ["a-defect", "a defect"]
    ] as const) {
      it.scopedLive(`a unit of work runs a handler again that has turned a collision into ${title}`, () =>
        Effect.gen(function* () {
          const { runs, served } = serve({ retry: true })
          yield* Layer.build(served)
          const response = yield* send(`/collide/${failure}`, { name: "kept" })
          assert.deepStrictEqual([response.status, runs.length], [204, 3])
          assert.deepStrictEqual(yield* stored, ["kept"])
          yield* idle
        }).pipe(Effect.provide(servers))
      )

      it.scopedLive(`a unit of work answers with the result of its last attempt (${title})`, () =>
        Effect.gen(function* () {
          const { runs, served } = serve({ retry: Schedule.recurs(1) })
          yield* Layer.build(served)
          const response = yield* send(`/collide/${failure}`, { name: "kept" })
          assert.deepStrictEqual([response.status, runs.length], [failure === "a-defect" ? 500 : 503, 2])
          if (failure === "an-error") assert.deepStrictEqual(yield* response.json, { _tag: "Unavailable" })
          assert.deepStrictEqual(yield* stored, [])
          yield* idle
        }).pipe(Effect.provide(servers))
      )

      it.scopedLive(`a unit of work runs its handler once without retry (${title})`, () =>
        Effect.gen(function* () {
          const { runs, served } = serve({})
          yield* Layer.build(served)
          const response = yield* send(`/collide/${failure}`, { name: "kept" })
          assert.deepStrictEqual([response.status, runs.length], [failure === "a-defect" ? 500 : 503, 1])
          assert.deepStrictEqual(yield* stored, [])
          yield* idle
        }).pipe(Effect.provide(servers))
      )
    }

    // a middleware of the endpoint cannot undo a pre-response handler, so it does not retry
    if (place.includes("RequestTransaction.Api")) {
      it.scopedLive("a unit of work with a pre-response handler is not retried", () =>
        Effect.gen(function* () {
          const { runs, served } = serve({ retry: true })
          yield* Layer.build(served)
          const response = yield* send("/cookie", { name: "signed in" })
          assert.deepStrictEqual([response.status, runs.length], [500, 1])
          assert.deepStrictEqual(yield* stored, [])
        }).pipe(Effect.provide(servers))
      )
    } else {
      it.scopedLive("a unit of work drops the pre-response handlers of an undone attempt", () =>
        Effect.gen(function* () {
          const { runs, served } = serve({ retry: true })
          yield* Layer.build(served)
          const response = yield* send("/cookie", { name: "signed in" })
          assert.deepStrictEqual([response.status, runs.length], [204, 2])
          const cookie = String(response.headers["set-cookie"])
          assert.include(cookie, "session-2")
          assert.notInclude(cookie, "session-1")
          assert.deepStrictEqual(yield* stored, ["signed in 2"])
        }).pipe(Effect.provide(servers))
      )
    }

    it.scopedLive("a unit of work answers with 500 if its option outcome throws after a failed handler", () =>
      Effect.gen(function* () {
        const { served } = serve({
          outcome: () => {
            throw new Error("undecided")
          }
        })
        yield* Layer.build(served)
        assert.strictEqual((yield* send("/collide/a-defect", { name: "undone" })).status, 500)
        assert.strictEqual((yield* send("/refuse", { name: "refused" })).status, 500)
        assert.deepStrictEqual(yield* stored, [])
        yield* idle
      }).pipe(Effect.provide(servers))
    )

    it.scopedLive("a unit of work retries transfers that collide, and no money is made or lost", () =>
      Effect.gen(function* () {
        const { writer } = yield* Place
        yield* query(writer, "INSERT INTO item (name, amount) SELECT n::text, 100 FROM generate_series(0, 7) n")
        const { served } = serve({ retry: true, transaction: { isolation: "serializable" } })
        yield* Layer.build(served)
        let retried = 0
        const db = yield* Db
        db.observers.add((observation) => {
          if (observation._tag === "Retried" && observation.what === "transaction") retried++
        })
        const account = Random.nextIntBetween(0, 8)
        const transfer = Effect.gen(function* () {
          const from = yield* account
          const to = (from + (yield* Random.nextIntBetween(1, 8))) % 8
          const amount = yield* Random.nextIntBetween(1, 60)
          return (yield* send("/transfer", { from: `${from}`, to: `${to}`, amount })).status
        })
        const statuses = yield* Effect.all(
          Array.from({ length: 150 }, () => transfer),
          { concurrency: 6 }
        )
        assert.deepStrictEqual(
          statuses.filter((status) => status !== 204 && status !== 409),
          []
        )
        // without a collision the test would prove nothing
        assert.isAbove(retried, 0)
        const [row] = yield* query<{ sum: number }>(writer, "SELECT sum(amount)::int AS sum FROM item")
        assert.strictEqual(row?.sum, 800)
        yield* idle
      }).pipe(Effect.withRandom(Random.make("transfers")), Effect.provide(servers))
    )
  })
}

it.scopedLive("middleware around the unit of work receives the handler's failure", () =>
  Effect.gen(function* () {
    const failures: Array<Cause.Cause<unknown>> = []
    const watching = HttpMiddleware.make((app) =>
      Effect.tapErrorCause(app, (cause) => Effect.sync(() => failures.push(cause)))
    )
    const { layer } = bank(around)
    const served = HttpApiBuilder.serve().pipe(
      Layer.provide(HttpApiBuilder.middleware((app) => watching(RequestTransaction.middleware()(app)))),
      Layer.provide(HttpApiBuilder.api(around)),
      Layer.provide(layer)
    )
    yield* Layer.build(served)
    assert.strictEqual((yield* send("/accept", { name: "accepted" })).status, 202)
    assert.deepStrictEqual(
      failures.map((cause) => Cause.squash(cause) instanceof Accepted),
      [true]
    )
    assert.deepStrictEqual(yield* stored, ["accepted"])
  }).pipe(Effect.provide(servers))
)
