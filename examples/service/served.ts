import { HttpApp, HttpServerResponse } from "@effect/platform"
import type { PgClient } from "@effect/sql-pg/PgClient"
import { Effect } from "effect"

export const header = "x-served-by"

interface Asked<Id> {
  readonly databaseName: string
  readonly reader: Effect.Effect<PgClient, never, Id>
}

/**
 * Queries the server that does the work, in the same unit of work: in its transaction if there is one, else on the server that the unit
 * reads from. The query runs twice, because `now()` is the same in two statements only inside of a transaction.
 */
const ask = <Id>({ reader }: Asked<Id>) => {
  const question = Effect.flatMap(
    reader,
    (sql) => sql<{ server: string; began: string }>`
      SELECT concat_ws(' ', CASE WHEN pg_is_in_recovery() THEN 'replica' ELSE 'primary' END,
                       host(inet_server_addr()) || ':' || inet_server_port()) AS server, now()::text AS began`
  )
  return Effect.map(Effect.all([question, question]), ([[first], [second]]) => ({
    server: first?.server ?? "",
    inTransaction: first?.began === second?.began
  }))
}

/** Adds headers to the response: the database, the server, a flag for a transaction, and the time of the work with its commit. */
export const signed =
  <Id>(database: Asked<Id>) =>
  <A, E, R>(self: Effect.Effect<A, E, R>) =>
    Effect.gen(function* () {
      const started = performance.now()
      const result = yield* self
      const done = performance.now()
      const { inTransaction, server } = yield* ask(database)
      const asking = performance.now() - done
      // this handler runs after the commit of the unit of work
      yield* HttpApp.appendPreResponseHandler((_, response) =>
        Effect.sync(() =>
          HttpServerResponse.setHeaders(response, {
            [header]: server,
            "x-database": database.databaseName,
            "x-transaction": inTransaction ? "yes" : "no",
            "server-timing": `work;dur=${(performance.now() - started - asking).toFixed(1)}`
          })
        )
      )
      return result
    })
