/**
 * The check of a session against `target_session_attrs`.
 */

import type { TargetSessionAttrs } from "../../DatabaseConfig.js"
import { connectReason } from "../../SqlState.js"
import * as clock from "../concurrency/clock.js"
import type { ConnectFailure } from "./connectFailure.js"
import type { Connection } from "./connection.js"
import { codeOf } from "./statementFailure.js"
import { rawQuery } from "./statementRequest.js"

/** Properties of a session that `target_session_attrs` names. */
interface SessionKind {
  readonly isStandby: boolean
  readonly isReadOnly: boolean
}

/**
 * Returns the reason to reject a session, if there is one. The login of a reader makes its session
 * read-only, so `isReadOnly` then says nothing about the server.
 */
const rejectionOf = (
  target: TargetSessionAttrs,
  { isReadOnly, isStandby }: SessionKind,
  isReader: boolean
): string | undefined => {
  switch (target) {
    case "any":
      return undefined
    case "primary":
      return isStandby ? "it is a standby" : undefined
    case "standby":
    case "prefer-standby":
      return isStandby ? undefined : "it is no standby"
    case "read-write":
      if (isStandby) return "it is a standby"
      return isReadOnly && !isReader ? "its sessions are read-only by default" : undefined
    case "read-only":
      return isStandby || isReadOnly || isReader ? undefined : "its sessions are not read-only by default"
  }
}

const kindQuery = rawQuery("SELECT pg_is_in_recovery()::text, current_setting('default_transaction_read_only')")

/**
 * Checks if the session of a connection matches the target, and calls back with a failure if it
 * does not. A server reports the properties at login since PostgreSQL 14. A query reads them on an
 * older server, and behind a pooler, which reports them from its memory, for any of its servers. If
 * the query takes longer than `timeout` ms, the connection is closed.
 */
export const checkTargetSession = (
  connection: Connection,
  target: TargetSessionAttrs,
  isReader: boolean,
  timeout: number,
  callback: (failure: ConnectFailure | undefined) => void
): void => {
  const judge = (kind: SessionKind) => {
    const reason = rejectionOf(target, kind, isReader)
    callback(reason === undefined ? undefined : { reason: "wrongRole", error: new Error(reason) })
  }
  if (target === "any") return callback(undefined)
  const standby = connection.parameter("in_hot_standby")
  if (!connection.isPooled && standby !== undefined) {
    const isReadOnly = connection.parameter("default_transaction_read_only") === "on"
    return judge({ isStandby: standby === "on", isReadOnly })
  }
  let isTimedOut = false
  const timer = clock.timer(timeout, () => {
    isTimedOut = true
    connection.destroy("invalid")
  })
  connection.run([], kindQuery, [], (failure, exchange) => {
    clock.clear(timer)
    if (failure === undefined) {
      const [row] = exchange.result.rows as ReadonlyArray<ReadonlyArray<string>>
      return judge({ isStandby: row?.[0] === "true", isReadOnly: row?.[1] === "on" })
    }
    const { error } = failure
    if (connection.broken === "wrongRole") return callback({ reason: "wrongRole", error })
    callback({ reason: isTimedOut ? "unresponsive" : connectReason(codeOf(error), error.message), error })
  })
}
