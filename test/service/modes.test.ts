/**
 * The example service in every mode of a test database, without a change of its own: the layers of its
 * databases are swapped.
 */

import * as HttpClient from "@effect/platform/HttpClient"
import * as HttpClientRequest from "@effect/platform/HttpClientRequest"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { assert, it } from "@effect/vitest"
import { PGlite } from "@electric-sql/pglite"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { TestDatabase } from "effect-db"
import { describe } from "vitest"
import * as Cluster from "../../examples/service/cluster.js"
import { Audit, Db } from "../../examples/service/databases.js"
import * as Http from "../../examples/service/http.js"
import * as Import from "../../examples/service/import.js"
import * as Migrations from "../../examples/service/migrations.js"
import * as Playground from "../../examples/service/playground.js"
import * as Servers from "../../examples/service/servers.js"
import { freshDatabase } from "../support/server.js"

const airport = { iata: "XXA", name: "Test", city: "A", state: "B", country: "C", latitude: 1, longitude: 2 }

const send = (method: "GET" | "POST" | "PATCH" | "DELETE", path: string, body?: object) =>
  Effect.gen(function* () {
    const client = yield* HttpClient.HttpClient
    const request = HttpClientRequest.make(method)(path)
    const response = yield* client.execute(
      body === undefined ? request : yield* HttpClientRequest.bodyJson(request, body)
    )
    const text = yield* response.text
    return { status: response.status, body: text === "" ? undefined : JSON.parse(text) }
  })

/** Uses the service over HTTP; returns all that it answers, without times. */
const useService = Effect.gen(function* () {
  const created = yield* send("POST", "/todos", { id: "milk", title: "Buy milk" })
  const again = yield* send("POST", "/todos", { id: "milk", title: "Buy eggs" })
  const changed = yield* send("PATCH", "/todos/milk", { done: true })
  const missing = yield* send("PATCH", "/todos/none", { done: true })
  const invalid = yield* send("POST", "/todos", { title: "" })
  const listed = yield* send("GET", "/todos")
  const deleted = yield* send("DELETE", "/todos/milk")
  const records = yield* send("GET", "/records/XXA")
  const events = yield* send("GET", "/events?subject=milk")
  const answers = { created, again, changed, missing, invalid, listed, deleted, records, events }
  return JSON.parse(
    JSON.stringify(answers, (key, value) =>
      ["created", "at", "id", "request"].includes(key) && typeof value === "string" ? key : value
    )
  )
})

const importAirport = Import.run("airports", Stream.make({ airport, bytes: 1 }))

/** The service, on the databases of the context. */
const service = Effect.scoped(
  Effect.gen(function* () {
    yield* Layer.build(Http.layer)
    return yield* useService
  })
).pipe(
  Effect.provide(NodeHttpServer.layerTest),
  Effect.provide([
    Playground.none,
    Cluster.none,
    Layer.succeed(Servers.Servers, {
      embedded: false,
      all: Effect.succeed([]),
      killBackends: Effect.succeed(0),
      caughtUp: Effect.succeed(true)
    })
  ])
)

const live = Layer.unwrapScoped(
  Effect.gen(function* () {
    const [app, audit] = [yield* freshDatabase, yield* freshDatabase]
    return Layer.merge(Db.layer({ writer: app.writer }), Audit.layer({ writer: audit.writer }))
  })
)

const sandboxes = Layer.merge(TestDatabase.layer(Db), TestDatabase.layer(Audit))
const pglite = { pglite: Effect.promise(() => PGlite.create()) }

const modes = {
  "in sandboxes": Layer.provide(sandboxes, live),
  "in sandboxes with faults, recorded and shuffled": Layer.provide(
    Layer.merge(
      TestDatabase.layerShuffled(Db).pipe(Layer.provide(TestDatabase.layerRecorded(Db))),
      TestDatabase.layerShuffled(Audit).pipe(Layer.provide(TestDatabase.layerRecorded(Audit)))
    ).pipe(Layer.provide(sandboxes)),
    Layer.provide(Layer.merge(TestDatabase.layerFaults(Db), TestDatabase.layerFaults(Audit)), live)
  ),
  "in copies of templates": Layer.provide(
    Layer.merge(
      TestDatabase.layerTemplate(Db, { migrate: Effect.void }),
      TestDatabase.layerTemplate(Audit, { migrate: Effect.void })
    ),
    live
  ),
  "in a PGlite each": Layer.provide(
    sandboxes,
    Layer.merge(TestDatabase.layerPglite(Db, pglite), TestDatabase.layerPglite(Audit, pglite))
  )
} as const

const run = <E>(databases: Layer.Layer<Db | Audit, E>, imports: boolean) =>
  Migrations.run.pipe(
    Effect.zipRight(imports ? importAirport : Effect.void),
    Effect.zipRight(service),
    Effect.provide(databases)
  )

describe("the example service", () => {
  for (const [name, databases] of Object.entries(modes)) {
    it.scopedLive(
      `the example service answers as on its own databases ${name}`,
      () =>
        Effect.gen(function* () {
          // a PGlite cannot read the data of COPY
          const imports = name !== "in a PGlite each"
          const expected = yield* run(live, imports)
          assert.strictEqual(expected.created.status, 201)
          assert.strictEqual(expected.again.status, 409)
          assert.lengthOf(expected.events.body, 3)
          assert.deepStrictEqual(yield* run(databases, imports), expected)
        }),
      60_000
    )
  }
})
