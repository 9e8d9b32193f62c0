/** Handlers of the examples with an Effect HTTP server, and the program that serves. */
import type { Server } from "node:http"
import { HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { Effect } from "effect"
import { DatabaseError } from "effect-db"
import { hurry, listening, serveUntil } from "./requests.js"
import * as Todos from "./todos.js"

/** Stores the todo of a request. A response of 400 or more rolls back, as a failure does. */
export const add = Effect.gen(function* () {
  const [todo] = yield* Todos.add(yield* HttpServerRequest.schemaBodyJson(Todos.NewTodo))
  return yield* HttpServerResponse.json(todo, { status: 201 })
}).pipe(
  DatabaseError.refine,
  Effect.catchTag("UniqueViolation", () => HttpServerResponse.json({ error: "it is there already" }, { status: 409 })),
  Effect.catchTag("ParseError", ({ message }) => HttpServerResponse.json({ error: message }, { status: 400 }))
)

/** Stores a todo and answers with a failure, so that nothing is stored. */
export const addAndFail = Effect.zipRight(
  Todos.add({ title: "never stored", done: false }),
  HttpServerResponse.empty({ status: 500 })
)

/** Serves until Ctrl-C, or with `--once` until the requests are answered. */
export const serve = (server: Server) =>
  Effect.tryPromise(async (signal) => serveUntil(signal, await listening(server))).pipe(
    Effect.ensuring(Effect.sync(() => hurry(server)))
  )
