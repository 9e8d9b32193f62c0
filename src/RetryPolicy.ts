/**
 * What is tried again, when, and how often: a service with a default.
 *
 * | what failed | by default |
 * |---|---|
 * | checkout, connect, BEGIN: nothing was sent | tried again, until `acquireTimeout` |
 * | a statement of a reader, outside of a transaction | tried again, on another server where there is one |
 * | a statement of an {@link idempotent} scope, outside of a transaction | tried again |
 * | any other statement outside of a transaction | not tried again: `Disconnected`, in doubt |
 * | a transaction | replayed as a whole, only with `{ retry }` |
 * | listening, after it was lost | tried again for as long as there are listeners |
 *
 * @since 0.1.0
 */

import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FiberRef from "effect/FiberRef"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { type DatabaseError, fromUnknown } from "./DatabaseError.js"
import { isStalePlan, isTransient } from "./SqlState.js"

/**
 * Attempts beyond the first that a database may make, all callers together: `burst` at once, and `perSecond` more with time. A transaction,
 * unit of work, request or statement gives back what it has taken when it succeeds, or when its own code fails after the database has done
 * all that it was asked for.
 *
 * @since 0.1.0
 * @category models
 */
export interface Budget {
  readonly burst: number
  readonly perSecond: number
}

/**
 * When something is tried again; a schedule that ends gives up. Its input is the failure.
 *
 * @since 0.1.0
 * @category models
 */
export interface Policy {
  /** Nothing was sent: no connection, or it was lost before BEGIN was answered. Of its callers `maxOutageWaiters` wait at a time. */
  readonly acquire: Schedule.Schedule<unknown, DatabaseError>
  /** A statement outside of a transaction that may run twice: a reader's, or one of an idempotent scope. */
  readonly statement: Schedule.Schedule<unknown, DatabaseError>
  /** A whole transaction with `{ retry: true }`. */
  readonly transaction: Schedule.Schedule<unknown, DatabaseError>
  /**
   * Listening again after the connection was lost: the pauses before the attempts. One connection listens for all of a database, so it is
   * the policy in force when the database is opened.
   */
  readonly listen: Schedule.Schedule<unknown, DatabaseError>
  /**
   * Keeps a failing server from being hammered: without budget the failure is passed on at once, and says so. An attempt that found no
   * connection takes nothing of it, for a pool connects for all its callers together; and what succeeds in the end gives back what it has
   * taken, so that collisions on a server that is well do not use it up.
   */
  readonly budget: Budget
}

/** Not an exponential with a limit: after some thousand attempts it would be infinite first. */
const backoffForEver = (base: number, longest: number): Schedule.Schedule<unknown, DatabaseError> =>
  Schedule.unfold(base, (pause) => Math.min(2 * pause, longest)).pipe(
    Schedule.addDelay((pause) => pause),
    Schedule.jitteredWith({ min: 0.5, max: 1 })
  )

const backoff = (base: number, times: number): Schedule.Schedule<unknown, DatabaseError> =>
  Schedule.intersect(backoffForEver(base, 1000), Schedule.recurs(times))

/**
 * The default: exponential with jitter, with pauses up to 1 s; until `acquireTimeout` for what was not sent, 3 times for a statement, 10 times
 * for a transaction; of all callers together 200 at once and 50 a second. Listening again: from 50 ms up to 5 s, for ever.
 *
 * @since 0.1.0
 * @category policies
 */
export const defaultPolicy: Policy = {
  acquire: backoffForEver(50, 1000),
  statement: backoff(20, 3),
  transaction: backoff(10, 10),
  listen: backoffForEver(50, 5000),
  budget: { burst: 200, perSecond: 50 }
}

/**
 * Nothing is tried again.
 *
 * @since 0.1.0
 * @category policies
 */
export const never: Policy = {
  acquire: Schedule.stop,
  statement: Schedule.stop,
  transaction: Schedule.stop,
  listen: Schedule.stop,
  budget: { burst: 0, perSecond: 0 }
}

/**
 * The policy in force. Without a layer it is {@link defaultPolicy}.
 *
 * `budget` bounds the attempts of all callers of a database together. A failure that ends with "and the retry budget of the database is used
 * up" comes of a server that fails much of what runs; the budget is to be raised where many callers may fail at once and go better a moment
 * later.
 *
 * @example
 * import { RetryPolicy } from "effect-db"
 *
 * export const RetriesLive = RetryPolicy.layer({
 *   ...RetryPolicy.defaultPolicy,
 *   budget: { burst: 1000, perSecond: 200 }
 * })
 *
 * @see {@link with} for another policy of one effect
 * @since 0.1.0
 * @category services
 */
export class RetryPolicy extends Context.Reference<RetryPolicy>()("effect-db/RetryPolicy", {
  defaultValue: () => defaultPolicy
}) {}

/**
 * A layer with another policy.
 *
 * @example
 * import { RetryPolicy } from "effect-db"
 *
 * export const NoRetries = RetryPolicy.layer(RetryPolicy.never)
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = (policy: Policy): Layer.Layer<never> => Layer.succeedContext(Context.make(RetryPolicy, policy))

const with_: {
  (policy: Partial<Policy>): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, policy: Partial<Policy>): Effect.Effect<A, E, R>
} = dual(
  2,
  <A, E, R>(self: Effect.Effect<A, E, R>, policy: Partial<Policy>): Effect.Effect<A, E, R> =>
    Effect.mapInputContext(self, (context: Context.Context<R>) =>
      Context.add(context, RetryPolicy, { ...Context.get(context, RetryPolicy), ...policy })
    )
)

export {
  /**
   * Another policy for one effect; what is left out stays as it is.
   *
   * @example
   * import { Effect, Schedule } from "effect"
   * import { RetryPolicy } from "effect-db"
   *
   * const patient = RetryPolicy.with({ acquire: Schedule.spaced("1 second") })
   * export const program = patient(Effect.void)
   *
   * @since 0.1.0
   * @category combinators
   */
  with_ as with
}

/**
 * Whether the running fiber is in an {@link idempotent} scope.
 *
 * @internal
 */
export const idempotentRef: FiberRef.FiberRef<boolean> = FiberRef.unsafeMake(false)

/**
 * Says that every statement inside may run twice, so that one whose connection was lost is tried again even on the writer.
 *
 * It does not reach into transactions: there the whole is the unit, with `{ retry }`.
 *
 * @example
 * import { Effect } from "effect"
 * import { Database, RetryPolicy } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const touch = (id: number) =>
 *   Effect.flatMap(Db.writer, (sql) => sql`UPDATE todo SET seen = true WHERE id = ${id}`).pipe(RetryPolicy.idempotent)
 *
 * @since 0.1.0
 * @category combinators
 */
export const idempotent = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.locally(self, idempotentRef, true)

/**
 * Whether nothing was sent and another attempt may go better.
 *
 * @since 0.1.0
 * @category classification
 */
export const isNotSent = (error: DatabaseError): boolean =>
  (error._tag === "ConnectFailed" && error.permanent !== true && isTransient(error.reason)) ||
  (error._tag === "Disconnected" && error.outcome === "notSent")

/**
 * Whether a prepared statement was refused because its plan is stale. It is prepared anew when it is run again.
 *
 * @internal
 */
export const isStale = (error: DatabaseError): boolean =>
  error._tag === "QueryFailed" &&
  error.sqlState !== undefined &&
  isStalePlan(error.sqlState, error.cause instanceof Error ? error.cause.message : "")

/**
 * Whether a transaction that failed like this is undone for certain and may go better when it is run again as a whole.
 *
 * @since 0.1.0
 * @category classification
 */
export const isReplayable = (error: unknown): boolean => {
  const known = fromUnknown(error)
  switch (known._tag) {
    case "SerializationFailure":
    case "DeadlockDetected":
      return true
    case "Disconnected":
      return known.outcome !== "inDoubt"
    case "CommitFailed":
    case "RolledBackAtCommit":
    case "CommitVetoed":
      return isReplayable(known.cause)
    default:
      return isNotSent(known) || isStale(known)
  }
}
