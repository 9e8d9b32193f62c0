/**
 * The messages of errors of a statement: a lost connection, a refusal of the server, or a limit.
 */
import { cancelAdvice, limitAdvice, lockAdvice, type Outcome, stateAdvice } from "../../SqlState.js"
import { type FailedStatement, statementLines } from "../sql/excerpt.js"
import { attemptsText, type Caused, causeText, type Location, locationText, type Repeated } from "./messageParts.js"

const outcomeAdvice: Readonly<Record<Outcome, string>> = {
  notSent: "nothing was sent: it is safe to retry",
  undone: "no change was kept: it is safe to retry",
  inDoubt: "the outcome is unknown: check whether the write was applied before retrying"
}

export const disconnected = (self: Caused & FailedStatement & Repeated & { readonly outcome: Outcome }): string =>
  `${locationText(self)}: the connection was lost${causeText(self)}${attemptsText(self)} - ` +
  `${outcomeAdvice[self.outcome]}${statementLines(self)}`

/** Returns the message of a refused statement, with the server's hint. */
export const violation = (self: Caused & FailedStatement & { readonly hint?: string | undefined }): string =>
  `${locationText(self)}${causeText(self)}${self.hint === undefined ? "" : ` - ${self.hint}`}${statementLines(self)}`

interface Refused extends Caused, FailedStatement, Repeated {
  readonly hint?: string | undefined
  readonly sqlState?: string | undefined
}

/**
 * Returns the message of a refused statement with its SQLSTATE, and the server's hint or else the
 * advice of this library.
 */
export const queryFailed = (self: Refused): string => {
  const state = self.sqlState === undefined ? "" : ` (${self.sqlState})`
  const hint = self.hint ?? (self.sqlState === undefined ? undefined : stateAdvice(self.sqlState))
  return (
    `${locationText(self)}${causeText(self)}${state}${attemptsText(self)}` +
    `${hint === undefined ? "" : ` - ${hint}`}${statementLines(self)}`
  )
}

const collisionAdvice = {
  schedule:
    "let fewer transactions write the same rows at a time, lock the rows first, or give `retry` a longer schedule",
  budget: "too much work fails on this database: try again later, or raise `budget` of the RetryPolicy"
} as const

/** Returns the message of a transaction that collided with another one. */
export const collision = (self: Caused & FailedStatement & Repeated): string => {
  const advice =
    self.retried === undefined
      ? "run the whole transaction again, or set its option `retry`"
      : collisionAdvice[self.retried.endedBy]
  return `${locationText(self)}${causeText(self)}${attemptsText(self)} - ${advice}${statementLines(self)}`
}

type Limited = Location & FailedStatement & { readonly limit: string }

const limited =
  (adviceFor: (limit: string) => string) =>
  (self: Limited): string =>
    `${locationText(self)}: ${self.limit} - ${adviceFor(self.limit)}${statementLines(self)}`

export const statementTimeout = limited(cancelAdvice)

export const lockTimeout = limited(lockAdvice)

export const idleTransactionTimeout = limited(limitAdvice)

const readOnlyAdvice = {
  reader: "run it through the writer",
  transaction: 'its transaction has access "read only": begin it without that option, or write in another transaction',
  server:
    "the server is a standby, or the server or session is read-only: check the address of the writer, or try again"
} as const

export const readOnlyViolation = (
  self: Caused & FailedStatement & { readonly reason: keyof typeof readOnlyAdvice }
): string => `${locationText(self)}${causeText(self)} - ${readOnlyAdvice[self.reason]}${statementLines(self)}`

interface Copy extends Location, FailedStatement {
  readonly table: string
  readonly line: number
  readonly column?: string | undefined
}

/** Returns the message of a refused COPY. `cause` is the server's error without the statement. */
export const copyFailed = (self: Copy, cause: unknown): string => {
  const { column, database, line, server, table } = self
  return (
    `${locationText(self)}: COPY into ${table}, line ${line}${column === undefined ? "" : `, column ${column}`}` +
    `${causeText({ database, server, cause })} - no row was stored${statementLines(self)}`
  )
}
