import { HttpApp, HttpServerResponse } from "@effect/platform"
import { Effect } from "effect"
import { Db } from "./databases.js"

export const header = "x-served-by"

const question = Effect.flatMap(
  Db.reader,
  (sql) => sql<{ server: string }>`
    SELECT concat_ws(' ', CASE WHEN pg_is_in_recovery() THEN 'replica' ELSE 'primary' END,
                     host(inet_server_addr()) || ':' || inet_server_port()) AS server`
)

/**
 * Says in the response which server did the work. The server itself is asked, inside of the same unit of work: in the transaction where
 * there is one, else on the replica that this unit of work reads from.
 */
export const signed = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.tap(self, () =>
    Effect.flatMap(question, ([row]) =>
      HttpApp.appendPreResponseHandler((_, response) =>
        Effect.succeed(HttpServerResponse.setHeader(response, header, row?.server ?? ""))
      )
    )
  )
