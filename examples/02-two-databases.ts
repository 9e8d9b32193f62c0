/** Two databases in one unit of work: both commit, or both roll back. */
import { Console, Effect } from "effect"
import { UnitOfWork } from "effect-db"
import { Audit, DatabasesLive, Db } from "./databases.js"
import { runMain } from "./main.js"

const record = (what: string, subject: string) =>
  Effect.flatMap(Audit.writer, (log) => log`INSERT INTO event ${log.insert({ what, subject })}`)

const add = (title: string) =>
  Effect.gen(function* () {
    const sql = yield* Db.writer
    yield* sql`INSERT INTO todo ${sql.insert({ title })}`
    yield* record("todo.added", title)
    // a unit of work may be the handler of a request, a job, or any step that is stored as a whole
  }).pipe(UnitOfWork.run())

const stored = Effect.gen(function* () {
  const sql = yield* Db.writer
  const log = yield* Audit.writer
  const [todos] = yield* sql<{ n: number }>`SELECT count(*)::int AS n FROM todo`
  const [events] = yield* log<{ n: number }>`SELECT count(*)::int AS n FROM event`
  return `${todos?.n} todo, ${events?.n} event`
})

const program = Effect.gen(function* () {
  yield* add("milk")
  yield* Console.log(`committed: ${yield* stored}`)

  // The effect fails, so neither database stores anything.
  yield* Effect.flip(UnitOfWork.run(Effect.zipRight(add("eggs"), Effect.fail("changed my mind"))))
  yield* Console.log(`failed: ${yield* stored}`)

  // The second database would refuse its COMMIT. The constraints are checked before the first database commits.
  const wrong = Effect.flip(UnitOfWork.run(Effect.zipRight(add("bread"), record("todo.added", "milk"))))
  yield* Console.log(`refused at COMMIT (${(yield* wrong)._tag}): ${yield* stored}`)
})

runMain(Effect.provide(program, DatabasesLive))
