/**
 * The failure of a connect.
 */
import type { ConnectReason } from "../../SqlState.js"

/**
 * The reason of a failed connect, with the driver's words.
 *
 * @since 0.1.0
 * @category models
 */
export interface ConnectFailure {
  readonly reason: ConnectReason
  readonly error: Error
}
