/**
 * What a piece of work is for, as those hear of it who look at the database from outside: in observations, in `pg_stat_activity`, in the
 * server's log.
 */
import type * as Fiber from "effect/Fiber"
import type { Request } from "../connection/connection.js"

/** What a piece of work is for. */
export interface WorkLabel {
  /** In observations and in `status`. */
  readonly label?: string | undefined
  /** Of its transactions, as `pg_stat_activity` shows them. */
  readonly applicationName?: string | undefined
  /** Written behind each of its statements, as an SQL comment in the format of sqlcommenter. */
  readonly comment?: Readonly<Record<string, string | undefined>> | undefined
  /** Whether the comment has a value that is another one each time, so that a statement with it is not worth being kept prepared. */
  readonly isUnique?: boolean | undefined
}

/** As in a URL, and the quote too: no value can end the comment, or the quotes around it. Half a character cannot be encoded. */
const encode = (text: string): string =>
  encodeURIComponent(text.replace(/[\ud800-\udfff]/gu, "\ufffd")).replaceAll("'", "%27")

/** The comment, with a space before it; empty where there is nothing to say. */
const commentOf = (pairs: NonNullable<WorkLabel["comment"]>): string => {
  const parts = Object.entries(pairs).flatMap(([key, value]) =>
    value === undefined || value === "" ? [] : [`${encode(key)}='${encode(value)}'`]
  )
  // after a line's comment it would be a part of that, so it has a line of its own
  return parts.length === 0 ? "" : `\n/*${parts.sort().join(",")}*/`
}

/** The same statement with the comment of its work. */
export const withComment = (request: Request, work: WorkLabel | undefined): Request => {
  if (work?.comment === undefined) return request
  const text = request.text + commentOf(work.comment)
  return { ...request, text, prepare: request.prepare && work.isUnique !== true }
}

/** Longer names are cut off by the server, with a notice each time. */
const longestName = 63

/** The command that names a transaction, for as long as it lasts. The server shows printable ASCII only. */
export const labelSql = (applicationName: string): string =>
  `SET LOCAL application_name = '${applicationName
    .replace(/[^ -~]|\\/g, "?")
    .slice(0, longestName)
    .replaceAll("'", "''")}'`

/** Describes the work of a fiber. The route of a request, for example, is known only inside of the work. */
export type Describe = (fiber: Fiber.RuntimeFiber<unknown, unknown>) => WorkLabel | undefined
