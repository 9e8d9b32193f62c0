/** A module of an application: a model and its functions. The handlers, the tests and the CSV loader use it. */
import { Effect, Schema } from "effect"
import { Db } from "./databases.js"

export const NewTodo = Schema.Struct({
  title: Schema.NonEmptyTrimmedString,
  done: Schema.optionalWith(Schema.Boolean, { default: () => false })
})

export type NewTodo = typeof NewTodo.Type

export const Todo = Schema.Struct({ id: Schema.Int, ...NewTodo.fields })

export type Todo = typeof Todo.Type

/** Stores todos, in the transaction of the caller if there is one. */
export const add = (...todos: ReadonlyArray<NewTodo>) =>
  Effect.flatMap(Db.writer, (sql) => sql<Todo>`INSERT INTO todo ${sql.insert([...todos])} RETURNING id, title, done`)

/** Returns all todos, from a replica if there is one, including those that this unit of work has written. */
export const list = Effect.flatMap(Db.reader, (sql) => sql<Todo>`SELECT id, title, done FROM todo ORDER BY id`)

/** The kind of server that serves the reads of `Db.reader`. */
export const servedBy = Effect.gen(function* () {
  const sql = yield* Db.reader
  const [row] = yield* sql<{ replica: boolean }>`SELECT pg_is_in_recovery() AS replica`
  return row?.replica === true ? "a replica" : "the primary"
})
