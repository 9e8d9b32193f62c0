/**
 * Whether a server has the role that its pool is for.
 */
import type { Connection } from "../Connection.js"
import type { PoolOptions } from "../Pool.js"
import { type ConnectReason, connectReason } from "../SqlState.js"
import { codeOf } from "./failure.js"
import { timer } from "./later.js"

/** Why a server is not the one that was meant. */
export interface Mismatch {
  readonly reason: ConnectReason
  readonly cause?: Error
}

const wrongRole: Mismatch = { reason: "wrongRole" }

const question = {
  text: "SELECT 1 WHERE pg_is_in_recovery()",
  values: [],
  rows: "array",
  prepare: false,
  simple: false
} as const

/**
 * Sees that a writer is no standby; a reader may be anything. A server says so at login. A pooler answers a login from what it remembers,
 * whether it has a server or not, so there it takes a query, which is given up at the deadline.
 */
export const checkRole = (
  connection: Connection,
  { readOnly, session }: PoolOptions,
  deadline: number,
  done: (mismatch: Mismatch | undefined) => void
): void => {
  if (readOnly) return done(undefined)
  if (session.mode === "session") return done(connection.parameter("in_hot_standby") === "on" ? wrongRole : undefined)
  let isLate = false
  const impatient = timer(deadline - performance.now(), () => {
    isLate = true
    connection.destroy("invalid")
  })
  connection.run([], question, [], (failure, flight) => {
    clearTimeout(impatient)
    if (failure === undefined) return done(flight.result.rows.length === 1 ? wrongRole : undefined)
    const { error } = failure
    done({ reason: isLate ? "unresponsive" : connectReason(codeOf(error), error.message), cause: error })
  })
}
