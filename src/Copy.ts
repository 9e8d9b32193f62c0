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
 * Format of the data. An option that is left out has PostgreSQL's default for the format.
 *
 * @see {@link Options}, which extends it
 * @see {@link https://www.postgresql.org/docs/current/sql-copy.html} for the formats
 * @since 0.2.0
 * @category models
 */
export interface Format {
  /**
   * The format of the lines. A byte order mark at the beginning of CSV in UTF-8, as spreadsheets
   * write it, is removed.
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
   * True if the first line has the names of the columns; with `"match"` the server compares them
   * (PostgreSQL 15, COPY FROM only).
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
   * The encoding of bytes, by its name in PostgreSQL. Rows and texts are always UTF-8.
   *
   * @default "UTF8"
   */
  readonly encoding?: string | undefined
}

/**
 * Progress of a COPY.
 *
 * @see {@link Options} for `onProgress`, which receives it
 * @since 0.2.0
 * @category models
 */
export interface Progress {
  /** The number of bytes sent or received. */
  readonly bytes: number
  /**
   * The number of rows sent. It is 0 for COPY TO, and for data that is sent as text or bytes, in
   * which rows are not counted.
   */
  readonly rows: number
}

/**
 * Options of a COPY.
 *
 * @see {@link Copy} for the members that take them
 * @since 0.2.0
 * @category models
 */
export interface Options extends Format {
  /**
   * The server's time limit for the whole COPY, including the time in which the program produces or
   * reads the rows. After it the COPY fails with `StatementTimeout`. A plain number is in
   * milliseconds, and zero means no limit.
   *
   * @default the database's `statementTimeout`
   */
  readonly statementTimeout?: Duration.DurationInput | undefined
  /**
   * Effect that runs after each block of about 64 kB. The COPY continues when the effect has ended.
   *
   * @default undefined (no effect)
   */
  readonly onProgress?: ((progress: Progress) => Effect.Effect<unknown>) | undefined
}

/**
 * Row to store, with its values in the order of the columns or by the names of the columns; or a
 * piece of text or bytes in the format, which may end in the middle of a row.
 *
 * @see {@link Copy} for `copyFrom`, which stores them
 * @since 0.2.0
 * @category models
 */
export type Row = ReadonlyArray<unknown> | Readonly<Record<string, unknown>> | string | Uint8Array

/**
 * Members of a client for COPY.
 *
 * @see {@link Client}, which has them
 * @see `DatabaseRuntime.PromiseClient` for the same as promises
 * @since 0.2.0
 * @category models
 */
export interface Copy {
  /**
   * Stores rows in a table, all or none, and returns their number. This runs in a savepoint of the
   * open transaction, or else in a transaction of its own. The stream is read as fast as the server
   * accepts the rows. If the stream fails, or the COPY is interrupted, nothing is stored.
   *
   * Values are written like parameters: `null` and `undefined` as NULL; dates, arrays, bytes and JSON
   * in the formats of PostgreSQL. An empty list of columns means all columns of the table, in their
   * order. A name with a dot is a schema and a table.
   *
   * While it runs, other statements of the transaction wait: a stream that reads from the same
   * transaction would wait for ever, so it fails with `TransactionBusy`. Fails with `SqlError`, whose
   * cause is `CopyFailed`, with line and column, if the server refuses the data, and otherwise the
   * same as for a statement.
   *
   * @example
   * ```ts
   * import { Effect, Stream } from "effect"
   * import { Database } from "effect-db"
   *
   * class Db extends Database.Service<Db>()("app") {}
   *
   * const rows = Stream.range(1, 1_000_000).pipe(Stream.map((id) => ({ id, title: `todo ${id}` })))
   *
   * export const load = Effect.flatMap(Db.writer, (sql) => sql.copyFrom("todo", ["id", "title"], rows))
   * ```
   */
  readonly copyFrom: <E, R>(
    table: string,
    columns: ReadonlyArray<string>,
    rows: Stream.Stream<Row, E, R>,
    options?: Options
  ) => Effect.Effect<number, E | SqlError, R>
  /**
   * Returns the rows of a query as text in the format, in blocks of whole lines. This runs in a
   * savepoint of the open transaction, or else in a transaction of its own. The rows are read from
   * the server as fast as the stream is consumed.
   *
   * COPY takes no parameters, so the values of the query are written into its text, quoted. If the
   * stream is not read to its end, and the rest does not arrive soon, the statement is interrupted,
   * which undoes the writes of its query. Fails with `SqlError`, as a statement does.
   *
   * @example
   * ```ts
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
   * ```
   */
  readonly copyTo: (query: Fragment, options?: Options) => Stream.Stream<Uint8Array, SqlError>
}

/**
 * Client of `@effect/sql-pg`, with COPY.
 *
 * @see `Database.Members` for `writer`, `reader` and `any`, which return it
 * @see `DatabaseConfig.DatabaseOptions` for the settings of its statements
 * @since 0.2.0
 * @category models
 */
export interface Client extends PgClient, Copy {}
