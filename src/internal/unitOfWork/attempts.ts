/**
 * The attempts of work that ends as a whole, a transaction or a unit of work: it runs again if all
 * of it is undone, and another attempt may succeed.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Schedule from "effect/Schedule"
import { type DatabaseError, fromUnknown, type Retried } from "../../DatabaseError.js"
import { Observation } from "../../Observation.js"
import { isReplayable, type Policy } from "../../RetryPolicy.js"
import type { StatementFailure } from "../connection/failure.js"
import { setRetried } from "../edge/annotateError.js"
import type { Restore } from "../edge/cancellable.js"
import { toDatabaseError } from "../edge/databaseError.js"
import type { Retry } from "../transaction/context.js"
import type { Origin, Transaction } from "../transaction/transaction.js"

/**
 * Returns the failure after which another attempt of the work may succeed, if there is one. It is
 * one of `known`, the failures of statements, even if the work has converted that into another
 * failure, or it is in `cause`. Interrupted work is not run again.
 */
export const reasonOf = (known: ReadonlyArray<StatementFailure>, cause: Cause.Cause<unknown>): unknown => {
  const failures = [...Cause.failures(cause)]
  // a promise of an interrupted effect rejects with this exception in the code of the program
  const isInterrupted = !Cause.isEmpty(cause) && Cause.isInterruptedOnly(cause)
  if (isInterrupted || failures.some(Cause.isInterruptedException)) return undefined
  return [...known.map(toDatabaseError), ...failures, ...Cause.defects(cause)].find(isReplayable)
}

/**
 * Failure after which another attempt may succeed, with the database that has the budget for it,
 * and the cause for the caller.
 */
export interface Replayable {
  readonly error: DatabaseError
  readonly origin: Origin
  readonly cause: Cause.Cause<unknown>
}

/**
 * Returns `reason` with the database that has the budget, if the work may run again. After
 * `ConnectFailed` it may not, because the checkout has waited and retried already.
 */
export const replayable = (
  reason: unknown,
  origin: (database: string) => Origin | undefined,
  cause: Cause.Cause<unknown>
): Replayable | undefined => {
  if (reason === undefined) return undefined
  const error = fromUnknown(reason)
  const found = error._tag === "ConnectFailed" ? undefined : origin(error.database)
  return found === undefined ? undefined : { error, origin: found, cause }
}

/**
 * Checks if servers have executed all statements of an attempt, also if its own code has failed.
 */
const isServed = (exit: Exit.Exit<unknown, unknown>, transactions: ReadonlyArray<Transaction>): boolean =>
  Exit.isSuccess(exit) ||
  (!Cause.isInterrupted(exit.cause) &&
    transactions.some(({ level }) => level.touched) &&
    transactions.every(({ failures }) => failures.length === 0))

/**
 * The attempts of one transaction or unit. They are taken from the budgets of databases, and
 * returned after a success.
 */
class Attempts {
  private count = 1
  private endedBy: Retried["endedBy"] = "schedule"
  private readonly taken = new Map<Origin, number>()

  constructor(private readonly policy: Policy) {}

  /** Takes another attempt from the budget, and returns false if that is used up. */
  take({ error, origin }: Replayable): boolean {
    if (!origin.takeReplay(this.policy, this.count, error)) {
      this.endedBy = "budget"
      return false
    }
    this.count++
    this.taken.set(origin, (this.taken.get(origin) ?? 0) + 1)
    return true
  }

  giveBack(): void {
    for (const [origin, count] of this.taken) origin.giveBackReplays(this.policy, count)
    this.taken.clear()
  }

  /**
   * Reports that there is no further attempt: as an observation, and in the failure if that is an
   * error of this library, else in the log.
   */
  end({ cause, error, origin }: Replayable): Effect.Effect<void> {
    return Effect.suspend(() => {
      const retried: Retried = { attempts: this.count, endedBy: this.endedBy }
      setRetried(error, retried)
      const all = [...Cause.failures(cause), ...Cause.defects(cause)]
      const isReported = all.map((failure) => setRetried(failure, retried)).includes(true)
      const { database, observer } = origin
      observer.observe(
        Observation.RetryExhausted({ database, what: "transaction", ...retried, message: error.message })
      )
      return isReported ? Effect.void : Effect.logWarning(`the last attempt has failed: ${error.message}`)
    })
  }
}

/**
 * Runs work again while `reasonFor` returns a failure, and the schedule and the budget grant
 * another attempt. `first` is the exit of an earlier attempt. `transactions` returns the
 * transactions of the last attempt.
 *
 * It must run in an uninterruptible region, because an interruptible handler would lose the
 * failures beside an interruption. `restore` is for the work and the pauses.
 */
export const retryWork = <A, E, R>(
  restore: Restore,
  once: Effect.Effect<A, E, R>,
  reasonFor: (exit: Exit.Exit<A, E>) => Replayable | undefined,
  transactions: () => ReadonlyArray<Transaction>,
  retry: Retry,
  policy: Policy,
  first?: Exit.Exit<A, E>
): Effect.Effect<A, E, R> =>
  Effect.suspend(() => {
    const attempts = new Attempts(policy)
    const schedule = Schedule.mapInput(retry === true ? policy.transaction : retry, ({ error }: Replayable) => error)
    // a schedule that has ended takes nothing from the budget
    const granted = Schedule.whileInput(schedule, (reason) => attempts.take(reason))
    return Effect.flatMap(Schedule.driver(granted), (driver) => {
      const continueAfter = (exit: Exit.Exit<A, E>): Effect.Effect<A, E, R> => {
        const reason = reasonFor(exit)
        if (reason === undefined) {
          if (isServed(exit, transactions())) attempts.giveBack()
          return exit
        }
        return Effect.matchCauseEffect(restore(driver.next(reason)), {
          // the schedule has ended, or the pause was interrupted: the failure of the attempt, such
          // as an unknown outcome, is kept
          onFailure: (cause) =>
            Either.match(Cause.failureOrCause(cause), {
              onLeft: () => Effect.zipRight(attempts.end(reason), exit),
              onRight: (interruption) =>
                Effect.failCause(Exit.isFailure(exit) ? Cause.sequential(exit.cause, interruption) : interruption)
            }),
          onSuccess: () => attempt
        })
      }
      const attempt = Effect.flatMap(Effect.exit(restore(once)), continueAfter)
      return first === undefined ? attempt : continueAfter(first)
    })
  })
