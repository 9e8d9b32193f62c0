/**
 * A driver's failure as the error that a program sees.
 */

import { SqlError } from "@effect/sql/SqlError"
import * as Predicate from "effect/Predicate"
import {
  CheckViolation,
  ConnectFailed,
  type DatabaseError,
  DeadlockDetected,
  Disconnected,
  ExclusionViolation,
  ForeignKeyViolation,
  IdleTransactionTimeout,
  InvalidInput,
  isDatabaseError,
  LockTimeout,
  NotNullViolation,
  QueryFailed,
  ReadOnlyViolation,
  type Retried,
  SerializationFailure,
  type StatementError,
  StatementTimeout,
  UniqueViolation
} from "../../DatabaseError.js"
import { isAborted, isStalePlan, lossMeaning, type Outcome, refusalMeaning } from "../../SqlState.js"
import type { RequestedStatement } from "../protocol/exchange.js"
import type { ServerError } from "../protocol/pgDriver.js"
import { contextOf, withoutPasswords } from "../sql/excerpt.js"
import type { Failure } from "./connection.js"

/** Which database and server a failure is about. */
export interface ErrorLocation {
  readonly database: string
  readonly server: string
}

/** Only what the server has said: fields that are absent are left out. */
const present = <K extends string>(error: ServerError, keys: ReadonlyArray<K & keyof ServerError>) => {
  const out: { [P in K]?: string } = {}
  for (const key of keys) {
    const value = error[key]
    if (typeof value === "string") out[key] = value
  }
  return out
}

const stale =
  "a table or type that it uses has changed since the statement was prepared, and in the middle of a transaction it cannot be prepared anew"
const staleHint = `${stale}: run the whole transaction again, or set its option \`retry\``
const staleAgainHint = `${stale}: tables or types change all the time, or a pooler is in between`

/**
 * Keeps what may hold values out of what prints an error. It stays readable for a program that asks for it: with
 * `log_parameter_max_length_on_error` a context shows parameters, and an inner statement may be put together of them.
 */
const discreet = (error: ServerError): ServerError => {
  for (const key of ["where", "internalQuery"]) {
    if (key in error) Object.defineProperty(error, key, { enumerable: false })
  }
  return error
}

/** Returns the text of a statement for errors, without passwords and values that are written into it. */
export const textOf = ({ shown, text }: RequestedStatement): string => withoutPasswords(shown?.shown ?? text)

/** What is known of the statement that failed. */
const statementOf = ({ statement }: Failure) => {
  if (statement === undefined) return {}
  const sql = textOf(statement)
  const location = statement.site?.place
  return location === undefined ? { sql } : { sql, location }
}

const refused = (place: ErrorLocation, failure: Extract<Failure, { readonly _tag: "refused" }>): StatementError => {
  const { statement, error, takesNoWrites } = failure
  const sent = Number(error.position)
  const position = statement?.shown?.positionOf(sent) ?? sent
  const where = contextOf(error.where)
  const common = {
    ...place,
    cause: discreet(error),
    ...statementOf(failure),
    ...(statement === undefined || Number.isNaN(sent) ? {} : { position }),
    ...(where === undefined ? {} : { where }),
    ...present(error, ["hint"])
  }
  const objects = () => present(error, ["schema", "table", "column", "dataType", "constraint", "detail"])
  const violation = () => ({ ...common, ...objects() })
  const sqlState = error.code ?? ""
  switch (refusalMeaning(sqlState, error.message)) {
    case "UniqueViolation":
      return new UniqueViolation(violation())
    case "ForeignKeyViolation":
      return new ForeignKeyViolation(violation())
    case "CheckViolation":
      return new CheckViolation(violation())
    case "NotNullViolation":
      return new NotNullViolation(violation())
    case "ExclusionViolation":
      return new ExclusionViolation(violation())
    case "SerializationFailure":
      return new SerializationFailure(common)
    case "DeadlockDetected":
      return new DeadlockDetected({ ...common, ...present(error, ["detail"]) })
    case "StatementTimeout":
      return new StatementTimeout({ ...common, limit: error.message })
    case "LockTimeout":
      return new LockTimeout({ ...common, limit: error.message })
    case "IdleTransactionTimeout":
      return new IdleTransactionTimeout({ ...common, limit: error.message })
    case "ReadOnlyViolation": {
      const reason = statement?.kind === "reader" ? "reader" : takesNoWrites === true ? "server" : "transaction"
      return new ReadOnlyViolation({ ...common, reason })
    }
    case "InvalidInput":
      return new InvalidInput({ ...violation(), sqlState })
    default:
      return new QueryFailed({
        ...violation(),
        sqlState,
        ...(isStalePlan(sqlState, error.message) ? { hint: staleHint } : {})
      })
  }
}

/**
 * Says in a refusal for an aborted transaction why that is aborted: its own words say nothing of that. The first failure is the cause of its
 * cause.
 */
export const afterFirst = (error: StatementError, first: StatementError | undefined): StatementError => {
  if (first === undefined || error._tag !== "QueryFailed" || !isAborted(error.sqlState ?? "")) return error
  const why = new Error(`${words(error.cause)}; the first failure in it: ${words(first)}`, { cause: first })
  return new QueryFailed({ ...error, cause: why })
}

/** Notes the place in the program in an error that has none: the fiber is known where a statement is waited for, and not where it fails. */
export const withLocation = (error: StatementError, location: string | undefined): StatementError => {
  if (location !== undefined && "sql" in error && error.sql !== undefined && error.location === undefined) {
    Object.defineProperty(error, "location", { value: location, enumerable: true })
  }
  return error
}

/** Tells if a failure has room for how often its work was run. */
const hasRetried = (error: unknown): error is DatabaseError =>
  isDatabaseError(error) &&
  (error._tag === "SerializationFailure" ||
    error._tag === "DeadlockDetected" ||
    error._tag === "Disconnected" ||
    (error._tag === "QueryFailed" && (error.hint === staleHint || error.hint === staleAgainHint)))

/**
 * Notes in a failure how often its work was run in vain, also where it is the cause of another one; tells if it is one of this library that
 * can say so. It is noted down in place: a program has made errors of its own around it, which stay as they are.
 */
export const noteRetried = (failure: unknown, retried: Retried): boolean => {
  const chain: Array<unknown> = []
  for (let one = failure; Predicate.isObject(one) && !chain.includes(one); one = "cause" in one ? one.cause : undefined)
    chain.push(one)
  const noted = chain.filter(hasRetried)
  for (const error of noted) {
    const more = error._tag === "QueryFailed" ? { retried, hint: staleAgainHint } : { retried }
    for (const [key, value] of Object.entries(more))
      Object.defineProperty(error, key, { value, enumerable: true, configurable: true, writable: true })
  }
  // what the ecosystem's error says is a copy of what ours says
  if (noted.length > 0)
    for (const one of chain)
      if (one instanceof SqlError && isDatabaseError(one.cause))
        Object.defineProperty(one, "message", { value: one.cause.message, configurable: true, writable: true })
  return noted.length > 0
}

const words = (cause: unknown): string => (cause instanceof Error ? (cause.message.split("\n")[0] ?? "") : "")

/** The code of an error, where it has one. */
export const codeOf = (error: Error): string => ("code" in error && typeof error.code === "string" ? error.code : "")

/** Checks whether the server has refused a prepared statement because its plan is stale. */
export const isStaleRefusal = (failure: Failure): boolean =>
  failure._tag === "refused" && isStalePlan(codeOf(failure.error), failure.error.message)

/** What a failure means; `outcome` is what became of the work if the connection was lost. */
export const toStatementError = (place: ErrorLocation, failure: Failure, outcome: Outcome): StatementError => {
  switch (failure._tag) {
    case "refused":
      return refused(place, failure)
    case "unsendable":
      return new QueryFailed({ ...place, cause: failure.error, ...statementOf(failure) })
    case "lost": {
      return lossMeaning(codeOf(failure.error), failure.error.message) === "IdleTransactionTimeout"
        ? new IdleTransactionTimeout({
            ...place,
            cause: failure.error,
            limit: failure.error.message,
            ...statementOf(failure)
          })
        : new Disconnected({
            ...place,
            cause: failure.error,
            ...statementOf(failure),
            outcome: failure.undone && outcome === "inDoubt" ? "undone" : outcome
          })
    }
  }
}

/** Builds the error of a statement that found a connection to a server of the wrong role; nothing of it has run. */
export const wrongRole = (place: ErrorLocation, { error: cause }: Failure): ConnectFailed =>
  new ConnectFailed({ ...place, reason: "wrongRole", cause })
