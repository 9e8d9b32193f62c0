/**
 * Fastify 5: its hooks open and close the databases and begin the unit of work. Ctrl-C ends the server; with `--once` it sends requests
 * to itself and ends.
 */

import { DatabaseRuntime } from "effect-db"
import fastify from "fastify"
import { answerOf } from "./answers.js"
import { DatabasesLive, Db } from "./databases.js"
import { main } from "./main.js"
import { host, hurry, listening, port, serveUntil } from "./requests.js"
import * as Todos from "./todos.js"

const runtime = DatabaseRuntime.make({ db: Db }, DatabasesLive)
const sql = runtime.databases.db.writer

const app = fastify({ forceCloseConnections: "idle" })
app.addHook("onReady", () => runtime.open())
app.addHook("onClose", () => runtime.close())

// `preHandler` is the last hook before the handler, after the body has been read. The handler is one unit of work.
const inUnit = runtime.middleware()
app.addHook("preHandler", (request, reply, done) => inUnit(request.raw, reply.raw, done))

app.post<{ Body: Todos.NewTodo }>("/todos", async ({ body }, reply) => {
  const [todo] = await sql<Todos.Todo>`INSERT INTO todo ${sql.insert({ title: body.title })} RETURNING id, title, done`
  return reply.status(201).send(todo)
})

app.post<{ Body: Todos.NewTodo }>("/todos/broken", async ({ body }) => {
  await sql`INSERT INTO todo ${sql.insert({ title: body.title })}`
  throw new Error("after the insert") // the error handler answers, and nothing is stored
})

app.setErrorHandler((error, _, reply) => {
  const { body, status } = answerOf(error)
  return reply.status(status).send(body)
})

// Effects run in the unit of work of the request, too.
app.get("/todos", () => runtime.runPromise(Todos.list))

main(async (signal) => {
  try {
    await app.listen({ host, port })
    await serveUntil(signal, await listening(app.server))
  } finally {
    hurry(app.server)
    await app.close()
  }
})
