/**
 * Express 5 with plain async handlers: each request is one unit of work. Ctrl-C ends the server; with `--once` it sends requests to
 * itself and ends.
 */

import { DatabaseRuntime } from "effect-db"
import express, { type ErrorRequestHandler } from "express"
import { answerOf } from "./answers.js"
import { DatabasesLive, Db } from "./databases.js"
import { main } from "./main.js"
import { closed, host, listening, port, serveUntil } from "./requests.js"
import * as Todos from "./todos.js"

const runtime = DatabaseRuntime.make({ db: Db }, DatabasesLive)
const sql = runtime.databases.db.writer

const app = express()
app.use(express.json())
// After the body parser. The statements of the handlers below share one transaction, and the response waits for its commit.
app.use(runtime.middleware())

app.post("/todos", async (request, response) => {
  const [todo] = await sql<Todos.Todo>`
    INSERT INTO todo ${sql.insert({ title: request.body.title })} RETURNING id, title, done`
  response.status(201).json(todo)
})

app.post("/todos/broken", async (request) => {
  await sql`INSERT INTO todo ${sql.insert({ title: request.body.title })}`
  throw new Error("after the insert") // `failed` answers, and nothing is stored
})

// Effects run in the unit of work of the request, too.
app.get("/todos", async (_, response) => {
  response.json(await runtime.runPromise(Todos.list))
})

const failed: ErrorRequestHandler = (error, _request, response, _next) => {
  const { body, status } = answerOf(error)
  response.status(status).json(body)
}
app.use(failed)

main(async (signal) => {
  // before the first request, so that a wrong setting is reported at the start
  await runtime.open()
  try {
    const server = app.listen(port, host)
    await serveUntil(signal, await listening(server))
    await closed(server)
  } finally {
    await runtime.close()
  }
})
