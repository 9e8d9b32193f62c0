/**
 * A client reads its own writes in later requests, from a replica. Each response to a write sets a signed cookie with the position that a
 * replica must have reached to serve the client. Ctrl-C ends the server; with `--once` it sends requests to itself and ends.
 */
import { randomBytes } from "node:crypto"
import { createServer } from "node:http"
import { HttpRouter, HttpServer, HttpServerRequest, HttpServerResponse } from "@effect/platform"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { Config, Effect, Layer, Redacted } from "effect"
import { DatabaseError, RequestTransaction } from "effect-db"
import { Db, ReplicatedLive } from "./databases.js"
import { runMain } from "./main.js"
import { host, hurry, isOnce, listening, port, serveUntil } from "./requests.js"
import * as Todos from "./todos.js"

/** Returns the kind of server that serves the reads of `Db.reader`. */
const from = Effect.gen(function* () {
  const sql = yield* Db.reader
  const [row] = yield* sql<{ replica: boolean }>`SELECT pg_is_in_recovery() AS replica`
  return row?.replica === true ? "a replica" : "the primary"
})

const router = HttpRouter.empty.pipe(
  HttpRouter.get("/todos", Effect.flatMap(Effect.all({ from, todos: Todos.list }), HttpServerResponse.json)),
  HttpRouter.post(
    "/todos",
    Effect.gen(function* () {
      const [todo] = yield* Todos.add(yield* HttpServerRequest.schemaBodyJson(Todos.NewTodo))
      return yield* HttpServerResponse.json(todo, { status: 201 })
    }).pipe(
      DatabaseError.refine,
      Effect.catchTag("UniqueViolation", () => HttpServerResponse.json({ error: "there already" }, { status: 409 })),
      Effect.catchTag("ParseError", () => HttpServerResponse.json({ error: "expected a title" }, { status: 400 }))
    )
  ),
  HttpRouter.post(
    "/todos/broken",
    Effect.zipRight(Todos.add({ title: "never stored", done: false }), HttpServerResponse.empty({ status: 500 }))
  ),
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

const program = Effect.tryPromise(async (signal) => serveUntil(signal, await listening(server))).pipe(
  Effect.ensuring(Effect.sync(() => hurry(server)))
)

runMain(Effect.provide(program, Http), { isServer: !isOnce })
