/**
 * The attempts of one statement, or of one checkout: the first one, and the retries that a failure
 * allows.
 */

import type { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import { type DatabaseError, type Retried, type StatementError, toSqlError } from "../../DatabaseError.js"
import { Observation, type Observer } from "../../Observation.js"
import { idempotentRef, isNotSent, isStale, type Policy, RetryPolicy } from "../../RetryPolicy.js"
import * as clock from "../concurrency/clock.js"
import type { Exchange } from "../connection/connection.js"
import { setRetried, withLocation } from "../edge/annotateError.js"
import { cancellable } from "../edge/cancellable.js"
import { toDatabaseError } from "../edge/databaseError.js"
import { CurrentSite } from "../observability/callSite.js"
import type { OnStatement } from "../statement/autocommit.js"
import type { Topology } from "../topology/topology.js"
import { RetryBudget } from "./retryBudget.js"
import { makeRetryPauses } from "./retryPauses.js"

/**
 * Function that starts an exchange with the server; the returned function cancels it. `deadline` is
 * the time by which a connection must be found.
 */
export type Start = (callback: OnStatement, deadline: number) => () => void

/**
 * Function that checks if a failure allows another attempt. `refusals` is the number of attempts so
 * far that a server has permanently refused.
 */
export type MayRetry = (error: DatabaseError, refusals: number) => boolean

/** Function that continues after a failed attempt, which had to find a connection by `deadline`. */
type OnFailed<A, E> = (error: E, deadline: number) => Effect.Effect<A, E>

/** Retries of the statements, checkouts and transactions of one database, which share a budget. */
export class StatementRetry {
  private readonly budget = new RetryBudget()

  constructor(
    private readonly database: string,
    private readonly acquireTimeout: number,
    private readonly topology: Topology,
    private readonly observer: Observer
  ) {}

  /**
   * Checks if a read may be retried after a failure. After a permanent refusal another server may
   * still accept the read, so it is retried until every server has refused.
   */
  readonly mayRetryRead: MayRetry = (error, refusals) => {
    if (error._tag === "ConnectFailed") return isNotSent(error) || refusals <= this.topology.readers.length
    if (error._tag === "Disconnected") return error.outcome !== "inDoubt"
    // a standby cancels reads that conflict with the log that it replays
    return isStale(error) || error._tag === "SerializationFailure" || error._tag === "DeadlockDetected"
  }

  /** Returns the time by which a checkout that starts now must find a connection. */
  deadline(): number {
    return clock.now() + this.acquireTimeout
  }

  /** Runs the first attempt, and retries by the policy of the fiber if its failure allows that. */
  attempt<A>(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    start: Start,
    read: (exchange: Exchange) => A,
    mayRetry: MayRetry
  ): Effect.Effect<A, SqlError> {
    const toFailure = (error: StatementError) => toSqlError(withLocation(error, locationOf(fiber)))
    return this.once(start, undefined, read, (first, deadline) => {
      if (!mayRetry(first, 1)) return Effect.fail(toFailure(first))
      const policy = Context.get(fiber.currentContext, RetryPolicy)
      const next = (last: StatementError, until: number, onFailed: OnFailed<A, StatementError>) =>
        // attempts that found no connection share one deadline; after an attempt that found one, a
        // new deadline begins
        this.once(start, isNotSent(last) ? until : undefined, read, onFailed)
      return Effect.mapError(this.retry(policy, mayRetry, first, deadline, next), toFailure)
    })
  }

  /**
   * Runs a checkout, and retries it by the policy until the deadline, if `mayRetry` accepts the
   * failure.
   */
  attemptCheckout<A, E extends DatabaseError>(
    checkout: Effect.Effect<A, E>,
    deadline: number,
    mayRetry: MayRetry = isNotSent
  ): Effect.Effect<A, E> {
    const next = (_: E, __: number, onFailed: OnFailed<A, E>) =>
      Effect.catchAll(checkout, (error) => onFailed(error, deadline))
    return Effect.catchAll(checkout, (error) =>
      mayRetry(error, 1)
        ? Effect.flatMap(RetryPolicy, (policy) => this.retry(policy, mayRetry, error, deadline, next))
        : Effect.fail(error)
    )
  }

  /**
   * Takes a token for another attempt of a transaction, and reports the retry. Returns false if the
   * budget is empty.
   */
  takeTransaction(policy: Policy, attempt: number, error: DatabaseError): boolean {
    const isLeft = this.budget.take(policy.budget)
    if (isLeft) this.reportRetried("transaction", attempt, error.message)
    return isLeft
  }

  /** Returns the tokens of a transaction's attempts to the budget. */
  giveBackTransactions({ budget }: Policy, count: number): void {
    this.budget.giveBack(count, budget)
  }

  /** Retries after a first failure, with the pauses of the policy, while the failures allow it. */
  private retry<A, E extends DatabaseError>(
    policy: Policy,
    mayRetry: MayRetry,
    first: E,
    firstDeadline: number,
    attempt: (last: E, deadline: number, onFailed: OnFailed<A, E>) => Effect.Effect<A, E>
  ): Effect.Effect<A, E> {
    return Effect.flatMap(makeRetryPauses(policy, this.budget, this.topology.outageWaiters), (pauses) => {
      let attempts = 0
      let refusals = 0
      const onFailed: OnFailed<A, E> = (error, deadline) => {
        if (error._tag === "ConnectFailed" && !isAway(error)) refusals++
        if (!mayRetry(error, refusals)) return Effect.fail(error)
        return Effect.flatMap(pauses.pause(error, deadline), (isRetried) => {
          if (!isRetried) {
            this.reportExhausted(error, { attempts: attempts + 1, endedBy: pauses.endedBy() })
            return Effect.fail(error)
          }
          this.reportRetried(isNotSent(error) ? "acquire" : "statement", ++attempts, error.message)
          return attempt(error, deadline, (next, until) =>
            // the earlier error has the reason of the outage, which the timeout of the checkout
            // lacks
            next._tag === "PoolExhausted" && next.reason === "timeout" && next.total === 0 && isAway(error)
              ? Effect.fail(error)
              : onFailed(next, until)
          )
        })
      }
      return Effect.tap(onFailed(first, firstDeadline), () => pauses.giveBack())
    })
  }

  /** Runs one attempt, and continues with `recover` after a failure. */
  private once<A, E>(
    start: Start,
    deadline: number | undefined,
    read: (exchange: Exchange) => A,
    recover: (error: StatementError, deadline: number) => Effect.Effect<A, E>
  ): Effect.Effect<A, E> {
    return cancellable((resume) => {
      const until = deadline ?? this.deadline()
      return start((failure, exchange) => {
        if (failure !== undefined) resume(recover(toDatabaseError(failure), until))
        else if (exchange !== undefined) resume(readExchange(exchange, read))
      }, until)
    })
  }

  /**
   * Adds the retries to the last failure of a statement or checkout, and reports them. Does nothing
   * for a failed connect, or if the schedule allowed no retry.
   */
  private reportExhausted(error: DatabaseError, retried: Retried): void {
    if (error._tag === "ConnectFailed" || (retried.attempts === 1 && retried.endedBy === "schedule")) return
    setRetried(error, retried)
    const what = isNotSent(error) ? "acquire" : "statement"
    const { database } = this
    this.observer.observe(Observation.RetryExhausted({ database, what, ...retried, message: error.message }))
  }

  private reportRetried(what: "acquire" | "statement" | "transaction", attempt: number, message: string): void {
    this.observer.observe(Observation.Retried({ database: this.database, what, attempt, message }))
  }
}

/** Returns the location of the call site in a fiber's context, or else the name of its span. */
export const locationOf = ({ currentContext, currentSpan }: Fiber.RuntimeFiber<unknown, unknown>): string | undefined =>
  Context.get(currentContext, CurrentSite)?.location ??
  (currentSpan?._tag === "Span" ? `span "${currentSpan.name}"` : undefined)

/** Returns the `MayRetry` for the statements of a fiber on the writer, outside of a transaction. */
export const mayRetryOnWriter = (fiber: Fiber.RuntimeFiber<unknown, unknown>): ((error: DatabaseError) => boolean) =>
  fiber.getFiberRef(idempotentRef) ? mayRetryIdempotent : isNotSent

const mayRetryIdempotent = (error: DatabaseError): boolean => isNotSent(error) || error._tag === "Disconnected"

/** Checks if a connect failed for a reason that may pass. */
const isAway = (error: DatabaseError): boolean => error._tag === "ConnectFailed" && isNotSent(error)

/**
 * Reads the result of an exchange. The function that transforms names belongs to the program, so
 * its exception must not reach the code of the socket.
 */
const readExchange = <A>(exchange: Exchange, read: (exchange: Exchange) => A): Effect.Effect<A> => {
  try {
    return Effect.succeed(read(exchange))
  } catch (defect) {
    return Effect.die(defect)
  }
}
