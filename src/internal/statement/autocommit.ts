/**
 * A statement on its own, outside of any transaction: a connection for it, and what is around it there.
 */

import type { Session } from "../../Consistency.js"
import type { StatementError } from "../../DatabaseError.js"
import { isUnserved } from "../../SqlState.js"
import type { Connection, Exchange, Failure, OnExchange, Request } from "../connection/connection.js"
import { codeOf, toStatementError, wrongRole } from "../connection/statementError.js"
import { positionTimeout, queryPositionWithin, TokenRecorder } from "../consistency/walPosition.js"
import type { Borrower } from "../pool/borrower.js"
import type { ConnectionSource, OnCheckout } from "../topology/connectionSource.js"
import { autocommitGuard, runGuarded } from "./autocommitGuard.js"

export type OnStatement = (error: StatementError | undefined, flight: Exchange | undefined) => void

const none: ReadonlyArray<never> = []

/** Whether a server may have seen what failed. */
const isReceived = (failure: Failure): boolean =>
  failure._tag !== "lost" || (failure.sent && !isUnserved(codeOf(failure.error), failure.error.message))

/**
 * Runs a statement on a connection from somewhere; the returned function gives it up. `lost` is what is told where the connection is lost
 * with it. A session that it writes in asks where the server is after it.
 */
export const runAutocommit = (
  pool: ConnectionSource,
  deadline: number,
  held: ReadonlyArray<Connection>,
  request: Request,
  lost: "inDoubt" | "undone",
  who: Borrower | undefined,
  session: Session | undefined,
  done: OnStatement
): (() => void) => {
  let connection: Connection | undefined
  let settled = false
  let isLeft = false
  const { database } = pool.options
  const settle: OnCheckout = (error, taken) => {
    if (taken === undefined) return done(error, undefined)
    connection = taken
    const before = autocommitGuard(taken, pool.options.session, pool.options.readOnly, request)
    const finish: OnExchange = (failure, flight) => {
      if (session === undefined) return conclude(failure, flight)
      const asking = new TokenRecorder(database, [session])
      // several commands in one text may have stored something in any way
      if (taken.broken !== undefined || request.simple) {
        if (failure === undefined || isReceived(failure)) asking.stored(undefined)
        return conclude(failure, flight)
      }
      // also of what has failed: a procedure may have stored something before
      queryPositionWithin(taken, positionTimeout, (answer) => {
        asking.stored(answer)
        conclude(failure, flight)
      })
    }
    const conclude: OnExchange = (failure, flight) => {
      settled = true
      pool.checkin(taken)
      if (failure === undefined) return done(undefined, flight)
      const place = { database, server: pool.options.server.name }
      // what a text of several commands has done before is not known
      if (!request.simple && taken.hasWrongRole(failure)) return done(wrongRole(place, failure), undefined)
      done(toStatementError(place, failure, isReceived(failure) ? lost : "notSent"), undefined)
    }
    if (before.length === 0) taken.run(none, request, none, finish)
    else runGuarded(taken, before, request, () => !isLeft, finish)
  }
  const giveUp = pool.checkout(deadline, held, settle, who)
  return () => {
    if (connection === undefined) return giveUp()
    if (settled) return
    isLeft = true
    // it may be stored all the same
    if (session !== undefined) new TokenRecorder(database, [session]).stored(undefined)
    connection.cancel()
  }
}
