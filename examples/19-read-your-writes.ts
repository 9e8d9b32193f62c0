/**
 * A client reads its own writes in later requests, from a replica. Each response to a write sets a signed cookie with the position that a
 * replica must have reached to serve the client. Ctrl-C ends the server; with `--once` it sends requests to itself and ends.
 */
import { randomBytes } from "node:crypto"
import { createServer } from "node:http"
import { HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { Config, Effect, Layer, Redacted } from "effect"
import { RequestTransaction } from "effect-db"
import { ReplicatedLive } from "./databases.js"
import { runMain } from "./main.js"
import { host, isOnce, port } from "./requests.js"
import * as TodoHandlers from "./todoHandlers.js"
import * as Todos from "./todos.js"

const router = HttpRouter.empty.pipe(
  HttpRouter.get(
    "/todos",
    Effect.flatMap(Effect.all({ from: Todos.servedBy, todos: Todos.list }), HttpServerResponse.json)
  ),
  HttpRouter.post("/todos", TodoHandlers.add),
  HttpRouter.post("/todos/broken", TodoHandlers.addAndFail),
  HttpRouter.use(RequestTransaction.middleware())
)

// COOKIE_SECRET must be the same in all processes of a service; a random secret is enough for one process
const secret = Config.redacted("COOKIE_SECRET").pipe(Config.withDefault(Redacted.make(randomBytes(32).toString("hex"))))

const server = createServer()

const Http = Layer.unwrapEffect(
  Effect.map(secret, (secret) =>
    HttpServer.serve(router, RequestTransaction.readYourWrites({ secret, maxWait: "5 seconds" }))
  )
).pipe(Layer.provide(NodeHttpServer.layer(() => server, { host, port })), Layer.provide(ReplicatedLive))

runMain(Effect.provide(TodoHandlers.serve(server), Http), { isServer: !isOnce })
