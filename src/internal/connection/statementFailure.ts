/**
 * The meaning of a failed exchange for a statement.
 */

import { isAborted, isStalePlan, lossMeaning, type Outcome, refusalMeaning } from "../../SqlState.js"
import type { RequestedStatement } from "../protocol/exchange.js"
import type { ServerError } from "../protocol/pgDriver.js"
import { contextOf, withoutPasswords } from "../sql/excerpt.js"
import type { Failure } from "./connection.js"
import type { PlainFailure, StatementFailure } from "./failure.js"

/** Database and server of a failure. */
export interface ErrorLocation {
  readonly database: string
  readonly server: string
}

/** Returns those of the given fields that a server error has. */
const present = <K extends string>(error: ServerError, keys: ReadonlyArray<K & keyof ServerError>) => {
  const out: { [P in K]?: string } = {}
  for (const key of keys) {
    const value = error[key]
    if (typeof value === "string") out[key] = value
  }
  return out
}

/** The reason of a refusal that only another attempt of the whole transaction can avoid. */
const stale =
  "a table or type of the statement has changed since the statement was prepared, and inside of a transaction it cannot be prepared again"

/** The hint of a failure that another attempt may avoid. */
export const staleHint = `${stale}: run the whole transaction again, or set its option \`retry\``

/** The hint of a failure after retries. */
export const staleAgainHint = `${stale}: tables or types change all the time, or a pooler is in between`

/**
 * Makes `where` and `internalQuery` of a server error non-enumerable, so that code that prints all
 * fields shows no values. A program can still read them by name. With
 * `log_parameter_max_length_on_error` `where` shows parameters, and the statement in
 * `internalQuery` may be built from parameters.
 */
const hideValues = (error: ServerError): ServerError => {
  for (const key of ["where", "internalQuery"]) {
    if (key in error) Object.defineProperty(error, key, { enumerable: false })
  }
  return error
}

/**
 * Returns the text of a statement for errors, without passwords and without values that are written
 * into it.
 */
export const textOf = ({ shown, text }: RequestedStatement): string => withoutPasswords(shown?.shown ?? text)

/** Returns the text and the call site of the statement that failed, as far as they are known. */
const statementOf = ({ statement }: Failure) => {
  if (statement === undefined) return {}
  const sql = textOf(statement)
  const location = statement.site?.location
  return location === undefined ? { sql } : { sql, location }
}

const refused = (
  location: ErrorLocation,
  failure: Extract<Failure, { readonly _tag: "refused" }>
): StatementFailure => {
  const { statement, error, takesNoWrites } = failure
  const sent = Number(error.position)
  const position = statement?.shown?.positionOf(sent) ?? sent
  const where = contextOf(error.where)
  const common = {
    ...location,
    cause: hideValues(error),
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
      return { _tag: "UniqueViolation", ...violation() }
    case "ForeignKeyViolation":
      return { _tag: "ForeignKeyViolation", ...violation() }
    case "CheckViolation":
      return { _tag: "CheckViolation", ...violation() }
    case "NotNullViolation":
      return { _tag: "NotNullViolation", ...violation() }
    case "ExclusionViolation":
      return { _tag: "ExclusionViolation", ...violation() }
    case "SerializationFailure":
      return { _tag: "SerializationFailure", ...common }
    case "DeadlockDetected":
      return { _tag: "DeadlockDetected", ...common, ...present(error, ["detail"]) }
    case "StatementTimeout":
      return { _tag: "StatementTimeout", ...common, limit: error.message }
    case "LockTimeout":
      return { _tag: "LockTimeout", ...common, limit: error.message }
    case "IdleTransactionTimeout":
      return { _tag: "IdleTransactionTimeout", ...common, limit: error.message }
    case "ReadOnlyViolation": {
      const reason = statement?.kind === "reader" ? "reader" : takesNoWrites === true ? "server" : "transaction"
      return { _tag: "ReadOnlyViolation", ...common, reason }
    }
    case "InvalidInput":
      return { _tag: "InvalidInput", ...violation(), sqlState }
    default:
      return {
        _tag: "QueryFailed",
        ...violation(),
        sqlState,
        ...(isStalePlan(sqlState, error.message) ? { hint: staleHint } : {})
      }
  }
}

/** Returns the code of an error, or an empty text if it has none. */
export const codeOf = (error: Error): string => ("code" in error && typeof error.code === "string" ? error.code : "")

/** Checks if the server has refused a prepared statement because its plan is stale. */
export const isStaleRefusal = (failure: Failure): boolean =>
  failure._tag === "refused" && isStalePlan(codeOf(failure.error), failure.error.message)

/**
 * Returns the failure of a statement. `outcome` is the outcome of the work if the connection was
 * lost.
 */
export const statementFailure = (location: ErrorLocation, failure: Failure, outcome: Outcome): StatementFailure => {
  const { error: cause } = failure
  switch (failure._tag) {
    case "refused":
      return refused(location, failure)
    case "unsendable":
      return { _tag: "QueryFailed", ...location, cause, ...statementOf(failure) }
    case "lost":
      return lossMeaning(codeOf(cause), cause.message) === "IdleTransactionTimeout"
        ? { _tag: "IdleTransactionTimeout", ...location, cause, limit: cause.message, ...statementOf(failure) }
        : {
            _tag: "Disconnected",
            ...location,
            cause,
            ...statementOf(failure),
            outcome: failure.undone && outcome === "inDoubt" ? "undone" : outcome
          }
  }
}

/**
 * Adds the first failure of a transaction to a later refusal that has the aborted transaction as
 * its reason. The message of such a refusal does not mention the first failure.
 */
export const afterFirst = (failure: StatementFailure, first: StatementFailure | undefined): StatementFailure =>
  first !== undefined && failure._tag === "QueryFailed" && isAborted(failure.sqlState ?? "")
    ? { ...failure, earlier: first }
    : failure

/**
 * Returns the failure of a statement on a connection to a server of the wrong role. Nothing of the
 * statement has run.
 */
export const wrongRoleFailure = (
  location: ErrorLocation,
  { error: cause }: Failure
): PlainFailure<"ConnectFailed"> => ({
  _tag: "ConnectFailed",
  ...location,
  reason: "wrongRole",
  cause
})
