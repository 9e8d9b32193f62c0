/**
 * The context of plain code, which stays the same after each `await`: its unit of work or
 * transaction, the consistency of its reads, its causal session, its schemas, its retry policy and
 * its span. Effects that plain code runs get this context.
 */
import { AsyncLocalStorage } from "node:async_hooks"
import { setMaxListeners } from "node:events"
import { TransactionConnection } from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import { CurrentConsistency, CurrentSession } from "../../Consistency.js"
import { RetryPolicy } from "../../RetryPolicy.js"
import { CurrentScopes } from "../edge/currentSchemaScopes.js"
import type { ScopeChange } from "../sql/schemaScopes.js"
import { scopesOf, withChange } from "../transaction/ambientScopes.js"
import { contextOf } from "../transaction/context.js"
import { causalSessionOf } from "../transaction/currentCausalSession.js"
import { PromiseQuery } from "./promiseQuery.js"

interface Ambient {
  readonly context: Context.Context<never>
  /** The signal that interrupts effects of the code if the effect around it is interrupted. */
  readonly signal: AbortSignal | undefined
}

const storage = new AsyncLocalStorage<Ambient>()

/** The keys of the context that plain code gets. */
const carried = [
  TransactionConnection.key,
  CurrentConsistency.key,
  CurrentSession.key,
  CurrentScopes.key,
  RetryPolicy.key,
  Tracer.ParentSpan.key
]

/**
 * The databases that a test has put in the place of those of a runtime, for the plain code in it.
 */
class ReplacedDatabases extends Context.Reference<ReplacedDatabases>()("effect-db/internal/ReplacedDatabases", {
  defaultValue: (): Context.Context<never> | undefined => undefined
}) {}

/** Returns the databases that replace those of a runtime, with the mark by which they are found. */
const replacedIn = (context: Context.Context<never>): Context.Context<never> => {
  const replaced: Context.Context<never> | undefined = context.unsafeMap.get(ReplacedDatabases.key)
  return replaced === undefined ? Context.empty() : Context.add(replaced, ReplacedDatabases, replaced)
}

/**
 * Runs plain code in the context of the effect around it. The effect fails with the exception or
 * the rejection of the code.
 */
export const runPlain = <A>(code: () => PromiseLike<A> | A): Effect.Effect<A, unknown> =>
  Effect.withFiberRuntime((fiber) => {
    const { unsafeMap } = fiber.currentContext
    const plain = Context.unsafeMake<never>(
      new Map(carried.flatMap((key) => (unsafeMap.has(key) ? [[key, unsafeMap.get(key)]] : [])))
    )
    const context = unsafeMap.has(ReplacedDatabases.key)
      ? Context.merge(plain, replacedIn(fiber.currentContext))
      : plain
    return Effect.tryPromise({
      try: (signal) => {
        // each statement in progress adds a listener, and their number has no limit
        setMaxListeners(0, signal)
        return storage.run({ context, signal }, async () => code())
      },
      catch: (error) => error
    })
  })

/**
 * Runs plain code with other databases in the place of those of a runtime, which its statements and
 * units of work use.
 */
export const runWithDatabases = <R, A>(
  databases: Context.Context<R>,
  code: () => PromiseLike<A> | A
): Effect.Effect<A, unknown> =>
  // the cast: effects find the databases by their keys
  Effect.provide(runPlain(code), Context.make(ReplacedDatabases, databases as Context.Context<never>))

/**
 * Calls code by `run` and returns its result. A returned statement runs later, when it is awaited.
 * It then runs in the context of `run`, not in that of the `await`.
 */
const runIn = <A>(run: <B>(code: () => B) => B, code: () => A): A => {
  const result = run(code)
  // the cast: the new statement has the same rows
  return result instanceof PromiseQuery ? (result.through(run) as A) : result
}

/**
 * Runs plain code outside of the context around it: only the schema scopes and the causal session
 * stay.
 */
export const runOutside = <A>(code: () => A): A => {
  const around = storage.getStore()?.context ?? Context.empty()
  const scopes = scopesOf(around)
  const session = causalSessionOf(around, contextOf(around))
  let context = replacedIn(around)
  if (scopes === undefined && session === undefined && context.unsafeMap.size === 0)
    return runIn((run) => storage.exit(run), code)
  if (scopes !== undefined) context = Context.add(context, CurrentScopes, scopes)
  if (session !== undefined) context = Context.add(context, CurrentSession, session)
  return runIn((run) => storage.run({ context, signal: undefined }, run), code)
}

/** Runs plain code in other schema scopes. They also apply to async work that the code starts. */
export const inPlainScopes = <A>(change: ScopeChange, code: () => A): A => {
  const { context, signal } = storage.getStore() ?? { context: Context.empty(), signal: undefined }
  const inside = { context: withChange(context, change), signal }
  return runIn((run) => storage.run(inside, run), code)
}

/** Returns an effect that runs in the context of the plain code around it. */
export const inAmbient = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
  const ambient = storage.getStore()
  return ambient === undefined
    ? self
    : Effect.mapInputContext(self, (context: Context.Context<R>) => Context.merge(context, ambient.context))
}

/** Returns a stream that runs in the context of the plain code around it. */
export const inAmbientStream = <A, E, R>(self: Stream.Stream<A, E, R>): Stream.Stream<A, E, R> => {
  const ambient = storage.getStore()
  return ambient === undefined
    ? self
    : Stream.mapInputContext(self, (context: Context.Context<R>) => Context.merge(context, ambient.context))
}

/** Returns the signals that interrupt an effect of plain code: the given and the ambient signal. */
export const ambientSignals = (given: AbortSignal | undefined): ReadonlyArray<AbortSignal> => {
  const around = storage.getStore()?.signal
  return [given, around].filter((signal) => signal !== undefined)
}
