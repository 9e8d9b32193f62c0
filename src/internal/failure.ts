/**
 * A driver's failure as the error that a program sees.
 */
import type { Failure } from "../Connection.js"
import {
  CheckViolation,
  ConnectFailed,
  DeadlockDetected,
  Disconnected,
  ExclusionViolation,
  ForeignKeyViolation,
  IdleTransactionTimeout,
  LockTimeout,
  NotNullViolation,
  QueryFailed,
  ReadOnlyViolation,
  SerializationFailure,
  type StatementError,
  StatementTimeout,
  UniqueViolation
} from "../DatabaseError.js"
import { lossMeaning, type Outcome, refusalMeaning } from "../SqlState.js"
import type { ServerError } from "./driver.js"

/** Which database and server a failure is about. */
export interface Place {
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

const refused = (place: Place, error: ServerError): StatementError => {
  const common = { ...place, cause: error }
  const violation = () => ({ ...common, ...present(error, ["schema", "table", "column", "constraint", "detail"]) })
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
    case "ReadOnlyViolation":
      return new ReadOnlyViolation(common)
    default: {
      const position = Number(error.position)
      return new QueryFailed({
        ...common,
        sqlState,
        ...present(error, ["detail", "hint"]),
        ...(Number.isNaN(position) ? {} : { position })
      })
    }
  }
}

/** The code of an error, where it has one. */
export const codeOf = (error: Error): string => ("code" in error && typeof error.code === "string" ? error.code : "")

/** What a failure means; `outcome` is what became of the work if the connection was lost. */
export const toStatementError = (place: Place, failure: Failure, outcome: Outcome): StatementError => {
  switch (failure._tag) {
    case "refused":
      return refused(place, failure.error)
    case "unsendable":
      return new QueryFailed({ ...place, cause: failure.error })
    case "lost": {
      return lossMeaning(codeOf(failure.error), failure.error.message) === "IdleTransactionTimeout"
        ? new IdleTransactionTimeout({ ...place, cause: failure.error, limit: failure.error.message })
        : new Disconnected({
            ...place,
            cause: failure.error,
            outcome: failure.undone && outcome === "inDoubt" ? "undone" : outcome
          })
    }
  }
}

/** Builds the error of a statement that found a connection to a server of the wrong role; nothing of it has run. */
export const wrongRole = (place: Place, { error: cause }: Failure): ConnectFailed =>
  new ConnectFailed({ ...place, reason: "wrongRole", cause })
