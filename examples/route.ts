/** A module for serverless platforms or Next.js: it exports handlers, and has no start or end of its own. */
import { Schema } from "effect"
import { DatabaseRuntime } from "effect-db"
import { answerOf } from "./answers.js"
import { DatabasesLive, Db } from "./databases.js"
import * as Todos from "./todos.js"

// The first request opens the databases. A development server loads this module again after each change, and gets the same runtime.
export const runtime = DatabaseRuntime.shared("todos", () =>
  DatabaseRuntime.make({ db: Db }, DatabasesLive, { lazy: true })
)
const sql = runtime.databases.db.writer

export const GET = runtime.handler(async () => Response.json(await runtime.runPromise(Todos.list)), {
  transaction: { access: "read only" }
})

const add = async (request: Request): Promise<Response> => {
  const { title } = Schema.decodeUnknownSync(Todos.NewTodo)(await request.json())
  const [todo] = await sql<Todos.Todo>`INSERT INTO todo ${sql.insert({ title })} RETURNING id, title, done`
  // a status of 400 or more rolls back
  if (new URL(request.url).pathname === "/todos/broken") return Response.json({ error: "broken" }, { status: 500 })
  return Response.json(todo, { status: 201 })
}

export const POST = runtime.handler((request) =>
  add(request).catch((error) => {
    const { body, status } = answerOf(error)
    return Response.json(body, { status })
  })
)
