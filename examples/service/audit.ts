import { Context, Effect, Schema } from "effect"
import { Audit } from "./databases.js"

export const Event = Schema.Struct({
  id: Schema.Number,
  at: Schema.Date,
  what: Schema.Literal("todo.created", "todo.updated", "todo.deleted", "records.imported"),
  subject: Schema.String,
  request: Schema.String
}).annotations({ identifier: "Event" })

export type Event = typeof Event.Type

/** The id of the request that makes a change. The client may choose the id, to find the events of the request. */
export class RequestId extends Context.Reference<RequestId>()("example/RequestId", { defaultValue: () => "none" }) {}

/**
 * Adds an event to the unit of work. Call it before the change, or set `order`: by default a unit commits transactions of the same risk in
 * the order of their first statements, so a change is never stored without its event. If the second COMMIT fails, the event is stored
 * without its change.
 */
export const record = (what: Event["what"], subject: string) =>
  Effect.gen(function* () {
    const sql = yield* Audit.writer
    yield* sql`INSERT INTO event ${sql.insert({ what, subject, request: yield* RequestId })}`
  })

/** Returns the latest hundred events, of all subjects or of one, the last event first. */
export const latest = (subject: string | undefined) =>
  Effect.flatMap(
    Audit.reader,
    (sql) => sql<Event>`
      SELECT id::float8 AS id, at, what, subject, request FROM event
      ${subject === undefined ? sql.literal("") : sql`WHERE subject = ${subject}`} ORDER BY event.id DESC LIMIT 100`
  )
