/** Transactions: all or nothing, nested transactions, hooks, and another attempt after a serialization failure. */
import { Console, Effect } from "effect"
import { DatabaseError } from "effect-db"
import { DatabasesLive, Db } from "./databases.js"
import { runMain } from "./main.js"
import * as Todos from "./todos.js"

const add = (title: string) => Todos.add({ title, done: false })

const shown = Effect.map(Todos.list, (todos) => todos.map(({ title }) => title).join(", "))

const program = Effect.gen(function* () {
  yield* Effect.all([add("milk"), add("eggs")]).pipe(
    Effect.zipLeft(Db.afterCommit(Console.log("afterCommit: runs when it is stored"))),
    Db.withTransaction()
  )
  yield* Console.log(`committed: ${yield* shown}`)

  // A failure, a defect or an interruption undoes the whole transaction.
  yield* add("bread").pipe(Effect.zipRight(Effect.fail("no")), Db.withTransaction(), Effect.flip)
  yield* Console.log(`failed: ${yield* shown}`)

  // A nested transaction is a savepoint: its failure can be caught, and the outer transaction continues.
  yield* Effect.gen(function* () {
    yield* add("bread")
    yield* add("milk").pipe(
      Db.withTransaction(),
      DatabaseError.refine,
      Effect.catchTag("UniqueViolation", ({ constraint }) => Console.log(`nested: undone by ${constraint}`))
    )
  }).pipe(Db.withTransaction())
  yield* Console.log(`outer: ${yield* shown}`)

  // If two serializable transactions read and write the same rows, the server refuses one, which is run again as a whole.
  let attempts = 0
  const finish = Effect.gen(function* () {
    attempts++
    const sql = yield* Db.writer
    const open = yield* sql<{ id: number }>`SELECT id FROM todo WHERE NOT done`
    yield* sql`UPDATE todo SET done = true, title = ${`${open.length} were open`} WHERE id = ${open[0]?.id ?? 0}`
  }).pipe(Db.withTransaction({ isolation: "serializable", retry: true }))
  yield* Effect.all([finish, finish], { concurrency: 2 })
  yield* Console.log(`serializable: both done, ${attempts > 2 ? "one of them again" : "one after the other"}`)
})

runMain(Effect.provide(program, DatabasesLive))
