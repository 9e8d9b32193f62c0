/**
 * The response to a request that has failed with a database error, such as at its commit.
 */
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import type { DatabaseError } from "../../DatabaseError.js"
import { problemOf, problemType } from "./problemDetails.js"

/** Makes the response to a database error, with problem details as its body. */
export const problemResponse = (error: DatabaseError): HttpServerResponse.HttpServerResponse => {
  const problem = problemOf(error)
  return HttpServerResponse.unsafeJson(problem, { status: problem.status, contentType: problemType })
}
