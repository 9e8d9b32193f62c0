/**
 * The meaning of a failed exchange for its connection, and the name of the failure in the metrics.
 */
import type { CloseReason } from "../../Observation.js"
import { meaning } from "../../SqlState.js"
import type { Failure } from "../protocol/exchange.js"
import { isServerError } from "../protocol/pgDriver.js"

type Refusal = Extract<Failure, { readonly _tag: "refused" }>

/** Builds the error of a connection that ended without an error of its own. */
export const lostError = (): Error => new Error("Connection terminated unexpectedly")

/** Returns the meaning of the SQLSTATE of a refusal. */
const meaningOf = ({ error }: Refusal) => meaning(error.code ?? "")

/** Checks if the server has refused a write. */
export const isWriteRefused = (failure: Failure): failure is Refusal =>
  failure._tag === "refused" && meaningOf(failure) === "ReadOnlyViolation"

/**
 * Returns the failure of a statement on a connection that will be closed. A cancelled statement
 * counts as lost and undone, and not as timed out by the server.
 */
export const failureOnClosing = (failure: Failure, reason: CloseReason): Failure =>
  failure._tag === "refused" && meaningOf(failure) === "StatementTimeout"
    ? {
        _tag: "lost",
        error: new Error(`it was cancelled, because its connection is to be closed (${reason})`),
        sent: true,
        undone: true,
        acknowledged: failure.acknowledged,
        statement: failure.statement
      }
    : failure

/**
 * Returns the name of a failure in the metrics: its SQLSTATE, or `Disconnected` or `QueryFailed` if
 * it has none.
 */
export const errorType = ({ _tag, error }: Failure): string => {
  const sqlState = isServerError(error) ? error.code : undefined
  return sqlState ?? (_tag === "lost" ? "Disconnected" : "QueryFailed")
}
