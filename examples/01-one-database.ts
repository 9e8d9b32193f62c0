/** One database in an Effect program: `NodeRuntime.runMain` opens it at the start and closes it at the end. */
import { Config, Console, Effect, Layer } from "effect"
import { Database } from "effect-db"
import { runMain } from "./main.js"
import { server } from "./server.js"

// A database is a class. Its name identifies it in types, errors and metrics.
class Db extends Database.Service<Db>()("app") {}

// The layer opens the database and closes it when the program ends. It fails if the server does not answer.
const DbLive = Db.layerConfig({ writer: Config.redacted("DATABASE_URL") })

// No database is passed as an argument: the type of `add` requires `Db`, and a program without its layer does not compile.
const add = (title: string) => Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO todo ${sql.insert({ title })}`)

const program = Effect.gen(function* () {
  const sql = yield* Db.writer
  yield* Effect.acquireRelease(sql`CREATE TABLE todo (title text)`, () => Effect.ignore(sql`DROP TABLE todo`))
  yield* add("milk")
  yield* add("eggs")
  const rows = yield* sql<{ title: string }>`SELECT title FROM todo ORDER BY title`
  yield* Console.log(`stored: ${rows.map(({ title }) => title).join(", ")}`)

  const { database, servers } = yield* Db.status
  yield* Console.log(`open: ${database}, on ${servers.length} server`)
})

// An application calls `NodeRuntime.runMain`, and has the settings in its environment.
runMain(program.pipe(Effect.scoped, Effect.provide(Layer.provide(DbLive, server()))))
