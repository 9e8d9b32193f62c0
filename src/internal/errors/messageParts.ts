/**
 * The common parts of error messages.
 */
import { type FailedStatement, statementLines } from "../sql/excerpt.js"

/** Database and server of an error. The server is empty if the error is not about a server. */
export interface Location {
  readonly database: string
  readonly server: string
}

/** Error with a cause. */
export interface Caused extends Location {
  readonly cause?: unknown
}

/** Error of work that may have been retried without success. */
export interface Repeated {
  readonly retried?: { readonly attempts: number; readonly endedBy: "schedule" | "budget" } | undefined
}

/** Checks if a value of any type has a property. */
export const hasProperty = <K extends PropertyKey>(value: unknown, key: K): value is { readonly [P in K]: unknown } =>
  ((typeof value === "object" && value !== null) || typeof value === "function") && key in value

/** Returns the database and the server of an error as text. */
export const locationText = ({ database, server }: Location): string =>
  server === "" ? `database "${database}"` : `database "${database}" at ${server}`

/** Returns the message of a cause, or an empty text if it has none. */
export const messageOf = (cause: unknown): string =>
  hasProperty(cause, "message") && typeof cause.message === "string" ? cause.message : ""

/** The key of the symbol `DatabaseError.TypeId`, which marks every error of this library. */
export const markName = "~effect-db/DatabaseError"

const mark = Symbol.for(markName)

/** Checks if a cause is an error of this library; the fields of other errors may have any type. */
const isOwn = (cause: unknown): cause is FailedStatement => hasProperty(cause, mark)

/** Removes the location at the beginning of a message, if it is the given one. */
export const withoutLocation = (message: string, location: Location): string => {
  const text = locationText(location)
  const rest = message.startsWith(text) ? message.slice(text.length) : ""
  if (rest.startsWith(": ")) return rest.slice(": ".length)
  // the location is the subject of the message of `DatabaseClosed`
  return rest.startsWith(" is ") ? `the database${rest}` : message
}

/**
 * Returns the cause of an error as the continuation of its message. If the cause is an error of
 * this library, the lines about its statement are left out. A location that both have in common is
 * left out, too.
 */
export const causeText = (self: Caused): string => {
  const message = messageOf(self.cause)
  if (message === "") return ""
  const lines = isOwn(self.cause) ? statementLines(self.cause) : ""
  const end = message.endsWith(lines) ? message.length - lines.length : message.length
  return `: ${withoutLocation(message.slice(0, end), self)}`
}

/** Returns the failure of the program's code, an error or a text, as a continuation of a message. */
export const failureText = (self: Caused): string =>
  typeof self.cause === "string" && self.cause !== "" ? `: ${self.cause}` : causeText(self)

/** Returns the number of failed attempts and, if the budget ended them, this reason. */
export const attemptsText = ({ retried }: Repeated): string => {
  if (retried === undefined) return ""
  const count = `${retried.attempts} attempt${retried.attempts === 1 ? "" : "s"}`
  return ` after ${count}${retried.endedBy === "budget" ? ", and the retry budget of the database is used up" : ""}`
}
