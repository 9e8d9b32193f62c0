/**
 * The parts that all responses with problem details share.
 */
import type { Problem } from "../../DatabaseError.js"

/** The content type of problem details. */
export const problemType = "application/problem+json"

/** Problem of a request whose work was undone for a reason other than a database error. */
export const notStored: Problem = { type: "about:blank", title: "The request could not be stored", status: 500 }
