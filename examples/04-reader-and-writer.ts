/** Reads on a replica, writes on the primary, and the writes that a read is certain to see. */
import { Console, Effect, Schedule } from "effect"
import { Consistency, DatabaseError, UnitOfWork } from "effect-db"
import { Db, ReplicatedLive } from "./databases.js"
import { runMain } from "./main.js"
import * as Todos from "./todos.js"

const titles = Effect.map(Todos.list, (todos) => todos.map(({ title }) => title).join(", ") || "nothing")

const program = Effect.gen(function* () {
  yield* Console.log(`reader: ${yield* Todos.servedBy}`)

  // Reads in a unit of work go to a replica until the unit writes. Later reads run in its transaction and see its writes.
  yield* Effect.gen(function* () {
    yield* Console.log(`before the write: ${yield* titles}`)
    yield* Todos.add({ title: "milk", done: false })
    yield* Console.log(`after the write: ${yield* titles}, from ${yield* Todos.servedBy}`)
  }).pipe(UnitOfWork.run())

  // Only reads on the primary are certain to see what other programs have committed.
  const strong = Db.withConsistency(Effect.zip(titles, Todos.servedBy), Consistency.Strong())
  yield* Console.log(`strong: ${(yield* strong).join(", from ")}`)

  // A replica has the row a moment later.
  const later = Effect.repeat(titles, { until: (all) => all === "milk", schedule: Schedule.spaced("10 millis") })
  yield* Console.log(`eventually: ${yield* Effect.zipRight(later, titles)}`)

  // Reads in a causal session see the session's writes, on a replica that has them.
  const session = Consistency.makeSession({ maxWait: "5 seconds" })
  yield* Todos.add({ title: "eggs", done: false }).pipe(Consistency.withSession(session))
  const own = Effect.zip(titles, Todos.servedBy).pipe(Consistency.withSession(session))
  yield* Console.log(`in a session: ${(yield* own).join(", from ")}`)

  // A reader cannot write, even by a SELECT with a WITH clause: the server refuses the statement.
  const write = Effect.flatMap(Db.reader, (sql) => sql`WITH gone AS (DELETE FROM todo RETURNING id) SELECT * FROM gone`)
  const refused = yield* Effect.flip(DatabaseError.refine(write))
  yield* Console.log(`a write through the reader: ${refused._tag}`)
})

runMain(Effect.provide(program, ReplicatedLive))
