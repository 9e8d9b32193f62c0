/**
 * What the ecosystem calls a connection: our engine, behind its five ways to run a statement.
 */
import type { Connection as SqlConnection } from "@effect/sql/SqlConnection"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Effect from "effect/Effect"
import type * as Stream from "effect/Stream"
import type { Role } from "../../Topology.js"
import type { Exchange, Request } from "../connection/connection.js"
import type { CallSite } from "../observability/callSite.js"

/** What the client does with the rows of a statement. */
export type TransformRows = (<A extends object>(rows: ReadonlyArray<A>) => ReadonlyArray<A>) | undefined

/** How a statement is run, whatever runs it: a pool, a transaction, one reserved connection. */
export type Run = <A>(request: Request, read: (exchange: Exchange) => A) => Effect.Effect<A, SqlError>

/** Several commands in one text go by the simple protocol; a statement with a semicolon in a string may, too. */
const isSimple = (kind: Role, sql: string, values: ReadonlyArray<unknown>): boolean => {
  if (kind === "reader" || values.length > 0) return false
  const first = sql.indexOf(";")
  return first >= 0 && sql.slice(first + 1).trim() !== ""
}

/** A class, so that its kind is not made where garbage is seldom collected: see `cancellable`. */
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

// The rows' type is the caller's own claim, as it is everywhere in @effect/sql: `any` in its Connection interface.
const rowsOf = (exchange: Exchange): ReadonlyArray<never> =>
  (several(exchange)
    ? exchange.results.map((result) => result.rows)
    : only(exchange).rows) as unknown as ReadonlyArray<never>

/** How the rows of a exchange are read. */
const reading = (transformRows: TransformRows) =>
  transformRows === undefined ? rowsOf : (exchange: Exchange) => transformRows(rowsOf(exchange)) as ReadonlyArray<never>

const rawOf = (exchange: Exchange): unknown => (several(exchange) ? exchange.results : only(exchange))

/** The request for the rows of a statement, and how they are read. */
export const makeRows = (kind: Role, transformRows: TransformRows) => ({
  read: reading(transformRows),
  request: (sql: string, params: ReadonlyArray<unknown>, site: CallSite | undefined) =>
    new PlainRequest(kind, sql, params, true, "object", site)
})

/** The ecosystem's connection over a way to run. */
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
