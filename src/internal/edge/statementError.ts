/**
 * The errors of statements: those of failed exchanges, and the fields that are added to them later.
 */

import { SqlError } from "@effect/sql/SqlError"
import * as Predicate from "effect/Predicate"
import {
  type ConnectFailed,
  type DatabaseError,
  isDatabaseError,
  QueryFailed,
  type Retried,
  type StatementError
} from "../../DatabaseError.js"
import { isAborted, type Outcome } from "../../SqlState.js"
import type { Failure } from "../connection/connection.js"
import {
  type ErrorLocation,
  staleAgainHint,
  staleHint,
  statementFailure,
  wrongRoleFailure
} from "../connection/statementFailure.js"
import { messageOf, withoutLocation } from "../errors/messageParts.js"
import { toDatabaseError } from "./databaseError.js"

/**
 * Builds the error of a failed exchange. `outcome` is the outcome of the work if the connection was
 * lost.
 */
export const toStatementError = (location: ErrorLocation, failure: Failure, outcome: Outcome): StatementError =>
  toDatabaseError(statementFailure(location, failure, outcome))

/** Builds the error of a statement on a connection to a server of the wrong role. */
export const wrongRole = (location: ErrorLocation, failure: Failure): ConnectFailed =>
  toDatabaseError(wrongRoleFailure(location, failure))

/** Returns the first line of a message; the others are about the statement. */
const firstLine = (cause: unknown): string => messageOf(cause).split("\n")[0] ?? ""

/**
 * Adds the first failure of an aborted transaction to a later refusal, because the message of the
 * refusal does not mention it. The first failure becomes the cause of its cause.
 */
export const afterFirst = (error: StatementError, first: StatementError | undefined): StatementError => {
  if (first === undefined || error._tag !== "QueryFailed" || !isAborted(error.sqlState ?? "")) return error
  const firstText = withoutLocation(firstLine(first), error)
  const cause = new Error(`${firstLine(error.cause)}; the first failure in it: ${firstText}`, { cause: first })
  return new QueryFailed({ ...error, cause })
}

/**
 * Adds the location in the program to an error that has none. The fiber is known where a statement
 * is awaited, and unknown where it fails.
 */
export const withLocation = (error: StatementError, location: string | undefined): StatementError => {
  if (location !== undefined && "sql" in error && error.sql !== undefined && error.location === undefined) {
    Object.defineProperty(error, "location", { value: location, enumerable: true })
  }
  return error
}

/** Checks if a failure has a field for the retries of its work. */
const hasRetried = (error: unknown): error is DatabaseError =>
  isDatabaseError(error) &&
  (error._tag === "SerializationFailure" ||
    error._tag === "DeadlockDetected" ||
    error._tag === "Disconnected" ||
    (error._tag === "QueryFailed" && (error.hint === staleHint || error.hint === staleAgainHint)))

/**
 * Sets the retries in a failure, also if it is the cause of another one. Returns true if there is a
 * failure with such a field. The failure is changed in place, so that errors of the program around
 * it stay the same.
 */
export const setRetried = (failure: unknown, retried: Retried): boolean => {
  const chain: Array<unknown> = []
  for (let one = failure; Predicate.isObject(one) && !chain.includes(one); one = "cause" in one ? one.cause : undefined)
    chain.push(one)
  const changed = chain.filter(hasRetried)
  for (const error of changed) {
    const more = error._tag === "QueryFailed" ? { retried, hint: staleAgainHint } : { retried }
    for (const [key, value] of Object.entries(more))
      Object.defineProperty(error, key, { value, enumerable: true, configurable: true, writable: true })
  }
  // the message of a `SqlError` is a copy of the message of its cause
  if (changed.length > 0)
    for (const one of chain)
      if (one instanceof SqlError && isDatabaseError(one.cause))
        Object.defineProperty(one, "message", { value: one.cause.message, configurable: true, writable: true })
  return changed.length > 0
}
