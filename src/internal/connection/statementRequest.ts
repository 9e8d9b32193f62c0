/**
 * The statements that a connection sends.
 */
import type { CallSite } from "../observability/callSite.js"
import type { DisplayedStatement } from "../protocol/inlinedText.js"
import type { SearchPath } from "../sql/searchPath.js"
import type { Destination } from "./destination.js"

/** Statement to send. */
export interface Request {
  /** The call site, if call sites are recorded. */
  readonly site?: CallSite | undefined
  /** The client that the program has used, the reader's or the writer's, for errors. */
  readonly kind?: "reader" | "writer" | undefined
  /** Called with the server that the statement is sent to, if a span shows the server. */
  readonly served?: ((server: Destination) => void) | undefined
  /** The call of the program that the statement belongs to, if the database is observed by a test. */
  readonly call?: object | undefined
  readonly text: string
  /** The form that errors show in place of the text, if values are written into the text. */
  readonly shown?: DisplayedStatement | undefined
  readonly values: ReadonlyArray<unknown>
  /**
   * The form of the rows: objects by the names of their columns, arrays, or arrays of the texts of
   * the server without decoding.
   */
  readonly rows: "object" | "array" | "raw"
  /** True for a raw statement of the library that has steps before it, none of them of the program. */
  readonly isMaintenance?: true
  /** True if the server may keep the statement prepared under a name. */
  readonly prepare: boolean
  /** True for several commands in one text, which the simple protocol sends without parameters. */
  readonly simple: boolean
  /** The search path of the statement; `undefined` for the search path of the session. */
  readonly path?: SearchPath | undefined
}

const none: ReadonlyArray<never> = []

/** Returns a query of the library. The type parsers of the program must not change its rows. */
export const rawQuery = (
  text: string,
  { prepare = false, values = none }: Partial<Pick<Request, "prepare" | "values">> = {}
): Request => ({ text, values, rows: "raw", prepare, simple: false })

/** Returns a query of the library for an exchange that may have steps before it. */
export const maintenanceQuery = (text: string, values: ReadonlyArray<unknown> = none): Request => ({
  ...rawQuery(text, { values }),
  isMaintenance: true
})

/** Returns the text, or throws if it holds a NUL character. */
export const sendableText = (text: string): string => {
  if (text.includes("\0")) throw new Error("the statement holds a NUL character")
  return text
}
