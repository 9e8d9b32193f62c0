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

/** Says which request a change belongs to; the client may choose it, to find its events again. */
export class RequestId extends Context.Reference<RequestId>()("example/RequestId", { defaultValue: () => "none" }) {}

/**
 * Adds an event to the unit of work. It has to come before the change itself: a unit commits its databases in the order in which they
 * were touched, so a change is never stored without its event. What can remain is an event of a change that was answered with an error.
 */
export const record = (what: Event["what"], subject: string) =>
  Effect.gen(function* () {
    const sql = yield* Audit.writer
    yield* sql`INSERT INTO event ${sql.insert({ what, subject, request: yield* RequestId })}`
  })

/** The latest events, all or those of one subject, the last one first. */
export const latest = (subject: string | undefined) =>
  Effect.flatMap(
    Audit.reader,
    (sql) => sql<Event>`
      SELECT id::float8 AS id, at, what, subject, request FROM event
      ${subject === undefined ? sql.literal("") : sql`WHERE subject = ${subject}`} ORDER BY event.id DESC LIMIT 100`
  )
