/**
 * COPY: many rows into a table, or out of a query, as a stream.
 *
 * @since 0.2.0
 */
import type { SqlError } from "@effect/sql/SqlError"
import type { Fragment } from "@effect/sql/Statement"
import type { PgClient } from "@effect/sql-pg/PgClient"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Stream from "effect/Stream"

/**
 * The form of the data. An option that is left out has PostgreSQL's own default for the format.
 *
 * @since 0.2.0
 * @category models
 */
export interface Format {
  /**
   * The format of the lines. The byte order mark with which CSV in UTF-8 may begin, as spreadsheets write it, is dropped.
   *
   * @default "text"
   */
  readonly format?: "text" | "csv" | undefined
  /**
   * The character between two fields.
   *
   * @default a tab, in CSV a comma
   */
  readonly delimiter?: string | undefined
  /**
   * The text that stands for NULL.
   *
   * @default "\\N", in CSV nothing between two delimiters
   */
  readonly null?: string | undefined
  /**
   * Whether the first line has the names of the columns; `"match"` has the server compare them (PostgreSQL 15, COPY FROM only).
   *
   * @default false
   */
  readonly header?: boolean | "match" | undefined
  /**
   * The character around fields, for CSV.
   *
   * @default "\""
   */
  readonly quote?: string | undefined
  /**
   * The character before a quote that is a part of a field, for CSV.
   *
   * @default as `quote`
   */
  readonly escape?: string | undefined
  /**
   * The encoding of bytes, by the server's name of it. Rows and texts are always UTF-8.
   *
   * @default "UTF8"
   */
  readonly encoding?: string | undefined
}

/**
 * The progress of a COPY so far.
 *
 * @since 0.2.0
 * @category models
 */
export interface Progress {
  /** How much was sent or received. */
  readonly bytes: number
  /** How many rows were sent; 0 for data that is text already, whose rows are not counted, and for COPY TO. */
  readonly rows: number
}

/**
 * The options of a COPY.
 *
 * @since 0.2.0
 * @category models
 */
export interface Options extends Format {
  /**
   * The server's limit for the whole of it, with the time that the other side takes.
   *
   * @default the database's `statementTimeout`
   */
  readonly statementTimeout?: Duration.DurationInput | undefined
  /** Runs after each block of about 64 kB. The copy goes on when it has ended. */
  readonly onProgress?: ((progress: Progress) => Effect.Effect<unknown>) | undefined
}

/**
 * A row to store: its values in the order of the columns, or by their names; or a piece of text or bytes that is in the format already and
 * may end anywhere.
 *
 * @since 0.2.0
 * @category models
 */
export type Row = ReadonlyArray<unknown> | Readonly<Record<string, unknown>> | string | Uint8Array

/**
 * The members of a client for COPY.
 *
 * @since 0.2.0
 * @category models
 */
export interface Copy {
  /**
   * Stores rows in a table, all or none, and gives how many: in a savepoint of the transaction that is open, else in a transaction of its
   * own. The stream is read as fast as the server takes it. Where it fails, or the copy is interrupted, nothing is stored.
   *
   * Values are written as parameters are: `null` and `undefined` as NULL, dates, arrays, bytes and JSON as PostgreSQL reads them. With no
   * column all columns of the table are meant, in their order. A name with a dot is a schema and a table.
   *
   * While it runs the transaction has no time for other statements: a stream that reads from the same transaction waits for ever, and so fails
   * with `TransactionBusy`. Fails with `SqlError`, whose cause is `CopyFailed` with line and column where the data was refused, and else
   * as that of a statement.
   *
   * @example
   * import { Effect, Stream } from "effect"
   * import { Database } from "effect-db"
   *
   * class Db extends Database.Service<Db>()("app") {}
   *
   * const rows = Stream.range(1, 1_000_000).pipe(Stream.map((id) => ({ id, title: `todo ${id}` })))
   *
   * export const load = Effect.flatMap(Db.writer, (sql) => sql.copyFrom("todo", ["id", "title"], rows))
   */
  readonly copyFrom: <E, R>(
    table: string,
    columns: ReadonlyArray<string>,
    rows: Stream.Stream<Row, E, R>,
    options?: Options
  ) => Effect.Effect<number, E | SqlError, R>
  /**
   * Gives the rows of a query as text in the format, in blocks of whole lines: in a savepoint of the transaction that is open, else in a
   * transaction of its own. It is read from the server as fast as the stream is consumed.
   *
   * COPY takes no parameters, so the values of the query are written into it, quoted. A stream that is not read to its end has the server
   * stop: one that does not come to its end soon is interrupted as a statement is, which undoes what its query has written.
   *
   * @example
   * import { createWriteStream } from "node:fs"
   * import { NodeSink } from "@effect/platform-node"
   * import { Effect, Stream } from "effect"
   * import { Database } from "effect-db"
   *
   * class Db extends Database.Service<Db>()("app") {}
   *
   * export const save = (file: string) =>
   *   Effect.flatMap(Db.reader, (sql) =>
   *     sql.copyTo(sql`SELECT id, title FROM todo WHERE NOT done`, { format: "csv", header: true }).pipe(
   *       Stream.run(NodeSink.fromWritable(() => createWriteStream(file), (cause) => cause))
   *     )
   *   )
   */
  readonly copyTo: (query: Fragment, options?: Options) => Stream.Stream<Uint8Array, SqlError>
}

/**
 * A client of `@effect/sql-pg`, with COPY.
 *
 * @since 0.2.0
 * @category models
 */
export interface Client extends PgClient, Copy {}
