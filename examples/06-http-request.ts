/**
 * An Effect HTTP server: each request is one unit of work, and the response is sent after its commit. Ctrl-C ends the server; with
 * `--once` it sends requests to itself and ends.
 */
import { createServer } from "node:http"
import { HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { Effect, Layer } from "effect"
import { RequestTransaction } from "effect-db"
import { DatabasesLive } from "./databases.js"
import { runMain } from "./main.js"
import { host, isOnce, port } from "./requests.js"
import * as TodoHandlers from "./todoHandlers.js"
import * as Todos from "./todos.js"

const router = HttpRouter.empty.pipe(
  HttpRouter.get("/todos", Effect.flatMap(Todos.list, HttpServerResponse.json)),
  HttpRouter.post("/todos", TodoHandlers.add),
  HttpRouter.post("/todos/broken", TodoHandlers.addAndFail),
  HttpRouter.use(RequestTransaction.middleware({ transaction: RequestTransaction.readOnlyWhenSafe }))
)

const server = createServer()

const Http = HttpServer.serve(router).pipe(
  Layer.provide(NodeHttpServer.layer(() => server, { host, port })),
  // the databases are open before the first request, and until the last request is answered
  Layer.provide(DatabasesLive)
)

runMain(Effect.provide(TodoHandlers.serve(server), Http), { isServer: !isOnce })
