/**
 * What plain code carries from one `await` to the next: the unit of work or transaction that it runs in, what its reads must see, where
 * names are looked up, how it retries, and the span it is part of. Effects that it runs are run there.
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
import { CurrentScopes } from "../edge/currentScopes.js"
import type { ScopeChange } from "../sql/schemaScopes.js"
import { contextOf } from "../transaction/context.js"
import { causalSessionOf, scopesOf, withChange } from "../transaction/contextSlot.js"
import { PromiseQuery } from "./promiseQuery.js"

interface Ambient {
  readonly context: Context.Context<never>
  /** Ends what it runs, when whatever it runs in is interrupted, if it runs in anything. */
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

/** Runs plain code as a part of the effect around it. What it throws, or rejects with, is the failure. */
export const runPlain = <A>(code: () => PromiseLike<A> | A): Effect.Effect<A, unknown> =>
  Effect.withFiberRuntime((fiber) => {
    const { unsafeMap } = fiber.currentContext
    const context = Context.unsafeMake<never>(
      new Map(carried.flatMap((key) => (unsafeMap.has(key) ? [[key, unsafeMap.get(key)]] : [])))
    )
    return Effect.tryPromise({
      try: (signal) => {
        // each statement that is under way listens, and there may be any number of them
        setMaxListeners(0, signal)
        return storage.run({ context, signal }, async () => code())
      },
      catch: (error) => error
    })
  })

/** What code has given, which may be a statement that nobody has run yet: it is run where it was written, and not where it is awaited. */
const settled = <A>(place: <B>(code: () => B) => B, code: () => A): A => {
  const result = place(code)
  // one statement is as good as another
  return result instanceof PromiseQuery ? (result.through(place) as A) : result
}

/** Runs plain code outside of all that the code around it runs in, but for whose rows it works on, and what it has written before. */
export const runOutside = <A>(code: () => A): A => {
  const around = storage.getStore()?.context ?? Context.empty()
  const scopes = scopesOf(around)
  const session = causalSessionOf(around, contextOf(around))
  if (scopes === undefined && session === undefined) return settled((run) => storage.exit(run), code)
  let context: Context.Context<never> = Context.empty()
  if (scopes !== undefined) context = Context.add(context, CurrentScopes, scopes)
  if (session !== undefined) context = Context.add(context, CurrentSession, session)
  return settled((run) => storage.run({ context, signal: undefined }, run), code)
}

/** Runs plain code in other schema scopes, and whatever it calls, also when it has returned already. */
export const inPlainScopes = <A>(change: ScopeChange, code: () => A): A => {
  const { context, signal } = storage.getStore() ?? { context: Context.empty(), signal: undefined }
  const inside = { context: withChange(context, change), signal }
  return settled((run) => storage.run(inside, run), code)
}

/** An effect as a part of what the plain code around it runs in. */
export const inAmbient = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
  const ambient = storage.getStore()
  return ambient === undefined
    ? self
    : Effect.mapInputContext(self, (context: Context.Context<R>) => Context.merge(context, ambient.context))
}

/** The same for a stream. */
export const inAmbientStream = <A, E, R>(self: Stream.Stream<A, E, R>): Stream.Stream<A, E, R> => {
  const ambient = storage.getStore()
  return ambient === undefined
    ? self
    : Stream.mapInputContext(self, (context: Context.Context<R>) => Context.merge(context, ambient.context))
}

/** The signals that end an effect that the plain code around it runs: the one it was given, and the one of what is around. */
export const ambientSignals = (given: AbortSignal | undefined): ReadonlyArray<AbortSignal> => {
  const around = storage.getStore()?.signal
  return [given, around].filter((signal) => signal !== undefined)
}
