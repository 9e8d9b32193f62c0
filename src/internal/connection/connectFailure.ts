/**
 * Why a connect failed.
 */
import type { ConnectReason } from "../../SqlState.js"

/**
 * Why a connect failed, with the driver's words.
 *
 * @since 0.1.0
 * @category models
 */
export interface ConnectFailure {
  readonly reason: ConnectReason
  readonly error: Error
}
