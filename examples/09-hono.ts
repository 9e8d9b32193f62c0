/**
 * Hono, as an example of all frameworks that turn a `Request` into a `Response`: each request is one unit of work. Ctrl-C ends the
 * server; with `--once` it sends requests to itself and ends.
 */
import type { Server } from "node:http"
import { serve } from "@hono/node-server"
import { DatabaseRuntime } from "effect-db"
import { Hono } from "hono"
import { answerOf } from "./answers.js"
import { DatabasesLive, Db } from "./databases.js"
import { main } from "./main.js"
import { closed, host, listening, port, serveUntil } from "./requests.js"
import * as Todos from "./todos.js"

const runtime = DatabaseRuntime.make({ db: Db }, DatabasesLive)
const sql = runtime.databases.db.writer

const app = new Hono()

app.post("/todos", async (context) => {
  const { title } = await context.req.json<Todos.NewTodo>()
  const [todo] = await sql<Todos.Todo>`INSERT INTO todo ${sql.insert({ title })} RETURNING id, title, done`
  return context.json(todo, 201)
})

app.post("/todos/broken", async (context) => {
  const { title } = await context.req.json<Todos.NewTodo>()
  await sql`INSERT INTO todo ${sql.insert({ title })}`
  throw new Error("after the insert") // `onError` answers, and nothing is stored
})

// Effects run in the unit of work of the request, too.
app.get("/todos", async (context) => context.json(await runtime.runPromise(Todos.list)))

app.onError((error, context) => {
  const { body, status } = answerOf(error)
  return context.json(body, status)
})

// Around the whole app. The response is returned after the commit; if the commit fails, an error response replaces it.
const fetch = runtime.handler(app.fetch)

main(async (signal) => {
  await runtime.open()
  try {
    // the cast: without options for HTTP/2 it is a server of HTTP/1
    const server = serve({ fetch, hostname: host, port }) as Server
    await serveUntil(signal, await listening(server))
    await closed(server)
  } finally {
    await runtime.close()
  }
})
