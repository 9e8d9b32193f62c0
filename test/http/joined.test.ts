/**
 * A middleware inside of an open unit of work: that unit takes the options of the middleware, or
 * refuses them.
 */
import { once } from "node:events"
import type { AddressInfo } from "node:net"
import {
  HttpApi,
  HttpApiBuilder,
  HttpApiEndpoint,
  HttpApiGroup,
  HttpClient,
  HttpRouter,
  HttpServer,
  HttpServerResponse
} from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { DatabaseRuntime, RequestTransaction, UnitOfWork } from "effect-db"
import express from "express"
import { describe } from "vitest"
import { audit } from "../support/audit.js"
import { Audit, Db, fresh, insert, stored } from "../support/databases.js"

const isolation = Effect.flatMap(Db.writer, (sql) =>
  Effect.map(sql<{ it: string }>`SELECT current_setting('transaction_isolation') AS it`, (rows) => rows[0]?.it ?? "")
)

const collision = "DO $$ BEGIN RAISE EXCEPTION 'collision' USING ERRCODE = 'serialization_failure'; END $$"

const api = HttpApi.make("api").add(
  HttpApiGroup.make("items")
    .add(HttpApiEndpoint.post("isolation", "/isolation").addSuccess(Schema.String))
    .add(HttpApiEndpoint.post("collide", "/collide").addSuccess(Schema.String))
    .middleware(RequestTransaction.Api)
)

/** Creates handlers that return the isolation level; `collide` collides in its first run. */
const makeHandlers = () => {
  let runs = 0
  const collide = Effect.gen(function* () {
    runs++
    yield* insert(`attempt ${runs}`)
    if (runs === 1) yield* Effect.flatMap(Db.writer, (sql) => sql.unsafe(collision))
    return yield* isolation
  })
  return { isolation, collide }
}

type Inner = Pick<
  RequestTransaction.ApiOptions,
  "checkFirst" | "databases" | "onCommitFailed" | "order" | "outcome" | "retry" | "transaction"
>

const ways = {
  middleware: (inner: Inner, outer: RequestTransaction.Options) => {
    const { collide, isolation } = makeHandlers()
    const text = <E, R>(self: Effect.Effect<string, E, R>) => Effect.map(self, (it) => HttpServerResponse.text(it))
    const routes = HttpRouter.empty.pipe(
      HttpRouter.post("/isolation", text(isolation)),
      HttpRouter.post("/collide", text(collide)),
      HttpRouter.use(RequestTransaction.middleware(inner))
    )
    return Layer.build(HttpServer.serve(HttpRouter.use(routes, RequestTransaction.middleware(outer))))
  },
  "RequestTransaction.Api": (inner: Inner, outer: RequestTransaction.Options) => {
    const { collide, isolation } = makeHandlers()
    const items = HttpApiBuilder.group(api, "items", (handlers) =>
      handlers.handle("isolation", () => Effect.orDie(isolation)).handle("collide", () => Effect.orDie(collide))
    )
    return Layer.build(
      HttpApiBuilder.serve().pipe(
        Layer.provide(HttpApiBuilder.middleware(RequestTransaction.middleware(outer))),
        Layer.provide(HttpApiBuilder.api(api)),
        Layer.provide(items),
        Layer.provide(RequestTransaction.layerApi(inner))
      )
    )
  }
} as const

const post = (path: string) =>
  Effect.flatMap(HttpClient.post(path), (response) =>
    Effect.map(response.text, (text) => ({
      status: response.status,
      // an API answers in JSON
      text: text.replaceAll('"', "")
    }))
  )

const servers = Layer.mergeAll(NodeHttpServer.layerTest, fresh(), audit)

describe("a request in an open unit of work", () => {
  for (const [name, serve] of Object.entries(ways)) {
    it.scopedLive(`an open unit takes the transaction settings of an inner ${name}`, () =>
      Effect.gen(function* () {
        yield* serve({ transaction: { isolation: "serializable" } }, {})
        assert.deepStrictEqual(yield* post("/isolation"), { status: 200, text: "serializable" })
      }).pipe(Effect.provide(servers))
    )

    it.scopedLive(`an open unit takes the settings of an inner ${name} for a database before its general ones`, () =>
      Effect.gen(function* () {
        yield* serve(
          {
            transaction: () => ({ isolation: "repeatable read" }),
            databases: [UnitOfWork.on(Db, { isolation: "serializable" })]
          },
          {}
        )
        assert.deepStrictEqual(yield* post("/isolation"), { status: 200, text: "serializable" })
      }).pipe(Effect.provide(servers))
    )

    it.scopedLive(`an open unit with retry retries the request of an inner ${name} with retry`, () =>
      Effect.gen(function* () {
        yield* serve({ retry: true }, { retry: true })
        assert.deepStrictEqual(yield* post("/collide"), { status: 200, text: "read committed" })
        assert.deepStrictEqual(yield* stored, ["attempt 2"])
      }).pipe(Effect.provide(servers))
    )

    const conflicts: Readonly<Record<string, readonly [Inner, RequestTransaction.Options]>> = {
      retry: [{ retry: true }, {}],
      order: [{ order: [Audit, Db] }, { order: [Db, Audit] }],
      checkFirst: [{ checkFirst: false }, {}]
    }
    for (const [option, [inner, outer]] of Object.entries(conflicts)) {
      it.scopedLive(`an open unit refuses the option ${option} of an inner ${name} that contradicts its own`, () =>
        Effect.gen(function* () {
          const refused: Array<string> = []
          yield* serve(
            {
              ...inner,
              onCommitFailed: (error) => {
                refused.push(error._tag === "OptionsConflict" ? error.option : error._tag)
                return HttpServerResponse.empty({ status: 500 })
              }
            },
            outer
          )
          assert.strictEqual((yield* post("/collide")).status, 500)
          assert.deepStrictEqual([refused, yield* stored], [[option], []])
        }).pipe(Effect.provide(servers))
      )
    }
  }

  it.scopedLive("an open unit refuses the option outcome of an inner RequestTransaction.Api", () =>
    Effect.gen(function* () {
      const refused: Array<unknown> = []
      const onCommitFailed = (error: unknown) => {
        refused.push(error)
        return HttpServerResponse.empty({ status: 500 })
      }
      yield* ways["RequestTransaction.Api"]({ outcome: () => "commit", onCommitFailed }, {})
      for (const _ of [1, 2]) assert.strictEqual((yield* post("/isolation")).status, 500)
      assert.include(String(refused[0]), "set outcome on the outer middleware")
      assert.notStrictEqual(refused[0], refused[1])
    }).pipe(Effect.provide(servers))
  )

  it.scopedLive("a request with the setting none runs outside of an open unit", () =>
    Effect.gen(function* () {
      const routes = HttpRouter.empty.pipe(
        HttpRouter.post("/", Effect.as(insert("kept"), HttpServerResponse.empty({ status: 500 }))),
        HttpRouter.use(RequestTransaction.middleware({ transaction: () => "none" }))
      )
      yield* Layer.build(HttpServer.serve(HttpRouter.use(routes, RequestTransaction.middleware())))
      assert.strictEqual((yield* post("/")).status, 500)
      assert.deepStrictEqual(yield* stored, ["kept"])
    }).pipe(Effect.provide(servers))
  )

  const inRuntime = <A>(
    use: (
      runtime: DatabaseRuntime.DatabaseRuntime<{ readonly db: typeof Db }, Db>,
      add: () => Promise<void>
    ) => Promise<A>
  ) =>
    Effect.flatMap(Effect.context<Db>(), (context) =>
      Effect.promise(async () => {
        await using runtime = DatabaseRuntime.make({ db: Db }, Layer.succeedContext(context), { lazy: true })
        return await use(runtime, () => runtime.runPromise(Effect.asVoid(insert("kept"))))
      })
    )

  for (const session of [false, true]) {
    const readYourWrites = session ? { secret: Redacted.make("s".repeat(32)) } : undefined
    it.scopedLive(`a request with none in a runtime's middleware is outside of an open unit, session: ${session}`, () =>
      Effect.gen(function* () {
        const status = yield* inRuntime(async (runtime, add) => {
          const app = express()
          app.use(runtime.middleware())
          const outside = runtime.middleware({ transaction: () => "none", readYourWrites })
          app.post("/", outside, (_, response) => {
            void add().then(() => response.status(500).end())
          })
          const server = app.listen(0, "127.0.0.1")
          await once(server, "listening")
          const { port } = server.address() as AddressInfo
          const { status } = await fetch(`http://127.0.0.1:${port}/`, { method: "POST" })
          server.closeAllConnections()
          server.close()
          return status
        })
        assert.deepStrictEqual([status, yield* stored], [500, ["kept"]])
      }).pipe(Effect.provide(servers))
    )

    it.scopedLive(`a request with none in a runtime's handler is outside of an open unit, session: ${session}`, () =>
      Effect.gen(function* () {
        const status = yield* inRuntime(async (runtime, add) => {
          const inner = runtime.handler(
            async () => {
              await add()
              return new Response(null, { status: 500 })
            },
            { transaction: () => "none", readYourWrites }
          )
          const { status } = await runtime.handler(inner)(new Request("http://localhost/", { method: "POST" }))
          return status
        })
        assert.deepStrictEqual([status, yield* stored], [500, ["kept"]])
      }).pipe(Effect.provide(servers))
    )
  }
})
