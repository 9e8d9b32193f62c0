/**
 * Timeouts that the server enforces, as settings of a session or of one transaction, and those of a
 * ROLLBACK, which the library enforces.
 */

/** Timeouts in ms. If one is missing, the server's own setting applies. */
export interface Timeouts {
  readonly statementTimeout?: number | undefined
  readonly lockTimeout?: number | undefined
  readonly idleInTransactionTimeout?: number | undefined
}

/** The largest value that a setting of the server may have. */
const maxMillis = 2_147_483_647

/**
 * Returns a timeout in whole milliseconds, at most the largest value that the server accepts. Zero
 * means no timeout to the server, so infinity becomes zero, and a fraction is rounded up.
 */
export const wholeMillis = (timeout: number): number =>
  Number.isFinite(timeout) ? Math.min(Math.ceil(timeout), maxMillis) : 0

/** Returns the timeouts as settings of the server. */
export const settingsOf = (timeouts: Timeouts): ReadonlyArray<readonly [name: string, millis: number]> => {
  const all: Array<readonly [string, number]> = []
  const set = (name: string, timeout: number | undefined) => {
    if (timeout !== undefined) all.push([name, wholeMillis(timeout)])
  }
  set("statement_timeout", timeouts.statementTimeout)
  set("lock_timeout", timeouts.lockTimeout)
  set("idle_in_transaction_session_timeout", timeouts.idleInTransactionTimeout)
  return all
}

/** Returns the timeouts as commands that set them for one transaction. */
export const setLocal = (timeouts: Timeouts): ReadonlyArray<string> =>
  settingsOf(timeouts).map(([name, millis]) => `SET LOCAL ${name} = ${millis}`)

/**
 * Timeouts of a ROLLBACK, in ms: the default, a shorter one for an interrupted caller, which waits
 * for the ROLLBACK, and infinity if another timeout applies.
 */
export const rollbackTimeout = { default: 750, interrupted: 400, unbounded: Number.POSITIVE_INFINITY }
