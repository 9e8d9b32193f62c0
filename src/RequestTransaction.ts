/**
 * A unit of work for each HTTP request.
 *
 * @since 0.1.0
 */
import * as HttpApiMiddleware from "@effect/platform/HttpApiMiddleware"
import type * as HttpApp from "@effect/platform/HttpApp"
import type * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import type * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { type SqlClient, TransactionConnection } from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import type * as Schedule from "effect/Schedule"
import type { DatabaseError } from "./DatabaseError.js"
import { makeApiMiddleware } from "./internal/http/apiMiddleware.js"
import { makeMiddleware } from "./internal/http/middleware.js"
import { problemResponse } from "./internal/http/problemResponse.js"
import { makeSessionMiddleware } from "./internal/http/sessionMiddleware.js"
import type * as UnitOfWork from "./UnitOfWork.js"

/**
 * Data of a request, from which `sqlComment` makes the comments behind its statements.
 *
 * @see {@link LabelOptions}
 * @since 0.1.0
 * @category models
 */
export interface LabeledRequest {
  /** The method, such as `GET`. */
  readonly method: string
  /** The pattern of the route; the path if no router has matched yet. */
  readonly route: string
  /** The id of the request, by the option `requestId`. */
  readonly requestId: string | undefined
  /** The span around the first statement, in the format of W3C Trace Context. */
  readonly traceparent: string | undefined
}

/**
 * Options for the places where the label of a request appears.
 *
 * @see {@link Options} and {@link ApiOptions}, which extend it
 * @example
 * ```ts
 * import { RequestTransaction } from "effect-db"
 *
 * // the log of the server shows method and route behind each statement
 * export const labeled = RequestTransaction.middleware({ applicationName: true, sqlComment: "route" })
 * ```
 *
 * @since 0.1.0
 * @category models
 */
export interface LabelOptions {
  /**
   * Shows method and route in `pg_stat_activity`, as the `application_name` of a request's
   * transactions.
   *
   * @default false
   */
  readonly applicationName?: boolean | undefined
  /**
   * Writes a comment behind each statement, in the format of sqlcommenter: `"route"` for method and
   * route; `"trace"` for these, the id of the request and `traceparent`; or the fields that a
   * function returns. Statements with different comments each time are not kept prepared, so all but
   * `"route"` cost a parse for each statement.
   *
   * @default undefined (no comment)
   */
  readonly sqlComment?:
    | "route"
    | "trace"
    | ((request: LabeledRequest) => Readonly<Record<string, string | undefined>>)
    | undefined
}

/**
 * Class of a database that stores the keys of requests, with `outcome: "marker"`.
 *
 * @see {@link IdempotencyKey} for the option
 * @since 0.3.0
 * @category models
 */
export interface KeyDatabase<Db> extends UnitOfWork.Named, Effect.Effect<{ readonly writer: SqlClient }, never, Db> {}

/**
 * Options of the keys by which a client may send a request again without doing it twice.
 *
 * The key of a request that commits is stored in the database, in the exchange of COMMIT if the
 * unit has one transaction and no hook, else before the first COMMIT. A later request with the same
 * key does not run: its response is the kept one, or 409 if none was kept, or 422 if its content is
 * another one. If two requests with one key run at the same time, the second to commit is undone
 * and gets the response of the first, as does a second one that fails or rolls back by itself. A
 * request that rolls back leaves nothing, so the next one runs. A request whose key is not valid is
 * answered with 400. Keys are deleted after `outcomeRetention`.
 *
 * A kept response is sent before the code inside of the middleware runs, so requests have to be
 * authenticated outside of it. Work that `Db.commit` or `Db.independent` stores before the end of
 * the unit may be stored twice, and a read-only transaction stores no key.
 *
 * A key belongs to its method, path and scope, with any host. `GET`, `HEAD` and `OPTIONS`, requests without the
 * header, and those with the setting `"none"` run as usual. Effects of a handler outside of the
 * databases may happen twice.
 *
 * @see {@link Options} for the option `idempotencyKey`
 * @example
 * ```ts
 * import { Database, RequestTransaction } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const once = RequestTransaction.middleware({
 *   idempotencyKey: { database: Db, keepAnswer: true, scope: (request) => request.headers["x-user"] ?? "" }
 * })
 * ```
 *
 * @since 0.3.0
 * @category models
 */
export interface IdempotencyKey<Db, Request> {
  /** The class of the database that stores the keys. It needs `outcome: "marker"`. */
  readonly database: KeyDatabase<Db>
  /**
   * The name of the header with the key, of 1 to 255 printable characters.
   *
   * @default "idempotency-key"
   */
  readonly header?: string | undefined
  /**
   * Refuses a request without the header with 400.
   *
   * @default false
   */
  readonly required?: boolean | undefined
  /**
   * Returns the scope of a key, such as the verified user and the tenant, so that users with the same
   * key do not meet.
   *
   * @default one scope for all requests
   */
  readonly scope?: ((request: Request) => string) | undefined
  /**
   * Returns the content that requests with the same key must have in common, beside the query.
   *
   * @default the body, up to 1 MiB; of a request of Node the `body` that a parser has set. A longer
   * body, and one of unknown length or that other code has read before, is not compared.
   */
  readonly fingerprint?: ((request: Request) => string | Uint8Array) | undefined
  /**
   * Keeps the response, to send it again: its status, its body and the headers that describe the
   * body. A body that is longer than 64 KiB, or than `maxBytes`, or that is a stream, is not kept. The
   * repeated response has the header `idempotent-replayed: true`.
   *
   * @default false
   */
  readonly keepAnswer?: boolean | { readonly maxBytes: number } | undefined
}

/**
 * Options of {@link middleware}.
 *
 * @see {@link ApiOptions} for an `HttpApi`
 * @since 0.1.0
 * @category models
 */
export interface Options<Db = never>
  extends LabelOptions,
    Pick<UnitOfWork.Options<never, never>, "databases" | "order" | "checkFirst" | "atomic"> {
  /**
   * Decides by the response if the unit of work commits.
   *
   * @default a status below 400 commits, any other rolls back
   */
  readonly outcome?: ((response: HttpServerResponse.HttpServerResponse) => UnitOfWork.Outcome) | undefined
  /**
   * Makes the response that is sent if the commit has failed.
   *
   * @default commitFailed
   */
  readonly onCommitFailed?: ((error: DatabaseError) => HttpServerResponse.HttpServerResponse) | undefined
  /**
   * Settings for the transactions of a request, or `"none"` for a request without a unit of work,
   * in which each statement is an autocommit statement. A part of a request may require other
   * settings by `UnitOfWork.run(settings)` around its handler, before its first statement.
   *
   * @default the settings of the database and of the server
   */
  readonly transaction?:
    | ((request: HttpServerRequest.HttpServerRequest) => UnitOfWork.UnitSettings | "none")
    | UnitOfWork.UnitSettings
    | undefined
  /**
   * Answers the request again, from its start and in a unit of work of its own, if the first
   * attempt is certainly undone and another may succeed: after a serialization failure, a deadlock
   * or a lost connection. `true` follows the `RetryPolicy`. The failures of the request's
   * statements decide, also if the handler has converted them into an error of its own, a defect or
   * a response. Effects of the handler outside of the databases are repeated.
   *
   * The body is read first and kept, up to 1 MiB; a request with a longer body, or with a body of
   * unknown length, is answered once. Retries work only if the middleware is around handlers: around
   * a whole server the response is sent inside of the middleware.
   *
   * @default false
   */
  readonly retry?: boolean | Schedule.Schedule<unknown, DatabaseError> | undefined
  /**
   * Returns the id of a request, for its label and its comments. Only short printable ids are used.
   *
   * @default the header `x-request-id`
   */
  readonly requestId?: ((request: HttpServerRequest.HttpServerRequest) => string | undefined) | undefined
  /**
   * Stores the key in a header of the request with its work, so that the client may send the
   * request again without doing it twice. Inside of another unit of work, a request with a key is
   * refused with `OptionsConflict`.
   *
   * @default undefined (off)
   */
  readonly idempotencyKey?: IdempotencyKey<Db, HttpServerRequest.HttpServerRequest> | undefined
}

/**
 * Returns the settings of read-only transactions for requests that must not change anything: `GET`
 * and `HEAD`.
 *
 * It is a value for the option `transaction`. Other requests have the settings of the database.
 *
 * @example
 * ```ts
 * import { RequestTransaction } from "effect-db"
 *
 * export const safe = RequestTransaction.middleware({ transaction: RequestTransaction.readOnlyWhenSafe })
 * ```
 *
 * @see {@link Options}
 * @since 0.1.0
 * @category settings
 */
export const readOnlyWhenSafe = ({ method }: HttpServerRequest.HttpServerRequest): UnitOfWork.UnitSettings =>
  method === "GET" || method === "HEAD" ? readOnly : serverDefaults

const readOnly: UnitOfWork.UnitSettings = { access: "read only" }
const serverDefaults: UnitOfWork.UnitSettings = {}

/**
 * Makes the response to a request after its commit has failed.
 *
 * The status is 409 if the client may send the request again, 503 if the database was lost, is
 * unavailable or too busy, else 500; the body is problem details by RFC 9457
 * (`application/problem+json`). The message of the database is logged and not sent.
 *
 * @example
 * ```ts
 * import { HttpServerResponse } from "@effect/platform"
 * import { RequestTransaction } from "effect-db"
 *
 * export const withHeader = RequestTransaction.middleware({
 *   onCommitFailed: (error) =>
 *     HttpServerResponse.setHeader(RequestTransaction.commitFailed(error), "retry-after", "1")
 * })
 * ```
 *
 * @see {@link Options} for another response
 * @since 0.1.0
 * @category responses
 */
export const commitFailed = (error: DatabaseError): HttpServerResponse.HttpServerResponse => problemResponse(error)

/**
 * Runs each request as one unit of work: one lazy transaction for each database that it uses.
 *
 * A response with a status below 400 commits; 400 and above, a failure, a defect and an interruption
 * roll back. The response is sent after the commit, never before, and a failed commit replaces it by
 * the response of `onCommitFailed`. A streaming body runs after the commit, outside of the unit.
 *
 * The middleware may be around the handlers of a router, or around the whole server. Inside of
 * another unit of work it joins, and passes its options to that unit, as `UnitOfWork.run` does. If
 * the unit cannot take an option, the handler does not run, and the response is that of
 * `onCommitFailed` for `OptionsConflict`. With the setting `"none"` the request runs outside of all
 * units around it.
 *
 * Throws `ConfigInvalid` if an option is invalid.
 *
 * @example
 * ```ts
 * import { HttpRouter, HttpServerResponse } from "@effect/platform"
 * import { Effect } from "effect"
 * import { Database, RequestTransaction } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const router = HttpRouter.empty.pipe(
 *   HttpRouter.post(
 *     "/todos",
 *     Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO todo (title) VALUES ('milk')`).pipe(
 *       Effect.as(HttpServerResponse.empty({ status: 201 }))
 *     )
 *   ),
 *   HttpRouter.use(RequestTransaction.middleware({ transaction: RequestTransaction.readOnlyWhenSafe, retry: true }))
 * )
 * ```
 *
 * @see {@link Api} for an `HttpApi`
 * @see {@link readYourWrites} for reads of later requests
 * @since 0.1.0
 * @category middleware
 */
export const middleware = <Db = never>(
  options: Options<Db> = {}
): (<E, R>(app: HttpApp.Default<E, R>) => HttpApp.Default<E, R | Db>) => makeMiddleware(options)

/**
 * Middleware of an `HttpApi`, or of some of its groups or endpoints, that runs each request as one
 * unit of work.
 *
 * The response that encodes the success or failure of the handler decides the outcome.
 * {@link layerApi} provides the middleware.
 *
 * @example
 * ```ts
 * import { HttpApiEndpoint, HttpApiGroup } from "@effect/platform"
 * import { RequestTransaction } from "effect-db"
 *
 * export const todos = HttpApiGroup.make("todos")
 *   .add(HttpApiEndpoint.post("create", "/todos"))
 *   .middleware(RequestTransaction.Api)
 * ```
 *
 * @see {@link middleware} for a router
 * @since 0.1.0
 * @category middleware
 */
export class Api extends HttpApiMiddleware.Tag<Api>()("effect-db/RequestTransaction/Api", {
  provides: TransactionConnection
}) {}

/**
 * Options of {@link layerApi}.
 *
 * Leave out the middleware for an endpoint without a unit of work.
 *
 * @see {@link Options} for a router
 * @since 0.1.0
 * @category models
 */
export interface ApiOptions<Db = never> extends Omit<Options<Db>, "transaction"> {
  /**
   * Settings for the transactions of a request.
   *
   * @default the settings of the database and of the server
   */
  readonly transaction?:
    | ((request: HttpServerRequest.HttpServerRequest) => UnitOfWork.UnitSettings)
    | UnitOfWork.UnitSettings
    | undefined
}

/**
 * Provides {@link Api}.
 *
 * Inside of another unit of work it joins, as {@link middleware} does, and the request ends with
 * that unit: an `outcome` of its own is refused there with `OptionsConflict`.
 *
 * With `retry`, a request is answered once if its handler adds a pre-response handler, as
 * `HttpApiBuilder.securitySetCookie` does. The server logs the defect of a handler also if another
 * attempt has answered.
 *
 * Throws `ConfigInvalid` if an option is invalid.
 *
 * @example
 * ```ts
 * import { RequestTransaction } from "effect-db"
 *
 * export const ApiTransactionsLive = RequestTransaction.layerApi({
 *   transaction: RequestTransaction.readOnlyWhenSafe,
 *   retry: true
 * })
 * ```
 *
 * @see {@link middleware} for a router
 * @since 0.1.0
 * @category layers
 */
export const layerApi = <Db = never>(options: ApiOptions<Db> = {}): Layer.Layer<Api, never, Db> => {
  const { idempotencyKey } = options
  return idempotencyKey === undefined
    ? Layer.succeed(Api, makeApiMiddleware(options, Context.empty()))
    : Layer.effect(
        Api,
        Effect.map(Effect.context<Db>(), (services) => makeApiMiddleware(options, services))
      )
}

interface SessionOptions {
  /**
   * The secret that signs the tokens, so that a client cannot forge them: at least 32 characters,
   * the same in all processes. If there are several, the first one signs and all are accepted, so
   * that a secret can be replaced.
   */
  readonly secret: Redacted.Redacted<string> | readonly [Redacted.Redacted<string>, ...Array<Redacted.Redacted<string>>]
  /**
   * The time that a read waits for a replica that is behind, before it goes to the primary. A
   * replica that does not answer is given up after one second, or after this time if it is longer.
   * A plain number is in milliseconds.
   *
   * @default "50 millis"
   */
  readonly maxWait?: Duration.DurationInput | undefined
}

interface CookieOptions {
  /**
   * The name of the cookie.
   *
   * @default "effect-db"
   */
  readonly cookie?: string | undefined
  /**
   * Sends the cookie over TLS only. The cookie holds no secret.
   *
   * @default false
   */
  readonly secure?: boolean | undefined
  /**
   * Absent: tokens are in the cookie.
   *
   * @default undefined
   */
  readonly header?: undefined
}

interface HeaderOptions {
  /**
   * The name of a header in place of the cookie, for clients without cookies: each request repeats
   * the value of the last response that has the header.
   */
  readonly header: string
  /**
   * Absent: tokens are in the header.
   *
   * @default undefined
   */
  readonly cookie?: undefined
  /**
   * Absent: it belongs to a cookie.
   *
   * @default undefined
   */
  readonly secure?: undefined
}

/**
 * Options of {@link readYourWrites}: a secret, and a cookie or a header.
 *
 * @see {@link readYourWrites} for an example
 * @since 0.1.0
 * @category models
 */
export type ReadYourWrites = SessionOptions & (CookieOptions | HeaderOptions)

/**
 * Lets a client read its own writes in later requests, from a replica that has them.
 *
 * The response to a request that writes has a signed cookie or header with the positions of the
 * databases after the client's writes. If the next request sends it back, its reads see the data at
 * these positions or later ones. The middleware may be inside or outside of the unit of work; reads
 * use `Db.reader` as usual. A value without a valid signature is ignored. A cookie holds one
 * position for each database: if a client writes by several requests at the same time, the last
 * response counts.
 *
 * Throws `ConfigInvalid` if an option is invalid.
 *
 * @example
 * ```ts
 * import { HttpServer } from "@effect/platform"
 * import { Config, Effect, Layer } from "effect"
 * import { RequestTransaction } from "effect-db"
 *
 * declare const router: Parameters<typeof HttpServer.serve>[0]
 *
 * export const HttpLive = Layer.unwrapEffect(
 *   Effect.map(Config.redacted("COOKIE_SECRET"), (secret) =>
 *     HttpServer.serve(router, RequestTransaction.readYourWrites({ secret }))
 *   )
 * )
 * ```
 *
 * @see `Consistency.Session` for work other than requests
 * @since 0.1.0
 * @category middleware
 */
export const readYourWrites = (
  options: ReadYourWrites
): (<E, R>(app: HttpApp.Default<E, R>) => HttpApp.Default<E, R>) => makeSessionMiddleware(options)
