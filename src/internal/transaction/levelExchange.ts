/**
 * One exchange of a level with its server, from the lock of the level to the consequences of a
 * failure.
 */
import type { Connection, Exchange, Failure, Request } from "../connection/connection.js"
import { textOf, wrongRoleFailure } from "../connection/statementFailure.js"
import type { OnStatement } from "../statement/autocommit.js"
import type { Interrupted, Level } from "./level.js"
import { judge } from "./levelFailure.js"
import { acquireLevel } from "./levelLock.js"
import { beginsTransaction, markBegun, type PendingBegin, releaseUnbegun } from "./pendingBegin.js"
import type { StatementIsolation } from "./savepoint.js"

/**
 * Part of an exchange that was undone on the server after the statement had failed: nothing, the
 * statement by its savepoint, or all levels that began with the statement.
 */
type UndonePart = "nothing" | "statement" | "begun"

/** Callback for the result of an exchange. */
export type FinishExchange = (failure: Failure | undefined, exchange: Exchange, undone?: UndonePart) => void

/**
 * Builds the failure of a transaction whose connection is closed because the server takes no
 * writes: the transaction is undone, and another server may execute it.
 */
const undoneWith = ({ acknowledged, error }: Failure): Failure => ({
  _tag: "lost",
  error,
  sent: true,
  undone: true,
  acknowledged
})

/**
 * Acquires a level and sends one statement with `send`. The returned function leaves the queue or,
 * if the statement was sent, cancels it. A level with a cancelled statement can only be undone,
 * unless the statement has a savepoint of its own.
 */
export const exchangeIn = (
  level: Level,
  request: Request,
  isolation: StatementIsolation,
  done: OnStatement,
  onSent: () => void,
  send: (connection: Connection, pending: ReadonlyArray<PendingBegin>, finish: FinishExchange) => void
): (() => void) => {
  let sentOn: Connection | undefined
  let isFinished = false
  let interruption: Interrupted | undefined
  const leave = acquireLevel(level, (refusal, connection, pending) => {
    if (connection === undefined) {
      isFinished = true
      return done(refusal, undefined)
    }
    sentOn = connection
    level.isCallerGone = false
    level.hasOwnWork = true
    onSent()
    connection.transaction = level
    send(connection, pending, (failure, exchange, undone = "nothing") => {
      isFinished = true
      const { connectionHolder } = level
      if (isolation !== "readOnly" && !level.readOnly) {
        connectionHolder.recordText(request.text)
        connectionHolder.idTracker.onExchange(connection, exchange, failure, request.text)
      }
      // the statement may have committed earlier writes, even if it has begun another transaction
      // after that
      if (exchange.result.command === "COMMIT" || exchange.results.length > 0)
        connectionHolder.recordTokens()?.recordCommit(undefined)
      // in a read-only transaction, a refused write does not show that the server has a wrong role
      const expectsRefusal = level.readOnly || (isolation === "readOnly" && connection.broken === undefined)
      const hasWrongRole = failure !== undefined && !expectsRefusal && connection.hasWrongRole(failure)
      // nothing of the transaction has run, so it counts as not begun
      const isUnused = hasWrongRole && beginsTransaction(pending)
      const begins = pending.length > 0
      if (begins) markBegun(pending, isUnused || undone === "begun" ? 0 : exchange.acknowledged)
      const isAborted = connection.status === "E" && undone === "nothing"
      const reported = isUnused
        ? wrongRoleFailure(connectionHolder.location, failure)
        : judge(
            level,
            hasWrongRole && connection.broken !== undefined ? undoneWith(failure) : failure,
            exchange,
            request.text,
            pending,
            isAborted,
            connection,
            interruption
          )
      if (begins) releaseUnbegun(pending)
      level.lock.release()
      done(reported, reported === undefined ? exchange : undefined)
    })
  })
  return () => {
    if (isFinished || interruption !== undefined) return
    if (sentOn === undefined) return leave()
    level.isCallerGone = true
    const callSite = request.site?.location
    interruption = {
      _tag: "TransactionInterrupted",
      ...level.connectionHolder.location,
      statement: textOf(request),
      ...(callSite === undefined ? {} : { callSite })
    }
    if (isolation === "none") level.interrupt(interruption)
    sentOn.cancel()
  }
}
