/**
 * What a client is told whose request could not be stored.
 */
import type { DatabaseError } from "../../DatabaseError.js"
import { isReplayable } from "../../RetryPolicy.js"

/** The members of RFC 9457 that say it. */
export interface Problem {
  readonly type: "about:blank"
  readonly title: string
  readonly status: number
}

export const problemType = "application/problem+json"

const problem = (status: number, title: string): Problem => ({ type: "about:blank", title, status })

/** For what has failed without the database. */
export const notStored = problem(500, "The request could not be stored")

/** 409 where the request may simply be sent again, 503 where the database was lost, else 500. What the database said stays here. */
export const problemOf = (error: DatabaseError): Problem => {
  switch (error._tag) {
    case "CommitOutcomeUnknown":
      return problem(
        503,
        "The database was lost while the request was stored: look whether it is there before you send it again"
      )
    case "PartialCommit":
      return problem(500, "The request was stored in part")
    case "Disconnected":
    case "ConnectFailed":
    case "PoolExhausted":
    case "DatabaseClosed":
      return problem(503, "The database cannot be reached; nothing was stored: send the request again")
    default:
      return isReplayable(error)
        ? problem(409, "The request collided with another one and was not stored: send it again")
        : notStored
  }
}
