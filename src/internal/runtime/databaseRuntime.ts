/**
 * A runtime for code with promises. It opens and closes the databases, and runs effects on them.
 */
import type { IncomingMessage, ServerResponse } from "node:http"
import type { Http2ServerRequest, Http2ServerResponse } from "node:http2"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Stream from "effect/Stream"
import { type Session, withSession } from "../../Consistency.js"
import { ConfigInvalid, DatabaseClosed, isDatabaseError, refine, toProblem } from "../../DatabaseError.js"
import type * as Tenant from "../../Tenant.js"
import * as UnitOfWork from "../../UnitOfWork.js"
import { aBoolean, invalidOption, type OptionRules } from "../config/callOptionRules.js"
import { invalidKeyOption } from "../http/idempotencyKey.js"
import { invalidRequestOption } from "../http/requestOptions.js"
import { SessionTokens } from "../http/sessionTokens.js"
import { trace } from "../observability/callSite.js"
import { tenantChange } from "../sql/schemaScopes.js"
import { onAbort } from "./abortSignals.js"
import { ambientSignals, inAmbient, inAmbientStream, inPlainScopes, runOutside, runPlain } from "./asyncContext.js"
import { asError, inUnit, type NodeRequestOptions, nodeOptions } from "./nodeMiddleware.js"
import { type DatabaseTag, makePromiseDatabase } from "./promiseDatabase.js"
import type { PlainKeyOptions } from "./promiseIdempotency.js"
import { RefCounted } from "./refCounted.js"
import { answerInSession, refusalResponse, type WebRequestOptions, webOptions } from "./webHandler.js"

/** Plain code that is a part of the work. */
type Code<A> = () => PromiseLike<A> | A

/** Signal that cancels a call. */
interface SignalOption {
  readonly signal?: AbortSignal | undefined
}

/** Makes the tokens of `readYourWrites`, if that is set. */
const tokensOf = ({ readYourWrites }: Pick<NodeRequestOptions, "readYourWrites">): SessionTokens | undefined =>
  readYourWrites === undefined ? undefined : new SessionTokens(readYourWrites)

/** Options of a runtime. */
interface RuntimeOptions {
  readonly lazy?: boolean | undefined
}

const optionRules: OptionRules<RuntimeOptions> = { lazy: aBoolean }

/** Throws the refusal of options, if there is one. */
const throwRefusal = (refusal: ConfigInvalid | undefined): void => {
  if (refusal !== undefined) throw refusal
}

/** Makes the refusal of a database that the runtime does not open. */
const foreignDatabase = ({ databaseName }: UnitOfWork.Named): ConfigInvalid =>
  new ConfigInvalid({
    database: databaseName,
    setting: "idempotencyKey.database",
    given: "a database that the runtime does not open",
    expected: "one of the databases of the runtime"
  })

const logFailure = (error: unknown) => Effect.logError(asError(error).message)

/**
 * Returns the value of an exit, or throws its failure without the cause around it. Throws the
 * reason of the signal if that has interrupted the effect.
 */
const settle = <A, E>(exit: Exit.Exit<A, E>, signal: AbortSignal | undefined): A => {
  if (Exit.isSuccess(exit)) return exit.value
  throw signal?.aborted === true && Cause.isInterruptedOnly(exit.cause)
    ? signal.reason
    : withFrames(Cause.squash(exit.cause))
}

/** Adds the stack frames of the awaiting code to an error of this library. */
const withFrames = (error: unknown): unknown => {
  if (isDatabaseError(error)) trace(error)
  return error
}

/**
 * Makes a runtime of the layer that opens the databases. They are opened by `open`, or by the first
 * use if the option `lazy` is true.
 */
export const makeRuntime = <R, E, const D extends { readonly [name: string]: UnitOfWork.Named & DatabaseTag<R> }>(
  databases: D,
  layer: Layer.Layer<R, E>,
  options: RuntimeOptions
) => {
  throwRefusal(invalidOption("", options, optionRules))
  const refusalOfKeys = (keys: PlainKeyOptions<never> | undefined): ConfigInvalid | undefined => {
    const invalid = invalidKeyOption(keys)
    if (invalid !== undefined || keys === undefined) return invalid
    const isOpened = Object.values<UnitOfWork.Named>(databases).includes(keys.database)
    return isOpened ? undefined : foreignDatabase(keys.database)
  }
  const names = Object.values(databases).map(({ databaseName }) => databaseName)
  const counted = new RefCounted(
    async () => {
      const managed = ManagedRuntime.make(layer)
      const exit = await Effect.runPromiseExit(managed.runtimeEffect)
      if (Exit.isSuccess(exit)) return managed
      await managed.dispose()
      // `open` rejects with the first failure, so the others are logged
      await Effect.runPromise(Effect.forEach([...Cause.failures(exit.cause)].slice(1), logFailure))
      throw Cause.squash(exit.cause)
    },
    (managed) => managed.dispose()
  )
  const opened = (): Promise<ManagedRuntime.ManagedRuntime<R, E>> => {
    const current = counted.opened
    if (typeof current !== "string") return current
    if (current === "notYet" && options.lazy === true) return counted.use()
    const notYet = current === "notYet"
    return Promise.reject(new DatabaseClosed({ database: names.join(", "), server: "", notYet }))
  }
  const runPromise = async <A, E>(self: Effect.Effect<A, E, R>, given: SignalOption = {}): Promise<A> => {
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
      // the context is captured here, because the stream may be read in another async context
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
    // the cast: `Object.fromEntries` loses the names of the record
    databases: access as { readonly [K in keyof D]: ReturnType<typeof makePromiseDatabase<R>> },
    open: async () => void (await counted.open()),
    close: () => counted.close(),
    [Symbol.asyncDispose]: () => counted.close(),
    // a failure of an effect is converted like that of an awaited statement; a failure of plain
    // code is not changed
    runPromise: <A, E>(self: Effect.Effect<A, E, R>, options?: SignalOption) => runPromise(refine(self), options),
    unitOfWork: <A>(code: Code<A>, { signal, ...options }: UnitOfWork.Options<A, unknown> & SignalOption = {}) =>
      runPromise(UnitOfWork.run(runPlain(code), options), { signal }),
    nested: <A>(code: Code<A>, { signal, ...options }: UnitOfWork.NestedOptions<A, unknown> & SignalOption = {}) =>
      runPromise(UnitOfWork.nested(runPlain(code), options), { signal }),
    outside: runOutside,
    withTenant: <A>(code: () => A, schema: Tenant.Schema, options: Tenant.Options = {}): A =>
      inPlainScopes(tenantChange(schema, options), code),
    withSession: <A>(code: Code<A>, session: Session) => runPromise(withSession(runPlain(code), session)),
    middleware: (options: NodeRequestOptions = {}) => {
      throwRefusal(invalidRequestOption(options, nodeOptions) ?? refusalOfKeys(options.idempotencyKey))
      const tokens = tokensOf(options)
      return (
        request: IncomingMessage | Http2ServerRequest,
        response: ServerResponse | Http2ServerResponse,
        next: (error?: Error) => void
      ): void =>
        void runPromise(
          // the casts: requests and responses of HTTP/2 have all members that are used here
          inUnit(request as IncomingMessage, response as ServerResponse, next, options, tokens)
        ).catch((error) => next(asError(error)))
    },
    handler: <Rest extends ReadonlyArray<unknown>>(
      handle: (request: Request, ...rest: Rest) => PromiseLike<Response> | Response,
      options: WebRequestOptions = {}
    ) => {
      throwRefusal(invalidRequestOption(options, webOptions) ?? refusalOfKeys(options.idempotencyKey))
      const tokens = tokensOf(options)
      return (request: Request, ...rest: Rest): Promise<Response> => {
        const answer = answerInSession(request, (fresh) => handle(fresh, ...rest), options, tokens)
        return opened().then(
          () => runPromise(answer, { signal: request.signal }),
          // the handler answers, because the databases may be open at a later request
          (error) => {
            if (!isDatabaseError(error)) throw error
            return Effect.runPromise(Effect.as(Effect.logError(error.message), refusalResponse(toProblem(error))))
          }
        )
      }
    }
  }
}
