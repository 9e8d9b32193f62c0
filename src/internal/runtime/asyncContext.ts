/**
 * The context of plain code from one `await` to the next: its unit of work or transaction, the
 * consistency of its reads, its schemas, its retry policy and its span. Effects that plain code runs
 * have it, too.
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
import { contextOf } from "../transaction/context.js"
import { causalSessionOf, scopesOf, withChange } from "../transaction/slotScopes.js"
import { PromiseQuery } from "./promiseQuery.js"

interface Ambient {
  readonly context: Context.Context<never>
  /**
   * The signal that interrupts the effects of the code when the effect around the code is
   * interrupted; `undefined` without such an effect.
   */
  readonly signal: AbortSignal | undefined
}

const storage = new AsyncLocalStorage<Ambient>()

const carried = [
  TransactionConnection.key,
  CurrentConsistency.key,
  CurrentSession.key,
  CurrentScopes.key,
  RetryPolicy.key,
  Tracer.ParentSpan.key
]

/**
 * Runs plain code as a part of the effect around it. An exception or a rejection of the code is the
 * failure.
 */
export const runPlain = <A>(code: () => PromiseLike<A> | A): Effect.Effect<A, unknown> =>
  Effect.withFiberRuntime((fiber) => {
    const { unsafeMap } = fiber.currentContext
    const context = Context.unsafeMake<never>(
      new Map(carried.flatMap((key) => (unsafeMap.has(key) ? [[key, unsafeMap.get(key)]] : [])))
    )
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
 * Calls code by `run` and returns its result. A statement as the result has not run yet, because it
 * runs when it is awaited; it is bound to the context of `run`, and not to that of the `await`.
 */
const runIn = <A>(run: <B>(code: () => B) => B, code: () => A): A => {
  const result = run(code)
  // the cast: the new statement has the same rows
  return result instanceof PromiseQuery ? (result.through(run) as A) : result
}

/**
 * Runs plain code outside of the units, transactions and spans around it. Only the schema scopes
 * and the causal session are kept.
 */
export const runOutside = <A>(code: () => A): A => {
  const around = storage.getStore()?.context ?? Context.empty()
  const scopes = scopesOf(around)
  const session = causalSessionOf(around, contextOf(around))
  if (scopes === undefined && session === undefined) return runIn((run) => storage.exit(run), code)
  let context: Context.Context<never> = Context.empty()
  if (scopes !== undefined) context = Context.add(context, CurrentScopes, scopes)
  if (session !== undefined) context = Context.add(context, CurrentSession, session)
  return runIn((run) => storage.run({ context, signal: undefined }, run), code)
}

/**
 * Runs plain code in other schema scopes. They apply to all that it calls, also to what it starts
 * and does not await.
 */
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

/**
 * Returns the signals that interrupt an effect of plain code: that of its options, and that of the
 * effect around the code.
 */
export const ambientSignals = (given: AbortSignal | undefined): ReadonlyArray<AbortSignal> => {
  const around = storage.getStore()?.signal
  return [given, around].filter((signal) => signal !== undefined)
}
