/** The databases of the examples, with one table each. An application has such a module, too. */
import { Config, Effect, Layer, Schedule } from "effect"
import { Database } from "effect-db"
import { dropped } from "./main.js"
import { server } from "./server.js"

export class Db extends Database.Service<Db>()("app") {}
export class Audit extends Database.Service<Audit>()("audit") {}

const writer = Config.redacted("DATABASE_URL")
const readers = Config.withDefault(Config.array(Config.redacted(), "DATABASE_READER_URLS"), [])

const AuditLive = Audit.layerConfig({ writer: Config.redacted("AUDIT_DATABASE_URL") })

const create = Effect.gen(function* () {
  const sql = yield* Db.writer
  yield* sql`
    CREATE TABLE todo (
      id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
      title text NOT NULL UNIQUE,
      done boolean NOT NULL DEFAULT false
    )`
})

const createEvents = Effect.flatMap(
  Audit.writer,
  (sql) => sql`CREATE TABLE event (what text NOT NULL, subject text UNIQUE DEFERRABLE INITIALLY DEFERRED)`
)

const drop = Effect.flatMap(Db.writer, (sql) => sql`DROP TABLE todo`)
const dropEvents = Effect.flatMap(Audit.writer, (sql) => sql`DROP TABLE event`)

/** Waits until the reader has the table: a replica has it a moment after the primary. */
const isReplicated = Effect.flatMap(Db.reader, (sql) => sql`SELECT FROM todo`).pipe(
  Effect.retry(Schedule.intersect(Schedule.spaced("20 millis"), Schedule.recurs(500)))
)

/**
 * Creates the tables, and drops them at the end. It fails if a table exists already, and does not drop that table. An application has
 * migrations instead.
 */
const Tables = Layer.scopedDiscard(
  Effect.acquireRelease(create, () => dropped("todo", drop)).pipe(
    Effect.zipRight(Effect.acquireRelease(createEvents, () => dropped("event", dropEvents))),
    Effect.zipRight(isReplicated)
  )
)

/** The servers, databases and tables of an example. */
export const DatabasesLive = Tables.pipe(
  Layer.provideMerge(Layer.mergeAll(Db.layerConfig({ writer }), AuditLive)),
  Layer.provide(server())
)

/** The same with a replica. */
export const ReplicatedLive = Tables.pipe(
  Layer.provideMerge(Layer.mergeAll(Db.layerConfig({ writer, readers }), AuditLive)),
  Layer.provide(server({ replicas: 1 }))
)
