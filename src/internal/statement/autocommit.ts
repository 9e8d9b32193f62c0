/** An autocommit statement: its checkout, its guard and its outcome. */

import type { Session } from "../../Consistency.js"
import { isUnserved } from "../../SqlState.js"
import type { Connection, Exchange, Failure, OnExchange, Request } from "../connection/connection.js"
import type { StatementFailure } from "../connection/failure.js"
import { codeOf, statementFailure, wrongRoleFailure } from "../connection/statementFailure.js"
import { positionTimeout, queryPositionWithin } from "../consistency/queryPosition.js"
import { TokenRecorder } from "../consistency/tokenRecorder.js"
import type { Caller } from "../pool/caller.js"
import type { ConnectionSource, OnCheckout } from "../topology/connectionSource.js"
import { autocommitGuard, runGuarded } from "./autocommitSteps.js"

/** Callback of a statement: its failure or its result. */
export type OnStatement = (failure: StatementFailure | undefined, exchange: Exchange | undefined) => void

const none: ReadonlyArray<never> = []

/** Checks if the server may have run the statement that failed. */
const mayHaveRun = (failure: Failure): boolean =>
  failure._tag !== "lost" || (failure.sent && !isUnserved(codeOf(failure.error), failure.error.message))

/**
 * Runs a statement on a connection of `pool`; the returned function cancels it. `outcomeIfLost` is
 * the outcome that is reported if the connection is lost during the statement. `session`, if given,
 * records the server's position after the statement as a token.
 */
export const runAutocommit = (
  pool: ConnectionSource,
  deadline: number,
  holding: ReadonlyArray<Connection>,
  request: Request,
  outcomeIfLost: "inDoubt" | "undone",
  caller: Caller | undefined,
  session: Session | undefined,
  callback: OnStatement
): (() => void) => {
  let connection: Connection | undefined
  let isFinished = false
  let isAbandoned = false
  const { database } = pool.options
  const onCheckout: OnCheckout = (checkoutFailure, checkedOut) => {
    if (checkedOut === undefined) return callback(checkoutFailure, undefined)
    connection = checkedOut
    const guard = autocommitGuard(checkedOut, pool.options.session, pool.options.readOnly, request)
    const onExchange: OnExchange = (failure, exchange) => {
      if (session === undefined) return finish(failure, exchange)
      const recorder = new TokenRecorder(database, [session])
      // the position cannot be queried on a broken connection, and a text with several commands may
      // have written in any way, so the position counts as unknown
      if (checkedOut.broken !== undefined || request.simple) {
        if (failure === undefined || mayHaveRun(failure)) recorder.recordWrite(undefined)
        return finish(failure, exchange)
      }
      // the position is queried after a failure, too: a procedure may have committed before it
      // failed
      queryPositionWithin(checkedOut, positionTimeout, (status) => {
        recorder.recordWrite(status)
        finish(failure, exchange)
      })
    }
    const finish: OnExchange = (failure, exchange) => {
      isFinished = true
      pool.checkin(checkedOut)
      if (failure === undefined) return callback(undefined, exchange)
      const location = { database, server: pool.options.server.name }
      // of several commands, those before the failed one may have run, so their text is not
      // reported as unsent
      if (!request.simple && checkedOut.hasWrongRole(failure)) {
        return callback(wrongRoleFailure(location, failure), undefined)
      }
      callback(statementFailure(location, failure, mayHaveRun(failure) ? outcomeIfLost : "notSent"), undefined)
    }
    if (guard.length === 0) checkedOut.run(none, request, none, onExchange)
    else runGuarded(checkedOut, guard, request, () => !isAbandoned, onExchange)
  }
  const cancelCheckout = pool.checkout(deadline, holding, onCheckout, caller)
  return () => {
    if (connection === undefined) return cancelCheckout()
    if (isFinished) return
    isAbandoned = true
    // the statement may be committed nevertheless
    if (session !== undefined) new TokenRecorder(database, [session]).recordWrite(undefined)
    connection.cancel()
  }
}
