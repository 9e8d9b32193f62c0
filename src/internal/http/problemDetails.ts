/**
 * What a client is told whose request could not be stored.
 */
import type { Problem } from "../../DatabaseError.js"

export { type Problem, toProblem as problemOf } from "../../DatabaseError.js"

export const problemType = "application/problem+json"

/** For what has failed without the database. */
export const notStored: Problem = { type: "about:blank", title: "The request could not be stored", status: 500 }
