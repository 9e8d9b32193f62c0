/** A module of an application: a model, and what is done with it. Handlers, tests and the CSV loader use the same one. */
import { Effect, Schema } from "effect"
import { Db } from "./databases.js"

export const NewTodo = Schema.Struct({
  title: Schema.NonEmptyTrimmedString,
  done: Schema.optionalWith(Schema.Boolean, { default: () => false })
})

export type NewTodo = typeof NewTodo.Type

export const Todo = Schema.Struct({ id: Schema.Int, ...NewTodo.fields })

export type Todo = typeof Todo.Type

/** Stores them; the caller's transaction says when. */
export const add = (...todos: ReadonlyArray<NewTodo>) =>
  Effect.flatMap(Db.writer, (sql) => sql<Todo>`INSERT INTO todo ${sql.insert([...todos])} RETURNING id, title, done`)

/** All of them, from a replica where there is one; what this unit of work has written is among them. */
export const list = Effect.flatMap(Db.reader, (sql) => sql<Todo>`SELECT id, title, done FROM todo ORDER BY id`)
