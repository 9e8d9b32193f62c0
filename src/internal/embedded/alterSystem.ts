/**
 * The change of settings of a running server.
 */
import * as Effect from "effect/Effect"
import * as Sql from "./adminSession.js"
import type { Operation } from "./operationFailed.js"
import type { Server } from "./server.js"

/**
 * Changes settings of a running server, and waits until its processes have received the signal to
 * read them. A setting without a value gets that of postgresql.conf.
 */
export const alterSystem = (
  operation: Operation,
  server: Server,
  settings: Readonly<Record<string, string | number | undefined>>
) =>
  Effect.gen(function* () {
    const before = yield* server.session(operation, (query) =>
      Effect.gen(function* () {
        const [row] = yield* query("SELECT pg_conf_load_time()::text AS before")
        for (const [name, value] of Object.entries(settings)) {
          yield* query(
            value === undefined ? `ALTER SYSTEM RESET ${name}` : `ALTER SYSTEM SET ${name} = ${Sql.quoteLiteral(value)}`
          )
        }
        yield* query("SELECT pg_reload_conf()")
        return row?.before
      })
    )
    // by new sessions: the postmaster starts them after it has signalled all other processes, and
    // they inherit the time of its reload, which it does not set if a file has an error
    yield* server
      .session(operation, (query) => query("SELECT pg_conf_load_time() > $1::timestamptz AS done", [before]))
      .pipe(
        Effect.repeat({ until: ([row]) => row?.done === true, times: 100 }),
        Effect.filterOrFail(
          ([row]) => row?.done === true,
          () => server.fail(operation, "the server did not read its settings: its log shows the faulty one")
        )
      )
  })
