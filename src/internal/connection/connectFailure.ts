/**
 * The failure of a connect.
 */
import { type ConnectReason, isTransient } from "../../SqlState.js"

/**
 * The reason of a failed connect, with the driver's words.
 *
 * @since 0.1.0
 * @category models
 */
export interface ConnectFailure {
  readonly reason: ConnectReason
  readonly error: Error
  /** Set where another attempt meets it again, although its reason is one that may pass. */
  readonly isPermanent?: boolean | undefined
}

/** Tells if another attempt may go better. */
export const mayPass = ({ isPermanent, reason }: ConnectFailure): boolean => isPermanent !== true && isTransient(reason)

/** Returns what the error of a failed connect says of it. */
export const permanence = ({ isPermanent }: ConnectFailure): { readonly permanent?: true } =>
  isPermanent === true ? { permanent: true } : {}
