/** Connections that are lost: the rows that are stored, the errors, and the retries. */
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

/** Has the server end a connection, as an administrator, a restart or a failover does. */
const kill = (pid: number) => Effect.flatMap(Db.writer, (sql) => sql`SELECT pg_terminate_backend(${pid}, 5000)`)

/** Adds a todo; the connection is lost before the transaction's end, as often as is said. */
const add = (title: string, losses: number) => {
  let attempts = 0
  return Effect.gen(function* () {
    yield* Todos.add({ title, done: false })
    if (attempts++ < losses) yield* kill(yield* pid)
    return attempts
  })
}

const program = Effect.gen(function* () {
  // An idle connection is lost: it is replaced, and no statement fails.
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

  // In a transaction: nothing of it is stored, and the failure says so.
  const lost = yield* add("milk", 1).pipe(Db.withTransaction(), DatabaseError.refine, Effect.flip)
  yield* Console.log(`in a transaction: ${lost._tag}, ${"outcome" in lost ? lost.outcome : "?"}, ${yield* count}`)

  // The same, where the transaction may be run again: it does, as a whole, on another connection.
  const attempts = yield* Db.withTransaction(add("eggs", 1), { retry: true })
  yield* Console.log(`with retry: ${attempts} attempts, ${yield* count}`)
})

runMain(Effect.provide(program, DatabasesLive))
