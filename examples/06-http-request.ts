/**
 * An Effect HTTP server: each request is one unit of work, and the response is sent after its commit. Ctrl-C ends the server; with
 * `--once` it sends requests to itself and ends.
 */
import { createServer } from "node:http"
import { HttpRouter, HttpServer, HttpServerRequest, HttpServerResponse } from "@effect/platform"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { Effect, Layer } from "effect"
import { DatabaseError, RequestTransaction } from "effect-db"
import { DatabasesLive } from "./databases.js"
import { runMain } from "./main.js"
import { host, hurry, isOnce, listening, port, serveUntil } from "./requests.js"
import * as Todos from "./todos.js"

const router = HttpRouter.empty.pipe(
  HttpRouter.get("/todos", Effect.flatMap(Todos.list, HttpServerResponse.json)),
  HttpRouter.post(
    "/todos",
    Effect.gen(function* () {
      const [todo] = yield* Todos.add(yield* HttpServerRequest.schemaBodyJson(Todos.NewTodo))
      return yield* HttpServerResponse.json(todo, { status: 201 })
    }).pipe(
      DatabaseError.refine,
      // a response of 400 or more rolls back, as a failure does
      Effect.catchTag("UniqueViolation", () =>
        HttpServerResponse.json({ error: "it is there already" }, { status: 409 })
      ),
      Effect.catchTag("ParseError", ({ message }) => HttpServerResponse.json({ error: message }, { status: 400 }))
    )
  ),
  HttpRouter.post(
    "/todos/broken",
    Effect.zipRight(Todos.add({ title: "never stored", done: false }), HttpServerResponse.empty({ status: 500 }))
  ),
  HttpRouter.use(RequestTransaction.middleware({ transaction: RequestTransaction.readOnlyWhenSafe }))
)

const server = createServer()

const Http = HttpServer.serve(router).pipe(
  Layer.provide(NodeHttpServer.layer(() => server, { host, port })),
  // the databases are open before the first request, and until the last request is answered
  Layer.provide(DatabasesLive)
)

const program = Effect.tryPromise(async (signal) => serveUntil(signal, await listening(server))).pipe(
  Effect.ensuring(Effect.sync(() => hurry(server)))
)

runMain(Effect.provide(program, Http), { isServer: !isOnce })
