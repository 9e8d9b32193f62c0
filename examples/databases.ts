/** The databases of the examples, as an application has them in a module of its own, with one table each. */
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

/** A replica has a table a moment after the primary. */
const isReplicated = Effect.flatMap(Db.reader, (sql) => sql`SELECT FROM todo`).pipe(
  Effect.retry(Schedule.intersect(Schedule.spaced("20 millis"), Schedule.recurs(500)))
)

/** An application has migrations. Here the tables go as they came; tables of these names that were there already are not touched. */
const Tables = Layer.scopedDiscard(
  Effect.acquireRelease(create, () => dropped("todo", drop)).pipe(
    Effect.zipRight(Effect.acquireRelease(createEvents, () => dropped("event", dropEvents))),
    Effect.zipRight(isReplicated)
  )
)

/** Everything that an example needs: servers, databases, tables. */
export const DatabasesLive = Tables.pipe(
  Layer.provideMerge(Layer.mergeAll(Db.layerConfig({ writer }), AuditLive)),
  Layer.provide(server())
)

/** The same with a replica. */
export const ReplicatedLive = Tables.pipe(
  Layer.provideMerge(Layer.mergeAll(Db.layerConfig({ writer, readers }), AuditLive)),
  Layer.provide(server({ replicas: 1 }))
)
