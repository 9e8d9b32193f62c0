/** Databases behind a PgBouncer of their own, and the settings of their sessions. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { Database } from "effect-db"
import { type Bouncer, makeBouncer } from "./bouncer.js"
import { Db, freshTable, Place } from "./databases.js"
import { taggedFailure } from "./failures.js"

/** Runs a test with a new database, open as `Db` through a PgBouncer of its own. */
export const behindPooler = <A, E>(
  settings: Readonly<Record<string, string | number>>,
  options: Partial<Database.Options>,
  body: (bouncer: Bouncer) => Effect.Effect<A, E, Db | Place | Scope.Scope>
) =>
  Effect.gen(function* () {
    const place = yield* freshTable
    const bouncer = yield* makeBouncer(place.writer, settings)
    const database = Db.layer({ writer: bouncer.url, mode: "transactionPooler", ...options })
    return yield* Effect.provide(body(bouncer), Layer.merge(database, Layer.succeed(Place, place)))
  })

/** Returns the `ConnectFailed` of opening a database in the mode for a pooler. */
export const refusal = (options: Database.Options) =>
  taggedFailure("ConnectFailed", Effect.scoped(Layer.build(Db.layer({ mode: "transactionPooler", ...options }))))

/** The query for the settings of the current transaction. */
export const settings = `SELECT current_setting('statement_timeout') AS statement, current_setting('lock_timeout') AS lock,
  current_setting('idle_in_transaction_session_timeout') AS idle, current_setting('transaction_read_only') AS "readOnly"`
