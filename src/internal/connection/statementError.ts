/**
 * A driver's failure as the error that a program sees.
 */

import {
  CheckViolation,
  ConnectFailed,
  DeadlockDetected,
  Disconnected,
  ExclusionViolation,
  ForeignKeyViolation,
  IdleTransactionTimeout,
  InvalidInput,
  LockTimeout,
  NotNullViolation,
  QueryFailed,
  ReadOnlyViolation,
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

const staleHint =
  "a table or type that it uses has changed since the statement was prepared, and in the middle of a transaction it cannot be prepared " +
  "anew: run the whole transaction again, or give it { retry }"

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
