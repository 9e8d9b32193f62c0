/**
 * Whether a server has the role that its pool is for.
 */

import { type ConnectReason, connectReason } from "../../SqlState.js"
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import { codeOf } from "../connection/statementError.js"

/** Why a server is not the one that was meant. */
export interface RoleMismatch {
  readonly reason: ConnectReason
  readonly cause?: Error
}

const question = { text: "SELECT 1", values: [], rows: "array", prepare: false, simple: false } as const

/**
 * Proves the role of a server where its login has not told it. A pooler answers a login from what it remembers, whether it has a server or
 * not, so there it takes an exchange, which is given up at the deadline.
 */
export const proveRole = (
  connection: Connection,
  deadline: number,
  done: (mismatch: RoleMismatch | undefined) => void
): void => {
  if (!connection.doubtsRole) return done(undefined)
  let isLate = false
  const impatient = clock.timer(deadline - clock.now(), () => {
    isLate = true
    connection.destroy("invalid")
  })
  connection.run([], question, [], (failure) => {
    clock.clear(impatient)
    if (failure === undefined) return done(undefined)
    const { error } = failure
    if (connection.broken === "wrongRole") return done({ reason: "wrongRole", cause: error })
    done({ reason: isLate ? "unresponsive" : connectReason(codeOf(error), error.message), cause: error })
  })
}
