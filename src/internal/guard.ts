/**
 * What goes around a single statement, outside of any transaction, where its session does not do enough.
 */
import type { Connection, Done, Request } from "../Connection.js"
import type { SessionConfig } from "../DatabaseConfig.js"
import { setLocal } from "./limits.js"
import type { SearchPath } from "./schema/searchPath.js"
import { isCopy } from "./sql/copy.js"
import { constantStep, type Step } from "./wire.js"

const none: ReadonlyArray<never> = []
const begin = constantStep("BEGIN")
const beginReadOnly = constantStep("BEGIN READ ONLY")
const readOnlyGuard = [beginReadOnly]

/** What a single statement has before it; where there is anything, COMMIT follows it. */
export const guard = (
  connection: Connection,
  session: SessionConfig,
  readOnly: boolean,
  path: SearchPath | undefined
): ReadonlyArray<Step> => {
  const own = ofSession(connection, session, readOnly)
  if (path === undefined) return own
  return own.length === 0 ? [begin, path.forOne] : [...own, path.forOne]
}

const ofSession = (connection: Connection, session: SessionConfig, readOnly: boolean): ReadonlyArray<Step> => {
  if (session.mode === "session") {
    // what a session forbids, code on the server can allow itself again, unless it is in a transaction; a standby needs no guard
    return readOnly && connection.parameter("in_hot_standby") !== "on" ? readOnlyGuard : none
  }
  // what a pooler says of a standby may have been true before a failover, so it is not asked
  const { lockTimeout, statementTimeout } = session
  if (lockTimeout === undefined && statementTimeout === undefined) return readOnly ? readOnlyGuard : none
  return [readOnly ? beginReadOnly : begin, ...setLocal({ lockTimeout, statementTimeout }).map(constantStep)]
}

/**
 * Sends a statement with what is around it in one flight. Several commands in one text are a message that goes alone, and so is a COPY: what
 * follows it would be taken for its data.
 */
export const runGuarded = (
  connection: Connection,
  before: ReadonlyArray<Step>,
  request: Request,
  after: ReadonlyArray<Step>,
  done: Done
): void => {
  const isAlone = request.simple || (after.length > 0 && isCopy(request.text))
  if (!isAlone || before.length === 0) return connection.run(before, request, after, done)
  connection.steps(before, (failure, flight) => {
    if (failure !== undefined) return done(failure, flight)
    connection.run(none, request, none, (failure, flight) => {
      if (failure !== undefined) return done(failure, flight)
      connection.steps(after, (failure) => done(failure, flight))
    })
  })
}
