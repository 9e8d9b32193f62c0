/** Lost connections: the rows that are stored, the errors, and the retries. */
import { Console, Effect } from "effect"
import { DatabaseError } from "effect-db"
import { DatabasesLive, Db } from "./databases.js"
import { runMain } from "./main.js"
import * as Todos from "./todos.js"

const count = Effect.map(Todos.list, (todos) => `${todos.length} stored`)

const pid = Effect.gen(function* () {
  const sql = yield* Db.writer
  const [row] = yield* sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`
  return row?.pid ?? 0
})

/** Makes the server end a connection, as an administrator, a restart or a failover does. */
const kill = (pid: number) => Effect.flatMap(Db.writer, (sql) => sql`SELECT pg_terminate_backend(${pid}, 5000)`)

/** Adds a todo. In the first `losses` attempts the connection is lost before the end of the transaction. */
const add = (title: string, losses: number) => {
  let attempts = 0
  return Effect.gen(function* () {
    yield* Todos.add({ title, done: false })
    if (attempts++ < losses) yield* kill(yield* pid)
    return attempts
  })
}

const program = Effect.gen(function* () {
  // An idle connection that is lost is replaced, and no statement fails.
  const [ours, theirs] = yield* Db.withTransaction(
    Effect.gen(function* () {
      const ours = yield* pid
      const theirs = yield* Db.independent(pid)
      yield* kill(theirs)
      return [ours, theirs] as const
    })
  )
  const all = yield* Effect.all([pid, pid, pid].map(Db.withTransaction()), { concurrency: 3 })
  yield* Console.log(
    `idle: ${all.includes(theirs) ? "used" : "replaced"}, ${ours === theirs ? "one" : "two"} were open`
  )

  // If the connection of a transaction is lost, nothing is stored, and the outcome of the error says so.
  const lost = yield* add("milk", 1).pipe(Db.withTransaction(), DatabaseError.refine, Effect.flip)
  yield* Console.log(`in a transaction: ${lost._tag}, ${"outcome" in lost ? lost.outcome : "?"}, ${yield* count}`)

  // With `retry`, the whole transaction runs again on another connection.
  const attempts = yield* Db.withTransaction(add("eggs", 1), { retry: true })
  yield* Console.log(`with retry: ${attempts} attempts, ${yield* count}`)
})

runMain(Effect.provide(program, DatabasesLive))
