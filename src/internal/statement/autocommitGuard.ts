/**
 * What goes around a single statement, outside of any transaction, where its session does not do enough.
 */

import type { SessionConfig } from "../../DatabaseConfig.js"
import type { Connection, OnExchange, Request } from "../connection/connection.js"
import { isStaleRefusal } from "../connection/statementError.js"
import { constantStep, type Step } from "../protocol/messages.js"
import { isCopy } from "../sql/copy.js"
import { setLocal } from "../sql/settings.js"

const none: ReadonlyArray<never> = []
const begin = constantStep("BEGIN")
const beginReadOnly = constantStep("BEGIN READ ONLY")
const readOnlyGuard = [beginReadOnly]
const commit = [constantStep("COMMIT")]
const rollback = [constantStep("ROLLBACK")]

/** What cannot end the transaction that it runs in, nor change more than a transaction can. */
const query = /^\s*(?:SELECT|WITH|VALUES|TABLE|SHOW)\b/i

/** What a single statement has before it; where there is anything, COMMIT follows it. */
export const autocommitGuard = (
  connection: Connection,
  session: SessionConfig,
  readOnly: boolean,
  { path, text }: Pick<Request, "path" | "text">
): ReadonlyArray<Step> => {
  const own = ofSession(connection, session, readOnly, text)
  if (path === undefined) return own
  return own.length === 0 ? [begin, path.forOne] : [...own, path.forOne]
}

const ofSession = (
  connection: Connection,
  session: SessionConfig,
  readOnly: boolean,
  text: string
): ReadonlyArray<Step> => {
  if (session.mode === "session") {
    if (!readOnly) return none
    // What a session forbids, code on the server can allow itself again, unless it is in a transaction. A query needs no guard on a standby,
    // nor right after its promotion; a CALL or DO has transactions of its own then, and ALTER SYSTEM is allowed in any outside of one.
    return connection.parameter("in_hot_standby") === "on" && query.test(text) ? none : readOnlyGuard
  }
  // what a pooler says of a standby may have been true before a failover, so it is not asked
  const { lockTimeout, statementTimeout } = session
  if (lockTimeout === undefined && statementTimeout === undefined) return readOnly ? readOnlyGuard : none
  return [readOnly ? beginReadOnly : begin, ...setLocal({ lockTimeout, statementTimeout }).map(constantStep)]
}

/**
 * Sends a statement with what is around it, undoes that where it fails, and sends all once more where only a plan was stale: it is all that
 * there was, so nothing has run. `isWanted` tells whether the caller is still there.
 */
export const runGuarded = (
  connection: Connection,
  before: ReadonlyArray<Step>,
  request: Request,
  isWanted: () => boolean,
  done: OnExchange
): void => {
  let isAgain = false
  const finish: OnExchange = (failure, flight) => {
    const isOpen = connection.status !== "I" && connection.broken === undefined
    if (!isOpen || (failure === undefined && !flight.isStopped)) return done(failure, flight)
    const mayGoBetter = !isAgain && failure !== undefined && isStaleRefusal(failure)
    isAgain = true
    connection.undo(rollback, () =>
      mayGoBetter && isWanted() ? send(connection, before, request, finish) : done(failure, flight)
    )
  }
  send(connection, before, request, finish)
}

/**
 * Sends all in one flight. Several commands in one text are a message that goes alone, and so is a COPY: what follows it would be taken for
 * its data.
 */
const send = (connection: Connection, before: ReadonlyArray<Step>, request: Request, done: OnExchange): void => {
  if (!request.simple && !isCopy(request.text)) return connection.run(before, request, commit, done)
  connection.steps(before, (failure, flight) => {
    if (failure !== undefined || flight.isStopped) return done(failure, flight)
    connection.run(none, request, none, (failure, flight) => {
      if (failure !== undefined || flight.isStopped) return done(failure, flight)
      connection.steps(commit, (failure) => done(failure, flight))
    })
  })
}
