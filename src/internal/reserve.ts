/**
 * A connection of one's own, for as long as a scope lasts: statements on it are in no transaction but the one that is begun by hand.
 */
import type { Connection as SqlConnection } from "@effect/sql/SqlConnection"
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Connection } from "../Connection.js"
import { TransactionEnded, toSqlError } from "../DatabaseError.js"
import type { CallSite } from "./callSite.js"
import { currentCarrier, type Kind } from "./carrier.js"
import type { Engine } from "./engine.js"
import { type Place, toStatementError } from "./failure.js"
import { makeStatements, type Run } from "./statements.js"
import { Turns } from "./turns.js"

const none: ReadonlyArray<never> = []

const scopeEnded = new Error("the scope of the reserved connection has ended")

/** Runs statements on one connection, one after the other. */
export const makeRun = (place: Place, connection: Connection, hasEnded: () => boolean): Run => {
  const turns = new Turns()
  return (request, read) =>
    Effect.async((resume) => {
      let sent = false
      let settled = false
      const leave = turns.take(() => {
        if (hasEnded()) {
          turns.pass()
          return resume(Effect.fail(toSqlError(new TransactionEnded({ ...place, cause: scopeEnded }))))
        }
        sent = true
        connection.run(none, request, none, (failure, flight) => {
          settled = true
          turns.pass()
          const outcome = failure?._tag === "lost" && !failure.sent ? "notSent" : "inDoubt"
          resume(
            failure === undefined
              ? Effect.sync(() => read(flight))
              : Effect.fail(toSqlError(toStatementError(place, failure, outcome)))
          )
        })
      })
      return Effect.sync(() => {
        if (!sent) leave()
        else if (!settled) connection.abort("cancelled")
      })
    })
}

/** Checks a connection out for a scope. */
export const makeReserve = (
  engine: Engine,
  kind: Kind,
  site: CallSite | undefined
): Effect.Effect<SqlConnection, SqlError, Scope.Scope> =>
  Effect.withFiberRuntime((fiber) => {
    const pool = engine.poolFor(kind)
    const holding = currentCarrier(fiber)?.held(engine) ?? none
    let taken: Connection | undefined
    let ended = false
    const checkout = Effect.async<Connection, SqlError>((resume) => {
      const giveUp = pool.checkout(
        engine.deadline(),
        holding,
        (error, connection) => {
          taken = connection
          if (connection !== undefined) resume(Effect.succeed(connection))
          else if (error !== undefined) resume(Effect.fail(toSqlError(error)))
        },
        engine.borrower(fiber, site, currentCarrier(fiber))
      )
      return Effect.sync(giveUp)
    })
    // the finalizer is there before the connection is, so an interruption in between leaks nothing
    const giveBack = Effect.addFinalizer(() =>
      Effect.sync(() => {
        ended = true
        if (taken !== undefined) pool.checkin(taken)
      })
    )
    return Effect.map(Effect.zipRight(giveBack, checkout), (connection) => {
      const place = { database: pool.options.database, server: pool.options.server.name }
      const run = makeRun(place, connection, () => ended)
      return makeStatements(kind, run, (request, transformRows) =>
        Stream.unwrap(
          Effect.map(
            run(request, (flight): ReadonlyArray<object> => flight.result.rows),
            (rows) => Stream.fromIterable(transformRows === undefined ? rows : transformRows(rows))
          )
        )
      )
    })
  })
