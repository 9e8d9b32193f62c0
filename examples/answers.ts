/** Responses to failures in the examples with plain handlers. They do not contain messages of the database. */
import { ParseResult } from "effect"
import { DatabaseError } from "effect-db"

type Refusal = { readonly status: 400 | 409 | 500; readonly body: { readonly error: string } }

export const answerOf = (error: unknown): Refusal => {
  const isBad = error instanceof SyntaxError || ParseResult.isParseError(error)
  // frameworks mark an unreadable body in this way
  const isRefused = error instanceof Error && "statusCode" in error && error.statusCode === 400
  if (isBad || isRefused) return { status: 400, body: { error: "expected JSON with a title" } }
  if (DatabaseError.isDatabaseError(error) && error._tag === "UniqueViolation")
    return { status: 409, body: { error: "it is there already" } }
  return { status: 500, body: { error: "it went wrong, and nothing is stored" } }
}
