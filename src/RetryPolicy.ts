/**
 * The policy of retries: a service that decides when and how often failed work runs again.
 *
 * | failed | by default |
 * |---|---|
 * | checkout, connect, BEGIN: nothing was sent | runs again, until `acquireTimeout` |
 * | a statement of a reader, outside of a transaction | runs again, on another server if there is one |
 * | a statement in {@link idempotent}, outside of a transaction | runs again |
 * | another statement outside of a transaction | fails with `Disconnected`, in doubt |
 * | a transaction or unit of work | runs again as a whole, only with `{ retry }` |
 * | listening, after its connection was lost | runs again for as long as there are listeners |
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
 * The budget of retries of a database: the number of further attempts that all its callers together
 * may make.
 *
 * A transaction, unit of work, request or statement returns its attempts to the budget when it
 * succeeds, or when its own code fails after the database has executed all its statements.
 *
 * @see {@link Policy} for `budget`
 * @since 0.1.0
 * @category models
 */
export interface Budget {
  /** The number of attempts that may be made at once. */
  readonly burst: number
  /** The number of attempts that are added each second, up to `burst`. */
  readonly perSecond: number
}

/**
 * The schedules of retries, and their budget.
 *
 * The input of a schedule is the failure; when a schedule ends, the failure is reported.
 *
 * @see {@link defaultPolicy} for the defaults
 * @since 0.1.0
 * @category models
 */
export interface Policy {
  /**
   * The schedule for attempts that have had no effect: they got no connection, or lost it before the
   * answer to BEGIN. At most `maxOutageWaiters` callers wait at a time.
   */
  readonly acquire: Schedule.Schedule<unknown, DatabaseError>
  /**
   * The schedule for a statement outside of a transaction that may run twice: a statement of a
   * reader, or in {@link idempotent}.
   */
  readonly statement: Schedule.Schedule<unknown, DatabaseError>
  /** The schedule for a whole transaction or unit of work with `{ retry: true }`. */
  readonly transaction: Schedule.Schedule<unknown, DatabaseError>
  /**
   * The schedule for listening again after the connection was lost. All listeners of a database share
   * the connection, so the policy in force when the database is opened applies.
   */
  readonly listen: Schedule.Schedule<unknown, DatabaseError>
  /**
   * The limit for all callers of a database, so that retries do not add to the load of a failing
   * server. If the budget is used up, a failure is reported at once, and its message says so. An
   * attempt that found no connection takes nothing from the budget, because a pool connects for all
   * its callers together.
   */
  readonly budget: Budget
}

/**
 * Makes a schedule that doubles its pauses up to a limit. `Schedule.exponential` would reach
 * infinity after some thousand attempts.
 */
const backoffForEver = (base: number, longest: number): Schedule.Schedule<unknown, DatabaseError> =>
  Schedule.unfold(base, (pause) => Math.min(2 * pause, longest)).pipe(
    Schedule.addDelay((pause) => pause),
    Schedule.jitteredWith({ min: 0.5, max: 1 })
  )

const backoff = (base: number, times: number): Schedule.Schedule<unknown, DatabaseError> =>
  Schedule.intersect(backoffForEver(base, 1000), Schedule.recurs(times))

/**
 * The default policy: exponential pauses with jitter.
 *
 * | schedule | first pause | longest pause | attempts beyond the first |
 * |---|---|---|---|
 * | `acquire` | 50 ms | 1 s | until `acquireTimeout` |
 * | `statement` | 20 ms | 1 s | 3 |
 * | `transaction` | 10 ms | 1 s | 10 |
 * | `listen` | 50 ms | 5 s | without end |
 *
 * The budget is 200 attempts at once and 50 more each second.
 *
 * @see {@link layer} and {@link with} for another policy
 * @example
 * ```ts
 * import { Schedule } from "effect"
 * import { RetryPolicy } from "effect-db"
 *
 * // the defaults, with at most 3 further attempts of a transaction
 * export const RetriesLive = RetryPolicy.layer({
 *   ...RetryPolicy.defaultPolicy,
 *   transaction: Schedule.intersect(Schedule.exponential("10 millis"), Schedule.recurs(3))
 * })
 * ```
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
 * The policy without retries.
 *
 * @see {@link layer} and {@link with} put it in force
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, RetryPolicy } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const isReady = Effect.flatMap(Db.reader, (sql) => sql`SELECT 1`).pipe(RetryPolicy.with(RetryPolicy.never))
 * ```
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
 * The policy in force; without a layer it is {@link defaultPolicy}.
 *
 * If the message of an error contains "and the retry budget of the database is used up", much of the
 * work on that database fails. Raise the budget if many callers may fail at once and succeed a
 * moment later.
 *
 * @see {@link layer} for the policy of a program
 * @see {@link with} for the policy of one effect
 * @example
 * ```ts
 * import { RetryPolicy } from "effect-db"
 *
 * export const RetriesLive = RetryPolicy.layer({
 *   ...RetryPolicy.defaultPolicy,
 *   budget: { burst: 1000, perSecond: 200 }
 * })
 * ```
 *
 * @since 0.1.0
 * @category services
 */
export class RetryPolicy extends Context.Reference<RetryPolicy>()("effect-db/RetryPolicy", {
  defaultValue: () => defaultPolicy
}) {}

/**
 * Creates a layer with another policy.
 *
 * @see {@link with} for one effect
 * @example
 * ```ts
 * import { RetryPolicy } from "effect-db"
 *
 * export const NoRetries = RetryPolicy.layer(RetryPolicy.never)
 * ```
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
   * Runs an effect with another policy. Schedules that are left out stay the same.
   *
   * @see {@link layer} for a whole program
   * @example
   * ```ts
   * import { Effect, Schedule } from "effect"
   * import { RetryPolicy } from "effect-db"
   *
   * const everySecond = RetryPolicy.with({ acquire: Schedule.spaced("1 second") })
   * export const program = everySecond(Effect.void)
   * ```
   *
   * @since 0.1.0
   * @category combinators
   */
  with_ as with
}

/**
 * True for a fiber in {@link idempotent}.
 *
 * @internal
 */
export const idempotentRef: FiberRef.FiberRef<boolean> = FiberRef.unsafeMake(false)

/**
 * Marks every statement of an effect as safe to run twice, so that a statement that has lost its
 * connection runs again, even on the writer.
 *
 * The mark has no effect inside of transactions: they run again as a whole, with `{ retry }`.
 *
 * @see {@link Policy} for `statement`, the schedule of these statements
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, RetryPolicy } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const markSeen = (id: number) =>
 *   Effect.flatMap(Db.writer, (sql) => sql`UPDATE todo SET seen = true WHERE id = ${id}`).pipe(
 *     RetryPolicy.idempotent
 *   )
 * ```
 *
 * @since 0.1.0
 * @category combinators
 */
export const idempotent = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.locally(self, idempotentRef, true)

/**
 * Checks if nothing was sent, and another attempt may succeed.
 *
 * @see {@link isReplayable} for a whole transaction
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, DatabaseError, RetryPolicy } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * // one more attempt if the statement has certainly not run
 * export const add = Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO todo (title) VALUES ('milk')`).pipe(
 *   DatabaseError.refine,
 *   Effect.retry({ while: RetryPolicy.isNotSent, times: 1 })
 * )
 * ```
 *
 * @since 0.1.0
 * @category classification
 */
export const isNotSent = (error: DatabaseError): boolean =>
  (error._tag === "ConnectFailed" && error.permanent !== true && isTransient(error.reason)) ||
  (error._tag === "Disconnected" && error.outcome === "notSent")

/**
 * Checks if a prepared statement was refused because its plan is stale. Its next run prepares
 * it again.
 *
 * @internal
 */
export const isStale = (error: DatabaseError): boolean =>
  error._tag === "QueryFailed" &&
  error.sqlState !== undefined &&
  isStalePlan(error.sqlState, error.cause instanceof Error ? error.cause.message : "")

/**
 * Checks if a transaction with this failure is undone, and another attempt as a whole may
 * succeed.
 *
 * It accepts any failure, such as a `SqlError` around a database error.
 *
 * @see {@link isNotSent} for a single statement
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, RetryPolicy } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * declare const transfer: Effect.Effect<void, Error, Db>
 *
 * export const program = Effect.retry(Db.withTransaction(transfer), {
 *   while: RetryPolicy.isReplayable,
 *   times: 3
 * })
 * ```
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
