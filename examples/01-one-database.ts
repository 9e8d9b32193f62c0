/** One database in an Effect program: `NodeRuntime.runMain` opens it at the start and closes it at the end. */
import { Config, Console, Effect, Layer } from "effect"
import { Database } from "effect-db"
import { runMain } from "./main.js"
import { server } from "./server.js"

// A database is a class. Its name tells it apart in types, errors and metrics.
class Db extends Database.Service<Db>()("app") {}

// The layer opens it, for as long as the program runs. It fails where the server does not answer.
const DbLive = Db.layerConfig({ writer: Config.redacted("DATABASE_URL") })

// Nothing is handed down: what asks for `Db.writer` says so in its type, and does not compile where no layer gives it.
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

// In an application this is `NodeRuntime.runMain`, and the settings are there already.
runMain(program.pipe(Effect.scoped, Effect.provide(Layer.provide(DbLive, server()))))
