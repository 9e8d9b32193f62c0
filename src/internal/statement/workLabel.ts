/**
 * Labels of work, as they appear in observations, `pg_stat_activity` and the server's log.
 */
import type * as Fiber from "effect/Fiber"
import type { WorkLabel } from "../../Transaction.js"
import type { Request } from "../connection/connection.js"

/**
 * Encodes a text as in a URL, the quote included, so that no value can end the comment or the
 * quotes around it. A lone surrogate cannot be encoded, so it is replaced.
 */
const encode = (text: string): string =>
  encodeURIComponent(text.replace(/[\ud800-\udfff]/gu, "\ufffd")).replaceAll("'", "%27")

/** Returns the comment with a line break before it, or an empty text if all fields are empty. */
const commentOf = (fields: NonNullable<WorkLabel["comment"]>): string => {
  const parts = Object.entries(fields).flatMap(([key, value]) =>
    value === undefined || value === "" ? [] : [`${encode(key)}='${encode(value)}'`]
  )
  // a statement may end with a line comment, which would include this comment, so it is on a line
  // of its own
  return parts.length === 0 ? "" : `\n/*${parts.sort().join(",")}*/`
}

/**
 * Returns the statement with the comment of its label. A statement with a unique comment is not
 * prepared.
 */
export const withComment = (request: Request, label: WorkLabel | undefined): Request => {
  if (label?.comment === undefined) return request
  const text = request.text + commentOf(label.comment)
  return { ...request, text, prepare: request.prepare && label.isUnique !== true }
}

/** The longest name, in characters: the server truncates longer ones, with a notice each time. */
const maxNameLength = 63

/**
 * Returns the command that names a transaction until its end. The server shows printable ASCII
 * only, so other characters become `?`.
 */
export const labelSql = (applicationName: string): string =>
  `SET LOCAL application_name = '${applicationName
    .replace(/[^ -~]|\\/g, "?")
    .slice(0, maxNameLength)
    .replaceAll("'", "''")}'`

/**
 * Function that returns the labels of a fiber's work. It is called for each statement, because the
 * route of a request is known only inside of the work.
 */
export type Describe = (fiber: Fiber.RuntimeFiber<unknown, unknown>) => WorkLabel | undefined
