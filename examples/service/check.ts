import { Effect } from "effect"
import type { Event } from "./audit.js"
import type { Ledger } from "./ledger.js"
import type { Airport } from "./records.js"
import { direct, on, type Server, Servers } from "./servers.js"

/** The result of a check: a line for the report, and the problems. */
export interface Finding {
  readonly line: string
  readonly problems: ReadonlyArray<string>
}

const query = <Row extends object>(server: Server, sql: string, params: ReadonlyArray<unknown> = []) =>
  on(
    server,
    Effect.flatMap(direct, (client) => client.unsafe<Row>(sql, params))
  )

const n = (count: number) => count.toLocaleString("en")

/** Checks that every todo is as it was acknowledged, that deleted todos are gone, and that this run has stored no other todo. */
export const todos = (server: Server, name: string, ledger: Ledger) =>
  Effect.gen(function* () {
    const rows = yield* query<{ id: string; title: string; done: boolean }>(
      server,
      "SELECT id, title, done FROM todo WHERE starts_with(id, $1)",
      [`${name}-`]
    )
    const problems: Array<string> = []
    const seen = new Set<string>()
    for (const { done, id, title } of rows) {
      const expected = ledger.todos.get(id)
      if (seen.has(id)) problems.push(`todo ${id} is there twice`)
      else if (expected === undefined) problems.push(`todo ${id} is there, and should not be`)
      else if (expected.title !== title || expected.done !== done) problems.push(`todo ${id} is not as acknowledged`)
      seen.add(id)
    }
    for (const [id, expected] of ledger.todos) {
      if (expected !== undefined && !seen.has(id)) problems.push(`todo ${id} is lost`)
    }
    const gone = [...ledger.todos.values()].filter((state) => state === undefined).length
    return { line: `todos      ${n(rows.length)} as acknowledged, ${n(gone)} deleted and gone`, problems }
  })

/** Checks that every change has its one event, and that every event belongs to a change that was acknowledged or answered with an error. */
export const events = (server: Server, name: string, ledger: Ledger) =>
  Effect.gen(function* () {
    const rows = yield* query<Pick<Event, "what" | "subject" | "request">>(
      server,
      "SELECT what, subject, request FROM event WHERE starts_with(request, $1)",
      [`${name}-`]
    )
    const problems: Array<string> = []
    const left = new Map<string, ReadonlyArray<Pick<Event, "what" | "subject">>>()
    for (const row of rows) left.set(row.request, [...(left.get(row.request) ?? []), row])
    let changes = 0
    let partly = 0
    for (const { change, outcome, request } of ledger.attempts) {
      const found = left.get(request) ?? []
      left.delete(request)
      const stored = change !== undefined && (outcome === "acknowledged" || outcome === "found stored")
      if (stored) changes++
      if (found.length > 1) problems.push(`request ${request} has ${found.length} events`)
      else if (stored && found.length === 0) problems.push(`request ${request} has no event`)
      else if (found.some(({ subject, what }) => subject !== change?.subject || what !== change.what)) {
        problems.push(`request ${request} has the event of another change`)
      } else if (!stored && found.length > 0) {
        if (outcome === "not stored") problems.push(`request ${request} has an event, and was answered "not stored"`)
        else partly++
      }
    }
    for (const request of left.keys()) problems.push(`there are events of a request ${request} that was never sent`)
    return {
      line: `audit      ${n(changes)} changes with one event each; answered with an error, and stored in part: ${partly}`,
      problems
    }
  })

/** Checks that every row of the file is stored exactly once, with its values. */
export const records = (server: Server, rows: ReadonlyArray<Airport>) =>
  Effect.gen(function* () {
    const stored = yield* query<Airport>(
      server,
      "SELECT iata, name, city, state, country, latitude, longitude FROM record"
    )
    const text = (row: Airport) =>
      JSON.stringify([row.iata, row.name, row.city, row.state, row.country, row.latitude, row.longitude])
    const found = new Map<string, string>()
    const problems: Array<string> = []
    for (const row of stored) {
      if (found.has(row.iata)) problems.push(`record ${row.iata} is there twice on the ${server.role}`)
      found.set(row.iata, text(row))
    }
    for (const row of rows) {
      const is = found.get(row.iata)
      if (is === undefined) problems.push(`record ${row.iata} is missing on the ${server.role}`)
      else if (is !== text(row)) problems.push(`record ${row.iata} has other values on the ${server.role}`)
    }
    const others = stored.length - rows.length
    const more = others > 0 ? `, beside ${n(others)} of other files` : ""
    return { line: `records    ${n(rows.length)} on the ${server.role}, each exactly once${more}`, problems }
  })

/** Runs the checks on every server: todos and records of the primary, records of a replica, events of the audit database. */
export const all = (name: string, ledger: Ledger, rows: ReadonlyArray<Airport>) =>
  Effect.gen(function* () {
    const servers = yield* Servers
    const checks = (yield* servers.all).map((server) =>
      server.database === "audit"
        ? [events(server, name, ledger)]
        : server.role === "primary"
          ? [todos(server, name, ledger), records(server, rows)]
          : [records(server, rows)]
    )
    return yield* Effect.all(checks.flat(), { concurrency: "unbounded" })
  })
