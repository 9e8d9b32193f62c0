import { randomUUID } from "node:crypto"
import { HttpApiSchema } from "@effect/platform"
import { Effect, Schema } from "effect"
import { Consistency } from "effect-db"
import * as Audit from "./audit.js"
import { Db } from "./databases.js"
import { expected, required, strict } from "./input.js"

export const TodoId = Schema.String.pipe(Schema.pattern(/^[\w-]{1,64}$/)).annotations(
  expected("1 to 64 letters, digits, - or _")
)

const Title = required(200)

const Done = Schema.Boolean.annotations(expected("true or false"))

export const Todo = Schema.Struct({
  id: TodoId,
  title: Title,
  done: Done,
  created: Schema.Date
}).annotations({ identifier: "Todo" })

export type Todo = typeof Todo.Type

/** A new todo. If the client chooses the id, it can look the todo up after an error, and safely send the request again. */
export const NewTodo = Schema.Struct({ id: Schema.optional(TodoId), title: Title }).annotations({
  identifier: "NewTodo",
  ...strict,
  message: () => 'expected JSON (content-type: application/json) such as {"title":"Buy milk"}'
})

export const TodoChange = Schema.Struct({ title: Schema.optional(Title), done: Schema.optional(Done) })
  .annotations({ ...strict, message: () => 'expected JSON (content-type: application/json) such as {"done":true}' })
  .pipe(
    Schema.filter((change) =>
      change.title === undefined && change.done === undefined
        ? "there is nothing to change: give title or done"
        : undefined
    )
  )
  .annotations({ identifier: "TodoChange" })

export class TodoNotFound extends Schema.TaggedError<TodoNotFound>()(
  "TodoNotFound",
  { id: Schema.String, message: Schema.String },
  HttpApiSchema.annotations({ status: 404, description: "There is no todo with this id" })
) {}

export class TodoExists extends Schema.TaggedError<TodoExists>()(
  "TodoExists",
  { id: Schema.String, message: Schema.String },
  HttpApiSchema.annotations({ status: 409, description: "There is a todo with this id already" })
) {}

const notFound = (id: string) => new TodoNotFound({ id, message: `there is no todo "${id}"` })

/** Sends reads of todos to the primary, so that they see every change that was acknowledged before. */
export const fresh = Db.withConsistency(Consistency.Strong())

export const list = (done: boolean | undefined) =>
  Effect.flatMap(
    Db.reader,
    (sql) => sql<Todo>`
      SELECT id, title, done, created FROM todo
      ${done === undefined ? sql.literal("") : sql`WHERE done = ${done}`} ORDER BY created, id`
  ).pipe(fresh)

export const get = (id: string) =>
  Effect.gen(function* () {
    const sql = yield* Db.reader
    const [todo] = yield* sql<Todo>`SELECT id, title, done, created FROM todo WHERE id = ${id}`
    return todo ?? (yield* notFound(id))
  }).pipe(fresh)

export const create = ({ id = randomUUID(), title }: typeof NewTodo.Type) =>
  Effect.gen(function* () {
    yield* Audit.record("todo.created", id)
    const sql = yield* Db.writer
    const [todo] = yield* sql<Todo>`
      INSERT INTO todo ${sql.insert({ id, title })} ON CONFLICT (id) DO NOTHING RETURNING id, title, done, created`
    return todo ?? (yield* new TodoExists({ id, message: `there is a todo "${id}" already` }))
  })

export const update = (id: string, change: typeof TodoChange.Type) =>
  Effect.gen(function* () {
    yield* Audit.record("todo.updated", id)
    const sql = yield* Db.writer
    const [todo] = yield* sql<Todo>`
      UPDATE todo SET ${sql.update(change)} WHERE id = ${id} RETURNING id, title, done, created`
    return todo ?? (yield* notFound(id))
  })

export const remove = (id: string) =>
  Effect.gen(function* () {
    yield* Audit.record("todo.deleted", id)
    const sql = yield* Db.writer
    const deleted = yield* sql`DELETE FROM todo WHERE id = ${id} RETURNING id`
    if (deleted.length === 0) yield* notFound(id)
  })
