/**
 * The response to a request that has failed with a database error, such as at its commit.
 */
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { type DatabaseError, toProblem } from "../../DatabaseError.js"
import { problemType } from "./problemJson.js"

/** Makes the response to a database error, with problem details as its body. */
export const problemResponse = (error: DatabaseError): HttpServerResponse.HttpServerResponse => {
  const problem = toProblem(error)
  return HttpServerResponse.unsafeJson(problem, { status: problem.status, contentType: problemType })
}
