/**
 * Steps around an autocommit statement: BEGIN, settings and COMMIT, for settings that the session
 * does not enforce itself, and for schema scopes.
 */

import type { SessionConfig } from "../../DatabaseConfig.js"
import type { Connection, OnExchange, Request } from "../connection/connection.js"
import { isStaleRefusal } from "../connection/statementFailure.js"
import { constantStep, type Step } from "../protocol/frontendMessages.js"
import { isCopy } from "../sql/copy.js"
import { setLocal } from "../sql/timeouts.js"

const none: ReadonlyArray<never> = []
const begin = constantStep("BEGIN")
const beginReadOnly = constantStep("BEGIN READ ONLY")
const readOnlyGuard = [beginReadOnly]
const commit = [constantStep("COMMIT")]
const rollback = [constantStep("ROLLBACK")]

/**
 * Matches statements that cannot end the transaction around them, and change nothing that needs to
 * be outside of a transaction.
 */
const harmlessQuery = /^\s*(?:SELECT|WITH|VALUES|TABLE|SHOW)\b/i

/**
 * Returns the steps before an autocommit statement. If there are any, COMMIT follows the statement.
 */
export const autocommitGuard = (
  connection: Connection,
  session: SessionConfig,
  readOnly: boolean,
  { path, text }: Pick<Request, "path" | "text">
): ReadonlyArray<Step> => {
  const guard = sessionGuard(connection, session, readOnly, text)
  if (path === undefined) return guard
  return guard.length === 0 ? [begin, path.forAutocommit] : [...guard, path.forAutocommit]
}

const sessionGuard = (
  connection: Connection,
  session: SessionConfig,
  readOnly: boolean,
  text: string
): ReadonlyArray<Step> => {
  if (session.mode === "session") {
    if (!readOnly) return none
    // Code on the server can lift a read-only default of the session, but not BEGIN READ ONLY. A
    // query on a standby needs no guard, even if the standby has just been promoted. Other
    // statements do: after a promotion, CALL and DO can begin transactions of their own, and ALTER
    // SYSTEM runs outside of a transaction.
    return connection.parameter("in_hot_standby") === "on" && harmlessQuery.test(text) ? none : readOnlyGuard
  }
  // a pooler may report a standby from before a failover, so its `in_hot_standby` is not used
  const { lockTimeout, statementTimeout } = session
  if (lockTimeout === undefined && statementTimeout === undefined) return readOnly ? readOnlyGuard : none
  return [readOnly ? beginReadOnly : begin, ...setLocal({ lockTimeout, statementTimeout }).map(constantStep)]
}

/**
 * Sends a statement with its guard, and rolls back if it fails. If the statement was refused
 * because of a stale plan, sends guard and statement once more: the transaction has no other
 * statement, so nothing has run. `isAwaited` returns true while the caller still waits.
 */
export const runGuarded = (
  connection: Connection,
  guard: ReadonlyArray<Step>,
  request: Request,
  isAwaited: () => boolean,
  callback: OnExchange
): void => {
  let isRetry = false
  const onExchange: OnExchange = (failure, exchange) => {
    const isOpen = connection.status !== "I" && connection.broken === undefined
    if (!isOpen || (failure === undefined && !exchange.isStopped)) return callback(failure, exchange)
    const isRetryable = !isRetry && failure !== undefined && isStaleRefusal(failure)
    isRetry = true
    connection.undo(rollback, () =>
      isRetryable && isAwaited() ? send(connection, guard, request, onExchange) : callback(failure, exchange)
    )
  }
  send(connection, guard, request, onExchange)
}

/**
 * Sends the guard, the statement and COMMIT in one exchange. A text with several commands gets an
 * exchange of its own, and so does a COPY, because the server would read the messages after it as
 * its data.
 */
const send = (connection: Connection, guard: ReadonlyArray<Step>, request: Request, callback: OnExchange): void => {
  if (!request.simple && !isCopy(request.text)) return connection.run(guard, request, commit, callback)
  connection.steps(guard, (failure, exchange) => {
    if (failure !== undefined || exchange.isStopped) return callback(failure, exchange)
    connection.run(none, request, none, (failure, exchange) => {
      if (failure !== undefined || exchange.isStopped) return callback(failure, exchange)
      connection.steps(commit, (failure) => callback(failure, exchange))
    })
  })
}
