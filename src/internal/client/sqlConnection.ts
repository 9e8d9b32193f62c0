/**
 * The implementation of the connection interface of @effect/sql by one function that runs requests.
 */
import type { Connection as SqlConnection } from "@effect/sql/SqlConnection"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Effect from "effect/Effect"
import type * as Stream from "effect/Stream"
import type { Role } from "../../Topology.js"
import type { Exchange, Request } from "../connection/connection.js"
import type { CallSite } from "../observability/callSite.js"

/** Function that transforms the rows of a statement. */
export type TransformRows = (<A extends object>(rows: ReadonlyArray<A>) => ReadonlyArray<A>) | undefined

/**
 * Function that runs a statement: on a pooled connection, in a transaction or on a reserved
 * connection.
 */
export type Run = <A>(request: Request, read: (exchange: Exchange) => A) => Effect.Effect<A, SqlError>

/**
 * Checks if a text is sent by the simple protocol, which several commands need. A single statement
 * with a semicolon in a string may be sent so, too. The text of a reader never is.
 */
const isSimple = (kind: Role, sql: string, values: ReadonlyArray<unknown>): boolean => {
  if (kind === "reader" || values.length > 0) return false
  const first = sql.indexOf(";")
  return first >= 0 && sql.slice(first + 1).trim() !== ""
}

/**
 * Request of a statement. It lives as long as the operation, so it is a class and not an object
 * literal (see "Performance rules" in CONTRIBUTING.md).
 */
class PlainRequest implements Request {
  readonly simple: boolean

  constructor(
    readonly kind: Role,
    readonly text: string,
    readonly values: ReadonlyArray<unknown>,
    readonly prepare: boolean,
    readonly rows: "object" | "array",
    readonly site?: CallSite | undefined
  ) {
    this.simple = isSimple(kind, text, values)
  }
}

const several = (exchange: Exchange): boolean => exchange.results.length > 1

const only = (exchange: Exchange) => exchange.results[0] ?? exchange.result

// the cast: the caller states the type of the rows, which is `any` in the interface of @effect/sql
const rowsOf = (exchange: Exchange): ReadonlyArray<never> =>
  (several(exchange)
    ? exchange.results.map((result) => result.rows)
    : only(exchange).rows) as unknown as ReadonlyArray<never>

/** Returns the function that reads the rows of an exchange. */
const reading = (transformRows: TransformRows) =>
  transformRows === undefined ? rowsOf : (exchange: Exchange) => transformRows(rowsOf(exchange)) as ReadonlyArray<never>

const rawOf = (exchange: Exchange): unknown => (several(exchange) ? exchange.results : only(exchange))

/** Makes the functions that build the request of a statement and read its rows. */
export const makeRows = (kind: Role, transformRows: TransformRows) => ({
  read: reading(transformRows),
  request: (sql: string, params: ReadonlyArray<unknown>, site: CallSite | undefined) =>
    new PlainRequest(kind, sql, params, true, "object", site)
})

/** Makes a connection of @effect/sql that runs its statements with `run`. */
export const makeSqlConnection = (
  kind: Role,
  run: Run,
  stream: (request: Request, transformRows: TransformRows) => Stream.Stream<object, SqlError>
): SqlConnection => ({
  execute: (sql, params, transformRows) =>
    run(new PlainRequest(kind, sql, params, true, "object"), reading(transformRows)),
  executeRaw: (sql, params) => run(new PlainRequest(kind, sql, params, true, "object"), rawOf),
  executeValues: (sql, params) => run(new PlainRequest(kind, sql, params, true, "array"), rowsOf),
  executeUnprepared: (sql, params, transformRows) =>
    run(new PlainRequest(kind, sql, params, false, "object"), reading(transformRows)),
  executeStream: (sql, params, transformRows) =>
    stream({ kind, text: sql, values: params, rows: "object", prepare: false, simple: false }, transformRows)
})
