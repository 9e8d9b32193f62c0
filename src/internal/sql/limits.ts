/**
 * Timeouts that the server enforces, as settings of a session or of one transaction.
 */

/** Timeouts in ms. If one is missing, the server's own setting applies. */
export interface Limits {
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
export const wholeMillis = (limit: number): number =>
  Number.isFinite(limit) ? Math.min(Math.ceil(limit), maxMillis) : 0

/** Returns the timeouts as settings of the server. */
export const settingsOf = (limits: Limits): ReadonlyArray<readonly [name: string, millis: number]> => {
  const all: Array<readonly [string, number]> = []
  const set = (name: string, limit: number | undefined) => {
    if (limit !== undefined) all.push([name, wholeMillis(limit)])
  }
  set("statement_timeout", limits.statementTimeout)
  set("lock_timeout", limits.lockTimeout)
  set("idle_in_transaction_session_timeout", limits.idleInTransactionTimeout)
  return all
}

/** Returns the timeouts as commands that set them for one transaction. */
export const setLocal = (limits: Limits): ReadonlyArray<string> =>
  settingsOf(limits).map(([name, millis]) => `SET LOCAL ${name} = ${millis}`)
