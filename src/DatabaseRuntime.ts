/**
 * Databases for code without Effect: the program opens and closes them, uses them with promises, and
 * runs each request as one unit of work.
 *
 * In every function that runs code, the code is the first argument, and settings follow.
 *
 * @since 0.1.0
 */
import type { IncomingMessage, ServerResponse } from "node:http"
import type { Http2ServerRequest, Http2ServerResponse } from "node:http2"
import type * as Statement from "@effect/sql/Statement"
import type * as Effect from "effect/Effect"
import { globalValue } from "effect/GlobalValue"
import type * as Layer from "effect/Layer"
import type { Consistency, Session } from "./Consistency.js"
import type * as Copy from "./Copy.js"
import type * as Database from "./Database.js"
import { makeRuntime } from "./internal/runtime/databaseRuntime.js"
import type { IdempotencyKey, LabelOptions, ReadYourWrites } from "./RequestTransaction.js"
import type * as Tenant from "./Tenant.js"
import type * as Transaction from "./Transaction.js"
import type * as UnitOfWork from "./UnitOfWork.js"

/**
 * Options of {@link DatabaseRuntime.middleware}.
 *
 * @see {@link HandlerOptions} for web requests
 * @since 0.1.0
 * @category models
 */
export interface NodeOptions
  extends LabelOptions,
    Pick<UnitOfWork.Options<never, never>, "databases" | "order" | "checkFirst" | "atomic"> {
  /**
   * Decides by the status of the response if the unit of work commits.
   *
   * @default a status below 400 commits, any other rolls back
   */
  readonly outcome?: ((status: number) => UnitOfWork.Outcome) | undefined
  /**
   * Settings for the transactions of a request, or `"none"` for a request without a unit of work.
   *
   * @default the settings of the database and of the server
   */
  readonly transaction?:
    | ((request: IncomingMessage) => UnitOfWork.UnitSettings | "none")
    | UnitOfWork.UnitSettings
    | undefined
  /**
   * Lets a client read its own writes in later requests, from a replica that has them. See
   * `RequestTransaction.readYourWrites`.
   *
   * @default undefined (off)
   */
  readonly readYourWrites?: ReadYourWrites | undefined
  /**
   * Stores the key in a header of the request with its work, so that the client may send the
   * request again without doing it twice. The database must be one of those that `make` has
   * received. See `RequestTransaction.IdempotencyKey`.
   *
   * @default undefined (off)
   */
  readonly idempotencyKey?: IdempotencyKey<unknown, IncomingMessage> | undefined
}

/**
 * Options of {@link DatabaseRuntime.handler}.
 *
 * @see {@link NodeOptions} for requests of Node
 * @since 0.1.0
 * @category models
 */
export interface HandlerOptions
  extends LabelOptions,
    Pick<UnitOfWork.Options<never, never>, "databases" | "order" | "checkFirst" | "atomic"> {
  /**
   * Decides by the response if the unit of work commits.
   *
   * @default a status below 400 commits, any other rolls back
   */
  readonly outcome?: ((response: Response) => UnitOfWork.Outcome) | undefined
  /**
   * Settings for the transactions of a request, or `"none"` for a request without a unit of work.
   *
   * @default the settings of the database and of the server
   */
  readonly transaction?: ((request: Request) => UnitOfWork.UnitSettings | "none") | UnitOfWork.UnitSettings | undefined
  /**
   * Lets a client read its own writes in later requests, from a replica that has them. If handlers
   * are nested, the outermost one has this option. If the handler throws, its client gets no
   * tokens. See `RequestTransaction.readYourWrites`.
   *
   * @default undefined (off)
   */
  readonly readYourWrites?: ReadYourWrites | undefined
  /**
   * The pattern of the route, for the label of the request.
   *
   * @default the path
   */
  readonly route?: string | undefined
  /**
   * Calls the handler again, with the same request, if the handler has thrown or its work could not
   * be committed, and another attempt may succeed. There is only one attempt if the body of the
   * request is longer than 1 MiB, of unknown length, or read already.
   *
   * @default false
   */
  readonly retry?: UnitOfWork.Options<never, never>["retry"]
  /**
   * Stores the key in a header of the request with its work, so that the client may send the
   * request again without doing it twice. The database must be one of those that `make` has
   * received. See `RequestTransaction.IdempotencyKey`.
   *
   * @default undefined (off)
   */
  readonly idempotencyKey?: IdempotencyKey<unknown, Request> | undefined
}

/**
 * Statement that runs once, when it is awaited, or that is a part of another statement.
 *
 * It rejects with a `DatabaseError`.
 *
 * @see {@link PromiseClient} for the functions that make it
 * @since 0.1.0
 * @category models
 */
export interface PromiseQuery<A> extends PromiseLike<ReadonlyArray<A>>, Statement.Fragment {
  /** Runs the statement and passes its rows or its failure on. */
  readonly then: <B = ReadonlyArray<A>, C = never>(
    onRows?: ((rows: ReadonlyArray<A>) => B | PromiseLike<B>) | null | undefined,
    onFailure?: ((error: unknown) => C | PromiseLike<C>) | null | undefined
  ) => Promise<B | C>
  /** Runs the statement and handles its failure. */
  readonly catch: <C = never>(
    onFailure?: ((error: unknown) => C | PromiseLike<C>) | null | undefined
  ) => Promise<ReadonlyArray<A> | C>
  /** Runs the statement and calls a function at its end. */
  readonly finally: (onEnd?: (() => void) | null | undefined) => Promise<ReadonlyArray<A>>
  /** Runs the statement and returns its rows as arrays. */
  readonly values: () => Promise<ReadonlyArray<ReadonlyArray<unknown>>>
  /**
   * Runs the statement and reads its rows batch by batch. An early end of the loop ends the
   * statement.
   */
  readonly stream: () => AsyncIterable<A>
}

/** Options of a COPY, with `onProgress` as plain code. */
interface CopyOptions extends Omit<Copy.Options, "onProgress"> {
  /**
   * Function that is called, and awaited, after each block of about 64 kB.
   *
   * @default undefined (no function)
   */
  readonly onProgress?: ((progress: Copy.Progress) => unknown) | undefined
}

/**
 * Client of a database, with statements that run when they are awaited.
 *
 * @example
 * ```ts
 * import type { DatabaseRuntime } from "effect-db"
 *
 * declare const sql: DatabaseRuntime.PromiseClient
 *
 * export const find = async (done: boolean) => {
 *   const rows = await sql<{ id: number }>`SELECT id FROM todo WHERE ${sql.and([sql`done = ${done}`, "id > 0"])}`
 *   return rows.map(({ id }) => id)
 * }
 * ```
 *
 * @see {@link PromiseDatabase}
 * @since 0.1.0
 * @category models
 */
export interface PromiseClient
  extends Pick<
    Statement.Constructor,
    "insert" | "update" | "updateValues" | "in" | "and" | "or" | "csv" | "join" | "literal"
  > {
  /** Quotes an identifier. */
  (name: string): Statement.Identifier
  /** Makes a statement; its values are parameters. */
  <A extends object = Record<string, unknown>>(
    strings: TemplateStringsArray,
    ...values: ReadonlyArray<unknown>
  ): PromiseQuery<A>
  /** Makes a statement of a text with its parameters. */
  readonly query: <A extends object = Record<string, unknown>>(
    text: string,
    parameters?: ReadonlyArray<unknown> | undefined
  ) => PromiseQuery<A>
  /** Makes a parameter that is sent as JSON. */
  readonly json: Copy.Client["json"]
  /**
   * Stores rows in a table, all or none, and returns their number. If the iterable of the rows
   * throws, nothing is stored.
   */
  readonly copyFrom: (
    table: string,
    columns: ReadonlyArray<string>,
    rows: AsyncIterable<Copy.Row> | Iterable<Copy.Row>,
    options?: CopyOptions
  ) => Promise<number>
  /**
   * Returns the rows of a query as text in the format, in blocks of whole lines. An early end of the
   * loop ends the query.
   */
  readonly copyTo: (query: Statement.Fragment, options?: CopyOptions) => AsyncIterable<Uint8Array>
}

/**
 * Named database with promises in place of effects. They reject with a `DatabaseError`, or with the
 * exception of the code inside.
 *
 * The code is the first argument of every function, as in the data-first form of Effect's functions.
 *
 * @example
 * ```ts
 * import { Consistency, type DatabaseRuntime } from "effect-db"
 *
 * declare const db: DatabaseRuntime.PromiseDatabase
 *
 * export const count = () => db.withConsistency(() => db.reader`SELECT count(*) FROM todo`, Consistency.Strong())
 * ```
 *
 * @see `Database.Members` for the same in Effect
 * @since 0.1.0
 * @category models
 */
export interface PromiseDatabase {
  /** The client of the primary. */
  readonly writer: PromiseClient
  /**
   * The client of a replica, or of the primary if no replica can serve the read. It is read-only.
   */
  readonly reader: PromiseClient
  /** The client for reads in an open transaction, if there is one, else the same as `reader`. */
  readonly any: PromiseClient
  /** Runs plain code in a transaction. */
  readonly withTransaction: <A>(code: () => PromiseLike<A> | A, options?: Transaction.Options) => Promise<A>
  /** Runs plain code with a consistency of its reads. */
  readonly withConsistency: <A>(code: () => PromiseLike<A> | A, consistency: Consistency) => Promise<A>
  /**
   * Calls plain code. Unqualified names in its statements on this database are looked up in one
   * schema, or in several. The schema of a tenant (`withTenant` of the runtime) takes precedence.
   */
  readonly withSchema: <A>(code: () => A, schema: Tenant.Schema) => A
  /** Runs plain code outside of every transaction of this database. */
  readonly independent: <A>(code: () => PromiseLike<A> | A) => Promise<A>
  /** Runs a hook before COMMIT, inside of the transaction. An exception of the hook rolls back. */
  readonly beforeCommit: (hook: () => PromiseLike<unknown> | unknown) => Promise<void>
  /** Runs a hook after COMMIT, outside of the transaction. */
  readonly afterCommit: (hook: () => PromiseLike<unknown> | unknown) => Promise<void>
  /** Runs a hook after a rollback, outside of the transaction. */
  readonly afterRollback: (hook: () => PromiseLike<unknown> | unknown) => Promise<void>
  /** Runs a hook after a COMMIT without an answer, outside of the transaction. */
  readonly afterUnknown: (hook: () => PromiseLike<unknown> | unknown) => Promise<void>
  /** Commits the work of the unit on this database so far. */
  readonly commit: () => Promise<void>
  /** Rolls back the work of the unit on this database so far. */
  readonly rollback: () => Promise<void>
  /** Sends a message (NOTIFY). In a transaction, the message is delivered after COMMIT. */
  readonly notify: (channel: string, payload?: string) => Promise<void>
  /** Returns the figures of this moment. */
  readonly status: () => Promise<Database.Status>
}

/**
 * Named databases of a runtime, by the names that the program uses for them.
 *
 * @see {@link make}, which takes them
 * @since 0.1.0
 * @category models
 */
export interface Databases<R> {
  readonly [name: string]: UnitOfWork.Named & Omit<Database.Members<R>, "layer" | "layerConfig" | "layerEnv">
}

/**
 * Options of {@link make}.
 *
 * @see {@link make}, which takes them
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /**
   * Opens the databases once, at their first use, which does not count as a call of `open`. The
   * option is for programs without a start and an end, such as functions and page handlers. Without
   * it, a use before {@link DatabaseRuntime.open} rejects with `DatabaseClosed`.
   *
   * @default false
   */
  readonly lazy?: boolean | undefined
}

/**
 * Options of {@link DatabaseRuntime.unitOfWork}.
 *
 * @see {@link NestedOptions} for a part of a unit
 * @see `UnitOfWork.Options` for the same in Effect
 * @since 0.1.0
 * @category models
 */
export interface UnitOptions<A> extends UnitOfWork.Options<A, unknown> {
  /**
   * Ends the unit when it aborts: statements in progress are cancelled, and all work is rolled back.
   *
   * @default undefined (no signal)
   */
  readonly signal?: AbortSignal | undefined
}

/**
 * Options of {@link DatabaseRuntime.nested}.
 *
 * @see {@link UnitOptions} for a unit
 * @see `UnitOfWork.NestedOptions` for the same in Effect
 * @since 0.2.0
 * @category models
 */
export interface NestedOptions<A> extends UnitOfWork.NestedOptions<A, unknown> {
  /**
   * Ends the part when it aborts: statements in progress are cancelled, and the part is rolled back.
   *
   * @default undefined (no signal)
   */
  readonly signal?: AbortSignal | undefined
}

/**
 * Runtime of named databases.
 *
 * `D` are the databases, `R` is all that its layer provides. Promises reject with the failure itself:
 * a `DatabaseError`, or the exception of the program's own code.
 *
 * @see {@link make}
 * @since 0.1.0
 * @category models
 */
export interface DatabaseRuntime<D, R> extends AsyncDisposable {
  /** The named databases, as promises. */
  readonly databases: { readonly [K in keyof D]: PromiseDatabase }
  /**
   * Opens the databases and counts the calls: the databases are closed when `close` has been called
   * as often as `open`. If one database cannot be opened, the others are closed, and all waiting calls
   * reject with the first failure and do not count. A later call tries again. Further failures are
   * logged.
   */
  readonly open: () => Promise<void>
  /** Ends one `open`. The last call drains the databases and closes them. */
  readonly close: () => Promise<void>
  /**
   * Runs an effect as a part of the unit of work or transaction of the calling code. The promise
   * rejects with the failure or defect of the effect, and for a `SqlError` with its
   * `DatabaseError`, as an awaited statement does.
   */
  readonly runPromise: <A, E>(
    self: Effect.Effect<A, E, R>,
    options?: { readonly signal?: AbortSignal | undefined }
  ) => Promise<A>
  /**
   * Runs plain code as one unit of work: its awaited statements, and the effects that it runs by
   * `runPromise`, share one lazy transaction for each database. All commit when the code is done, or
   * all roll back when it throws. Inside of another unit of work it joins. See `UnitOfWork.run`.
   */
  readonly unitOfWork: <A>(code: () => PromiseLike<A> | A, options?: UnitOptions<A>) => Promise<A>
  /**
   * Runs plain code as a part of a unit of work or a transaction that can fail alone: if it throws,
   * its work is undone on every database, and the unit or transaction may go on. See
   * `UnitOfWork.nested`.
   */
  readonly nested: <A>(code: () => PromiseLike<A> | A, options?: NestedOptions<A>) => Promise<A>
  /**
   * Calls plain code outside of the unit of work or transaction of its caller, for work that outlives
   * the unit, such as background work of a request. A `unitOfWork` in the code is a new unit. The
   * tenant and the schemas stay the same.
   */
  readonly outside: <A>(code: () => A) => A
  /**
   * Runs plain code in a causal session: its reads see the earlier writes of the session, on any
   * server. See `Consistency.withSession`.
   */
  readonly withSession: <A>(code: () => PromiseLike<A> | A, session: Session) => Promise<A>
  /**
   * Calls plain code as the work of one tenant: unqualified names in its statements, on all
   * databases or on those in `databases`, are looked up in this schema. This includes asynchronous
   * statements after the code has returned, so a middleware may call `next` in the code. See
   * `Tenant.withTenant`.
   */
  readonly withTenant: <A>(code: () => A, schema: Tenant.Schema, options?: Tenant.Options) => A
  /**
   * Makes a middleware for Express, Connect, or the raw request and reply of a hook of Fastify,
   * with HTTP/1 and HTTP/2. The middleware and the handler after it run in one unit of work.
   *
   * The response is held back until the handler ends it. It is sent after the commit, or replaced by
   * an error response if the request could not be stored. Until then the response appears to the
   * handler as sent, but headers may still be set. The first answer is sent, and its status decides
   * about the commit; a second answer, or an error after the first, has no effect. Direct writes to
   * the socket or stream of the response are not held back. A streamed body is sent after the commit
   * and uses databases by `independent`. If the client disconnects, statements in progress are
   * cancelled, and all is rolled back. Put body parsers before the middleware.
   *
   * Throws `ConfigInvalid` if an option is invalid.
   */
  readonly middleware: (
    options?: NodeOptions
  ) => (
    request: IncomingMessage | Http2ServerRequest,
    response: ServerResponse | Http2ServerResponse,
    next: (error?: Error) => void
  ) => void
  /**
   * Makes a handler of web requests, for Hono, Next.js and others, that runs as one unit of work.
   *
   * If the request could not be stored, an error response replaces the response of the handler, whose
   * body is cancelled. If the databases could not be opened, an error response is sent and the
   * handler is not called. An exception of the handler is thrown. A streamed body is read after the
   * commit and uses databases by `independent`.
   *
   * Throws `ConfigInvalid` if an option is invalid.
   */
  readonly handler: <Rest extends ReadonlyArray<unknown>>(
    handle: (request: Request, ...rest: Rest) => PromiseLike<Response> | Response,
    options?: HandlerOptions
  ) => (request: Request, ...rest: Rest) => Promise<Response>
}

/**
 * Makes a runtime of the layer that opens the databases.
 *
 * Nothing is opened before `open`, or with `lazy` before the first use. If the layer fails, `open` or
 * the first use rejects with its failure.
 *
 * Throws `ConfigInvalid` if an option is invalid.
 *
 * @example
 * ```ts
 * import { Config, Effect, Layer } from "effect"
 * import { Database, DatabaseRuntime } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 * class Audit extends Database.Service<Audit>()("audit") {}
 *
 * const DbLive = Layer.mergeAll(
 *   Db.layerConfig({ writer: Config.redacted("DATABASE_URL") }),
 *   Audit.layerConfig({ writer: Config.redacted("AUDIT_DATABASE_URL") })
 * )
 *
 * export const runtime = DatabaseRuntime.make({ db: Db, audit: Audit }, DbLive)
 * const { audit, db } = runtime.databases
 *
 * export const add = (title: string) =>
 *   runtime.unitOfWork(async () => {
 *     await db.writer`INSERT INTO todo ${db.writer.insert({ title })}`
 *     await audit.writer`INSERT INTO event ${audit.writer.insert({ what: "todo.added" })}`
 *     // the same transaction
 *     return runtime.runPromise(Effect.flatMap(Db.writer, (sql) => sql`SELECT count(*) FROM todo`))
 *   })
 * ```
 *
 * @see {@link shared} for modules that are loaded several times
 * @since 0.1.0
 * @category constructors
 */
export const make = <R, E, const D extends Databases<R>>(
  databases: D,
  layer: Layer.Layer<R, E>,
  options: Options = {}
): DatabaseRuntime<D, R> => makeRuntime(databases, layer, options)

/**
 * Returns the value of a key in this process; the first call makes it.
 *
 * If a development server loads a module again, the module gets the same value, with its
 * connections.
 *
 * @example
 * ```ts
 * import { Layer } from "effect"
 * import { Database, DatabaseRuntime } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * declare const DbLive: Layer.Layer<Db>
 *
 * export const runtime = DatabaseRuntime.shared("app", () => DatabaseRuntime.make({ db: Db }, DbLive, { lazy: true }))
 * ```
 *
 * @see {@link Options} for `lazy`, which opens the databases at their first use
 * @since 0.1.0
 * @category constructors
 */
export const shared = <A>(key: string, make: () => A): A => globalValue(`effect-db/DatabaseRuntime/${key}`, make)
