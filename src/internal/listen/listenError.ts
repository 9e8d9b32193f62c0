/**
 * The errors that failures of the listening connection and its listeners become.
 */

import {
  ConfigInvalid,
  ConnectFailed,
  DatabaseClosed,
  Disconnected,
  type ListenError,
  ListenFailed,
  type StatementError
} from "../../DatabaseError.js"
import { permanence } from "../connection/connectFailure.js"
import { type ErrorLocation, toStatementError } from "../connection/statementError.js"
import type { ConnectionFailure, ListenerFailure } from "./failure.js"

/** Builds the error of a failed connection. Nothing of a caller's work was sent on it. */
export const toConnectionError = (location: ErrorLocation, failure: ConnectionFailure): StatementError => {
  switch (failure._tag) {
    case "Connect": {
      const { error: cause, reason } = failure.failure
      return new ConnectFailed({ ...location, reason, cause, ...permanence(failure.failure) })
    }
    case "Command":
      return toStatementError(location, failure.failure, "notSent")
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
        given: "a pooler that gives each transaction another session, where no notification arrives",
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
