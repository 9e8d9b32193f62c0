/**
 * The proof that a server has the role that its pool requires.
 */

import { type ConnectReason, connectReason } from "../../SqlState.js"
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import { codeOf } from "../connection/statementFailure.js"

/** Reason why a server does not have the required role, or has not proved it. */
export interface RoleMismatch {
  readonly reason: ConnectReason
  readonly cause?: Error
}

const roleQuery = { text: "SELECT 1", values: [], rows: "array", prepare: false, simple: false } as const

/**
 * Checks the role of a server if its login has not reported it. A pooler answers a login from its
 * memory, with or without a server connection, so the check needs an exchange. At the deadline the
 * connection is closed.
 */
export const proveRole = (
  connection: Connection,
  deadline: number,
  callback: (mismatch: RoleMismatch | undefined) => void
): void => {
  if (!connection.doubtsRole) return callback(undefined)
  let isTimedOut = false
  const timer = clock.timer(deadline - clock.now(), () => {
    isTimedOut = true
    connection.destroy("invalid")
  })
  connection.run([], roleQuery, [], (failure) => {
    clock.clear(timer)
    if (failure === undefined) return callback(undefined)
    const { error } = failure
    if (connection.broken === "wrongRole") return callback({ reason: "wrongRole", cause: error })
    callback({ reason: isTimedOut ? "unresponsive" : connectReason(codeOf(error), error.message), cause: error })
  })
}
