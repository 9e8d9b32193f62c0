/**
 * The failure of a connect.
 */
import { type ConnectReason, isTransient } from "../../SqlState.js"
import type { PlainFailure } from "./failure.js"
import type { ErrorLocation } from "./statementFailure.js"

/** The reason and the error of a failed connect. */
export interface ConnectFailure {
  readonly reason: ConnectReason
  readonly error: Error
  /** True if another attempt would fail too, although failures of this reason may be temporary. */
  readonly isPermanent?: boolean | undefined
}

/** Checks if another attempt may succeed. */
export const mayPass = ({ isPermanent, reason }: ConnectFailure): boolean => isPermanent !== true && isTransient(reason)

/** Returns the failure of a checkout after its connect has failed. */
export const connectFailed = (
  location: ErrorLocation,
  { error: cause, isPermanent, reason }: ConnectFailure
): PlainFailure<"ConnectFailed"> => ({
  _tag: "ConnectFailed",
  ...location,
  reason,
  cause,
  ...(isPermanent === true ? { permanent: true } : {})
})
