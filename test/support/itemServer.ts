/**
 * A program that serves rows by HTTP, with a causal session for each client. Its arguments are the
 * URLs of the replicas. It prints its port.
 *
 * - `POST /item/<id>` stores a row.
 * - `GET /item/<id>` reads it by the reader.
 * - `GET /any/<id>` reads it from any replica, however old the replica's data is.
 */
import { createServer } from "node:http"
import { HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
import { NodeHttpServer, NodeRuntime } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { Consistency, Database, RequestTransaction } from "effect-db"

class Db extends Database.Service<Db>()("app") {}

const id = Effect.map(HttpRouter.params, (params) => Number(params.id))

const insert = Effect.gen(function* () {
  const sql = yield* Db.writer
  yield* sql`INSERT INTO item (id) VALUES (${yield* id})`
  return HttpServerResponse.empty({ status: 201 })
})

const select = Effect.gen(function* () {
  const sql = yield* Db.reader
  const rows = yield* sql`
    SELECT inet_server_port() AS port, EXISTS (SELECT 1 FROM item WHERE id = ${yield* id}) AS there`
  return HttpServerResponse.unsafeJson(rows[0])
})

const router = HttpRouter.empty.pipe(
  HttpRouter.post("/item/:id", insert),
  HttpRouter.get("/item/:id", select),
  HttpRouter.get("/any/:id", Db.withConsistency(select, Consistency.Eventual())),
  HttpRouter.use(RequestTransaction.middleware())
)

const live = HttpServer.serve(
  router,
  RequestTransaction.readYourWrites({ secret: Redacted.make("a secret that is long enough for a test") })
).pipe(
  Layer.provideMerge(
    Layer.effectDiscard(
      HttpServer.addressWith((address) =>
        Effect.sync(() => console.log(address._tag === "TcpAddress" ? address.port : 0))
      )
    )
  ),
  Layer.provide(NodeHttpServer.layer(createServer, { port: 0, host: "127.0.0.1" })),
  Layer.provide(
    Db.layer({
      writer: Redacted.make(process.env.DATABASE_URL ?? ""),
      readers: process.argv.slice(2).map((url) => Redacted.make(url))
    })
  )
)

NodeRuntime.runMain(Layer.launch(live))
