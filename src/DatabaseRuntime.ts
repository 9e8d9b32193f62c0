/**
 * Databases for code that is not Effect: opened and closed by hand, used by promises, shared by all that one request runs.
 *
 * @since 0.1.0
 */
import type { IncomingMessage, ServerResponse } from "node:http"
import type { Http2ServerRequest, Http2ServerResponse } from "node:http2"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { globalValue } from "effect/GlobalValue"
import type * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Stream from "effect/Stream"
import { type Session, withSession } from "./Consistency.js"
import { type ConfigInvalid, DatabaseClosed, isDatabaseError, refine } from "./DatabaseError.js"
import type { KnownNames } from "./internal/config/knownNames.js"
import { unknownOption } from "./internal/config/unknownOption.js"
import { problemOf } from "./internal/http/problemDetails.js"
import { SessionTokens } from "./internal/http/sessionCookie.js"
import { trace } from "./internal/observability/callSite.js"
import { onAbort } from "./internal/runtime/abortSignals.js"
import {
  ambientSignals,
  inAmbient,
  inAmbientStream,
  inPlainScopes,
  runOutside,
  runPlain
} from "./internal/runtime/asyncContext.js"
import { asError, inUnit, type NodeOptions, unknownOfNode } from "./internal/runtime/nodeMiddleware.js"
import { type DatabaseTag, makePromiseDatabase, type PromiseDatabase } from "./internal/runtime/promiseDatabase.js"
import type { PromiseClient, PromiseQuery } from "./internal/runtime/promiseQuery.js"
import { RefCounted } from "./internal/runtime/refCounted.js"
import {
  answerInSession,
  type HandlerOptions,
  refusalResponse,
  unknownOfHandler
} from "./internal/runtime/webHandler.js"
import { tenantChange } from "./internal/sql/schemaScopes.js"
import type * as Tenant from "./Tenant.js"
import * as UnitOfWork from "./UnitOfWork.js"

export type {
  /**
   * Options of {@link DatabaseRuntime.handler}.
   *
   * @since 0.1.0
   * @category models
   */
  HandlerOptions,
  /**
   * Options of {@link DatabaseRuntime.middleware}.
   *
   * @since 0.1.0
   * @category models
   */
  NodeOptions,
  /**
   * Makes statements that run when they are awaited.
   *
   * @since 0.1.0
   * @category models
   */
  PromiseClient,
  /**
   * A named database, as promises.
   *
   * @since 0.1.0
   * @category models
   */
  PromiseDatabase,
  /**
   * A statement that runs when it is awaited, or a part of another one.
   *
   * @since 0.1.0
   * @category models
   */
  PromiseQuery
}

/**
 * The named databases of a runtime, by the names that the program's code has for them.
 *
 * @since 0.1.0
 * @category models
 */
export interface Databases<R> {
  readonly [name: string]: UnitOfWork.Named & DatabaseTag<R>
}

/**
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /**
   * Opens the databases with their first use, once, without counting that as an `open`: for programs that have no start and no end, as functions
   * and page handlers have none. Default `false`: to use them before {@link DatabaseRuntime.open} is `DatabaseClosed`.
   */
  readonly lazy?: boolean | undefined
}

/**
 * Options of {@link DatabaseRuntime.unitOfWork}.
 *
 * @since 0.1.0
 * @category models
 */
export interface UnitOptions<A> extends UnitOfWork.Options<A, unknown> {
  /** Ends it: what is under way is cancelled, and everything rolled back. */
  readonly signal?: AbortSignal | undefined
}

/**
 * Options of {@link DatabaseRuntime.nested}.
 *
 * @since 0.2.0
 * @category models
 */
export interface NestedOptions<A> extends UnitOfWork.NestedOptions<A, unknown> {
  /** Ends it: what is under way is cancelled, and the part rolled back. */
  readonly signal?: AbortSignal | undefined
}

/**
 * Open databases, and how promises use them. `D` are the databases, `R` is all that its layer provides.
 *
 * Promises reject with what failed itself: a `DatabaseError`, or what the program's own code has thrown.
 *
 * @since 0.1.0
 * @category models
 */
export interface DatabaseRuntime<D, R> extends AsyncDisposable {
  /** Each named database, as promises. */
  readonly databases: { readonly [K in keyof D]: PromiseDatabase }
  /**
   * Opens the databases, all at once, and is counted: only as many calls of `close` close them. Where one cannot be opened the others are
   * closed, all who wait are told, none of them is counted, and it may be tried again. It rejects with the first failure; any other is
   * logged.
   */
  readonly open: () => Promise<void>
  /** Takes one `open` back; the last one drains the databases and closes them. */
  readonly close: () => Promise<void>
  /**
   * Runs an effect on them, as a part of the unit of work, or transaction, that the code around is run in. It rejects with what the effect
   * fails with or dies of, and with the `DatabaseError` where that is a `SqlError`, as a statement that is awaited does.
   */
  readonly runPromise: <A, E>(
    self: Effect.Effect<A, E, R>,
    options?: { readonly signal?: AbortSignal | undefined }
  ) => Promise<A>
  /**
   * Runs plain code as one unit of work: what it awaits here, and the effects that it runs by `runPromise`, share one lazy transaction per
   * database; all commit when it is done, or all roll back when it throws. Inside of another one it joins.
   */
  readonly unitOfWork: <A>(code: () => PromiseLike<A> | A, options?: UnitOptions<A>) => Promise<A>
  /**
   * Runs plain code as a part of a unit of work, or of a transaction, that fails alone: where it throws, what it has done is undone on every
   * database, and the whole may go on. See `UnitOfWork.nested`.
   */
  readonly nested: <A>(code: () => PromiseLike<A> | A, options?: NestedOptions<A>) => Promise<A>
  /**
   * Calls plain code outside of the unit of work, or transaction, that it is called in: for what is to outlive it, such as work that a
   * request leaves to be done in the background. A `unitOfWork` in it is one of its own. The tenant and the schemas stay as they are.
   */
  readonly outside: <A>(code: () => A) => A
  /** Runs plain code in a session: its reads see what was written in the session before, whoever serves them. */
  readonly withSession: <A>(session: Session, code: () => PromiseLike<A> | A) => Promise<A>
  /**
   * Calls plain code as the work of one tenant: the unqualified names of all statements in it, of every database or of those listed, are
   * looked up in this schema, also when it has returned already, so that a middleware may call `next` in it. See `Tenant.withTenant`.
   */
  readonly withTenant: <A>(schema: Tenant.Schema, code: () => A, options?: Tenant.Options) => A
  /**
   * A middleware for Express, Connect, or the raw request and reply of a hook of Fastify, of HTTP/1 and of HTTP/2: what comes after it is
   * one unit of work. The response is held back until its end: sent after the commit, or replaced by an error where nothing could be
   * stored. Until then it looks sent, but a header may still be set. The first answer is the one that is sent, and its status decides: a
   * second one, or an error after it, changes nothing. What is written past it, to its socket or stream, is not held. A body
   * that is streamed follows the commit: what it needs of the databases it takes by `independent`. A client that goes away ends what is
   * under way, and all is rolled back. It comes after what reads the body.
   */
  readonly middleware: (
    options?: NodeOptions
  ) => (
    request: IncomingMessage | Http2ServerRequest,
    response: ServerResponse | Http2ServerResponse,
    next: (error?: Error) => void
  ) => void
  /**
   * A handler of web requests, as Hono, Next.js and others have them, as one unit of work. Where it could not be stored, or the databases
   * could not be opened, another response is given in place of its own, whose headers are lost with it and whose body is cancelled; what
   * it throws itself is thrown. A body that is streamed is read after the commit: what it needs of the databases it takes by `independent`.
   */
  readonly handler: <Rest extends ReadonlyArray<unknown>>(
    handle: (request: Request, ...rest: Rest) => PromiseLike<Response> | Response,
    options?: HandlerOptions
  ) => (request: Request, ...rest: Rest) => Promise<Response>
}

const tokensOf = ({ readYourWrites }: Pick<NodeOptions, "readYourWrites">): SessionTokens | undefined =>
  readYourWrites === undefined ? undefined : new SessionTokens(readYourWrites)

const known: KnownNames<Options> = { lazy: true }

/** Throws the refusal of options that a program without types has mistyped. */
const refuseUnknown = (unknown: ConfigInvalid | undefined): void => {
  if (unknown !== undefined) throw unknown
}

const logFailure = (error: unknown) => Effect.logError(asError(error).message)

/** What failed, itself: not the machinery around it. */
const settle = <A, E>(exit: Exit.Exit<A, E>, signal: AbortSignal | undefined): A => {
  if (Exit.isSuccess(exit)) return exit.value
  throw signal?.aborted === true && Cause.isInterruptedOnly(exit.cause)
    ? signal.reason
    : withFrames(Cause.squash(exit.cause))
}

/** A failure of ours with the frames of the code that awaits it. */
const withFrames = (error: unknown): unknown => {
  if (isDatabaseError(error)) trace(error)
  return error
}

/**
 * Makes a runtime of the layer that opens the databases. Nothing is opened yet.
 *
 * @example
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
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = <R, E, const D extends Databases<R>>(
  databases: D,
  layer: Layer.Layer<R, E>,
  options: Options = {}
): DatabaseRuntime<D, R> => {
  refuseUnknown(unknownOption("", options, known))
  const names = Object.values(databases).map(({ databaseName }) => databaseName)
  const counted = new RefCounted(
    async () => {
      const managed = ManagedRuntime.make(layer)
      const exit = await Effect.runPromiseExit(managed.runtimeEffect)
      if (Exit.isSuccess(exit)) return managed
      await managed.dispose()
      // the first is what `open` rejects with
      await Effect.runPromise(Effect.forEach([...Cause.failures(exit.cause)].slice(1), logFailure))
      throw Cause.squash(exit.cause)
    },
    (managed) => managed.dispose()
  )
  const opened = (): Promise<ManagedRuntime.ManagedRuntime<R, E>> => {
    const known = counted.opened
    if (typeof known !== "string") return known
    if (known === "notYet" && options.lazy === true) return counted.use()
    const notYet = known === "notYet"
    return Promise.reject(new DatabaseClosed({ database: names.join(", "), server: "", notYet }))
  }
  const runPromise = async <A, E>(
    self: Effect.Effect<A, E, R>,
    given: { readonly signal?: AbortSignal | undefined } = {}
  ): Promise<A> => {
    const signals = ambientSignals(given.signal)
    const managed = counted.current ?? (await opened())
    const effect = inAmbient(self)
    if (signals.length === 0) return settle(await managed.runPromiseExit(effect), undefined)
    const { signal, stop } = onAbort(signals)
    try {
      return settle(await managed.runPromiseExit(effect, { signal }), signal)
    } finally {
      stop()
    }
  }
  const run = {
    promise: runPromise,
    iterable: <A, E>(self: Stream.Stream<A, E, R>) => {
      // where it is asked for, which need not be where it is read
      const stream = inAmbientStream(self)
      return (async function* () {
        const managed = counted.current ?? (await opened())
        try {
          yield* Stream.toAsyncIterableRuntime(stream, await managed.runtime())
        } catch (error) {
          throw withFrames(error)
        }
      })()
    }
  }
  const access = Object.fromEntries(
    Object.entries(databases).map(([name, tag]) => [name, makePromiseDatabase<R>(tag, run)])
  )
  return {
    // the names are those of the record that came in
    databases: access as { readonly [K in keyof D]: PromiseDatabase },
    open: async () => void (await counted.open()),
    close: () => counted.close(),
    [Symbol.asyncDispose]: () => counted.close(),
    // what plain code throws stays as it is; what an effect fails with is what `await db.writer` would reject with
    runPromise: (self, options) => runPromise(refine(self), options),
    unitOfWork: (code, { signal, ...options } = {}) => runPromise(UnitOfWork.run(runPlain(code), options), { signal }),
    nested: (code, { signal, ...options } = {}) => runPromise(UnitOfWork.nested(runPlain(code), options), { signal }),
    outside: runOutside,
    withTenant: (schema, code, options = {}) => inPlainScopes(tenantChange(schema, options.databases), code),
    withSession: (session, code) => runPromise(withSession(runPlain(code), session)),
    middleware: (options = {}) => {
      refuseUnknown(unknownOfNode(options))
      const tokens = tokensOf(options)
      return (request, response, next) =>
        void runPromise(
          // those of HTTP/2 have all that is used of the others
          inUnit(request as IncomingMessage, response as ServerResponse, next, options, tokens)
        ).catch((error) => next(asError(error)))
    },
    handler: (handle, options = {}) => {
      refuseUnknown(unknownOfHandler(options))
      const tokens = tokensOf(options)
      return (request, ...rest) => {
        const answer = answerInSession(request, (fresh) => handle(fresh, ...rest), options, tokens)
        return opened().then(
          () => runPromise(answer, { signal: request.signal }),
          // where it cannot be opened, the next request may find it open
          (error) => {
            if (!isDatabaseError(error)) throw error
            return Effect.runPromise(Effect.as(Effect.logError(error.message), refusalResponse(problemOf(error))))
          }
        )
      }
    }
  }
}

/**
 * The one value of a key in this process, made with its first use: modules that are loaded again, as development servers do, find it there,
 * with its connections.
 *
 * @example
 * import { Layer } from "effect"
 * import { Database, DatabaseRuntime } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * declare const DbLive: Layer.Layer<Db>
 *
 * export const runtime = DatabaseRuntime.shared("app", () => DatabaseRuntime.make({ db: Db }, DbLive, { lazy: true }))
 *
 * @since 0.1.0
 * @category constructors
 */
export const shared = <A>(key: string, make: () => A): A => globalValue(`effect-db/DatabaseRuntime/${key}`, make)
