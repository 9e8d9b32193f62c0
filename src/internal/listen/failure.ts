/**
 * Failures of the listening connection and its listeners, as plain values. `toListenError` turns
 * them into errors of the library.
 */

import { mayPass } from "../connection/connectFailure.js"
import type { ConnectFailure, Failure } from "../connection/connection.js"

/** Failure that ends a connection, or the attempt to make one. */
export type ConnectionFailure =
  | { readonly _tag: "Connect"; readonly failure: ConnectFailure }
  | { readonly _tag: "Command"; readonly failure: Failure }
  | { readonly _tag: "Lost"; readonly error: Error }

/**
 * Failure of a listener.
 *
 * - `Closed`: the database is closed.
 * - `Undelivered`: messages of other connections do not arrive, for example behind a pooler in
 *   transaction mode.
 * - `Missed`: messages may be missed, and the listener does not accept gaps, or no further attempt to
 *   connect follows.
 */
export type ListenerFailure =
  | ConnectionFailure
  | { readonly _tag: "Closed" }
  | { readonly _tag: "Undelivered" }
  | { readonly _tag: "Missed"; readonly reason: "disconnected"; readonly cause: ConnectionFailure }
  | { readonly _tag: "Missed"; readonly reason: "overflow" }

/** Checks if each further attempt would fail in the same way until the configuration is changed. */
export const isPermanent = (failure: ConnectionFailure): boolean =>
  failure._tag === "Connect" && !mayPass(failure.failure)
