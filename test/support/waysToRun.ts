import type { Statement } from "@effect/sql/Statement"
import type { PgClient } from "@effect/sql-pg/PgClient"
import * as Stream from "effect/Stream"

/** Returns the effects by which a client can run a statement. */
export const waysToRun = <Row>(sql: PgClient, statement: Statement<Row>) => [
  statement,
  statement.raw,
  statement.values,
  statement.withoutTransform,
  statement.unprepared,
  Stream.runDrain(statement.stream),
  sql.withTransaction(statement)
]
