/**
 * The errors for failures of the listening connection and its listeners.
 */

import {
  ConfigInvalid,
  DatabaseClosed,
  Disconnected,
  type ListenError,
  ListenFailed,
  type StatementError
} from "../../DatabaseError.js"
import { connectFailed } from "../connection/connectFailure.js"
import { type ErrorLocation, statementFailure } from "../connection/statementFailure.js"
import { toDatabaseError } from "../edge/databaseError.js"
import type { ConnectionFailure, ListenerFailure } from "./failure.js"

/**
 * Builds the error of a failed connection. Its outcome is `notSent`, because no statement of a
 * caller runs there.
 */
export const toConnectionError = (location: ErrorLocation, failure: ConnectionFailure): StatementError => {
  switch (failure._tag) {
    case "Connect":
      return toDatabaseError(connectFailed(location, failure.failure))
    case "Command":
      return toDatabaseError(statementFailure(location, failure.failure, "notSent"))
    case "Lost":
      return new Disconnected({ ...location, cause: failure.error, outcome: "notSent" })
  }
}

/** Builds the error of a listener of a channel. */
export const toListenError = (location: ErrorLocation, channel: string, failure: ListenerFailure): ListenError => {
  switch (failure._tag) {
    case "Closed":
      return new DatabaseClosed(location)
    case "Undelivered":
      return new ConfigInvalid({
        database: location.database,
        setting: "writer",
        given: "a pooler in transaction mode, which delivers no notifications",
        expected: "the server's own address, or a pooler that keeps sessions, for LISTEN"
      })
    case "Missed":
      return new ListenFailed({
        ...location,
        channel,
        reason: failure.reason,
        ...(failure.reason === "disconnected" ? { cause: toConnectionError(location, failure.cause) } : {})
      })
    default:
      return toConnectionError(location, failure)
  }
}
