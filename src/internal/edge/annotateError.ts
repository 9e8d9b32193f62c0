/**
 * Annotations of the errors of statements: fields that are added after the errors were built.
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Predicate from "effect/Predicate"
import {
  type CommitOutcomeUnknown,
  type DatabaseError,
  isDatabaseError,
  type Retried,
  type StatementError
} from "../../DatabaseError.js"
import { staleAgainHint, staleHint } from "../connection/statementFailure.js"

/**
 * Adds the location in the program to an error with `sql` that has no location. The fiber is known
 * where a statement is awaited, but not where its failure is built.
 */
export const withLocation = (error: StatementError, location: string | undefined): StatementError => {
  if (location !== undefined && "sql" in error && error.sql !== undefined && error.location === undefined) {
    Object.defineProperty(error, "location", { value: location, enumerable: true })
  }
  return error
}

/**
 * Sets the effect that resolves an unknown outcome. It is not enumerable, so it takes no part in
 * comparisons and in the encoded form of the error.
 */
export const setResolve = (error: CommitOutcomeUnknown, resolve: CommitOutcomeUnknown["resolve"]): void => {
  Object.defineProperty(error, "resolve", { value: resolve, configurable: true })
}

/** Checks if a failure has a field for the retries of its work. */
const hasRetried = (error: unknown): error is DatabaseError =>
  isDatabaseError(error) &&
  (error._tag === "SerializationFailure" ||
    error._tag === "DeadlockDetected" ||
    error._tag === "Disconnected" ||
    (error._tag === "QueryFailed" && (error.hint === staleHint || error.hint === staleAgainHint)))

/**
 * Sets `retried` in a failure and in its causes, and updates the hint of a stale plan and the
 * messages of a `SqlError`. Returns true if a failure with the field was found. The failures are
 * changed in place, so that errors of the program around them stay the same objects.
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
