/**
 * The limits that a server keeps: as the settings of a session, or of one transaction.
 */

/** Limits in ms; what is left out is up to the server. */
export interface Limits {
  readonly statementTimeout?: number | undefined
  readonly lockTimeout?: number | undefined
  readonly idleInTransactionTimeout?: number | undefined
}

/** As many as a setting of the server may be. */
const maxMillis = 2_147_483_647

/** A limit as the server takes it: in whole milliseconds. Zero, and so infinity, is none; a fraction must not become none. */
export const wholeMillis = (limit: number): number =>
  Number.isFinite(limit) ? Math.min(Math.ceil(limit), maxMillis) : 0

/** As the server's settings. */
export const settings = (limits: Limits): ReadonlyArray<readonly [name: string, millis: number]> => {
  const all: Array<readonly [string, number]> = []
  const set = (name: string, limit: number | undefined) => {
    if (limit !== undefined) all.push([name, wholeMillis(limit)])
  }
  set("statement_timeout", limits.statementTimeout)
  set("lock_timeout", limits.lockTimeout)
  set("idle_in_transaction_session_timeout", limits.idleInTransactionTimeout)
  return all
}

/** As commands inside of a transaction. */
export const setLocal = (limits: Limits): ReadonlyArray<string> =>
  settings(limits).map(([name, millis]) => `SET LOCAL ${name} = ${millis}`)
