/**
 * The problem details of requests that could not be stored.
 */
import type { Problem } from "../../DatabaseError.js"

export { type Problem, toProblem as problemOf } from "../../DatabaseError.js"

/** The content type of problem details. */
export const problemType = "application/problem+json"

/** Problem of a request whose work was undone for a reason other than a database error. */
export const notStored: Problem = { type: "about:blank", title: "The request could not be stored", status: 500 }
