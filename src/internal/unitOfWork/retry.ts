/**
 * Work that is run again as a whole, where all of it is undone for certain and may go better.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Schedule from "effect/Schedule"
import { type DatabaseError, fromUnknown, type Retried, type StatementError } from "../../DatabaseError.js"
import { Observation } from "../../Observation.js"
import { isReplayable, type Policy, RetryPolicy } from "../../RetryPolicy.js"
import type { Restore } from "../edge/cancellable.js"
import { noteRetried } from "../edge/statementError.js"
import type { Retry } from "../transaction/context.js"
import type { Origin, Transaction } from "../transaction/transaction.js"
import type { Unit } from "./unitOfWork.js"

/**
 * Returns why work that has failed may go better in another attempt: what its transactions' statements have failed with, also where the
 * work has made another failure of it, or what the work has failed with or died of. Work that was interrupted is not to be run again.
 */
export const reasonOf = (known: ReadonlyArray<StatementError>, cause: Cause.Cause<unknown>): unknown => {
  const failures = [...Cause.failures(cause)]
  // plain code that awaits an effect rejects with the exception when that is interrupted
  const isInterrupted = !Cause.isEmpty(cause) && Cause.isInterruptedOnly(cause)
  if (isInterrupted || failures.some(Cause.isInterruptedException)) return undefined
  return [...known, ...failures, ...Cause.defects(cause)].find(isReplayable)
}

/** A failure of work that may go better in another attempt: the database whose budget pays for that, and what the caller gets otherwise. */
export interface Replayable {
  readonly error: DatabaseError
  readonly origin: Origin
  readonly cause: Cause.Cause<unknown>
}

/** Returns why work of some transactions may be run again, if it may. A caller that found no connection has waited for as long as it may. */
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

/** Returns why a unit may be run again, if it may: nothing of it is stored. */
export const replayableUnit = (unit: Unit, reason: unknown, cause: Cause.Cause<unknown>): Replayable | undefined =>
  unit.hasCommitted || !isReplayable(reason) ? undefined : replayable(reason, (name) => unit.origin(name), cause)

/** Tells if the servers of an attempt have done all that it asked of them, although its own code may have failed. */
const isServed = (exit: Exit.Exit<unknown, unknown>, transactions: ReadonlyArray<Transaction>): boolean =>
  Exit.isSuccess(exit) ||
  (!Cause.isInterrupted(exit.cause) &&
    transactions.some(({ level }) => level.touched) &&
    transactions.every(({ failures }) => failures.length === 0))

/** The attempts of one whole: they are counted, taken from the budgets of databases, and given back if the whole gets done. */
class Attempts {
  private count = 1
  private endedBy: Retried["endedBy"] = "schedule"
  private readonly taken = new Map<Origin, number>()

  constructor(private readonly policy: Policy) {}

  /** Takes another attempt, if there is one left. */
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

  /** Says that there is no further attempt: in the failure, if it is one of this library, else in the log. */
  end({ cause, error, origin }: Replayable): Effect.Effect<void> {
    const retried: Retried = { attempts: this.count, endedBy: this.endedBy }
    noteRetried(error, retried)
    const all = [...Cause.failures(cause), ...Cause.defects(cause)]
    const isSaid = all.map((failure) => noteRetried(failure, retried)).includes(true)
    const { database, observer } = origin
    observer.observe(Observation.RetryExhausted({ database, what: "transaction", ...retried, message: error.message }))
    return isSaid ? Effect.void : Effect.logWarning(`the last attempt has failed: ${error.message}`)
  }
}

/**
 * Runs work for as long as it ends with a reason to run it again, and schedule and budget grant another attempt; `first` is how it has ended
 * before. To be run where it cannot be interrupted: an interruptible handler would take from the cause of an interruption what has failed
 * beside it. `restore` is for the work and the pauses; `transactions` are those of the last attempt.
 */
export const retryTransaction = <A, E, R>(
  restore: Restore,
  once: Effect.Effect<A, E, R>,
  reasonFor: (exit: Exit.Exit<A, E>) => Replayable | undefined,
  transactions: () => ReadonlyArray<Transaction>,
  asked: Retry,
  policy: Policy,
  first?: Exit.Exit<A, E>
): Effect.Effect<A, E, R> =>
  Effect.suspend(() => {
    const attempts = new Attempts(policy)
    const schedule = Schedule.mapInput(asked === true ? policy.transaction : asked, ({ error }: Replayable) => error)
    // a schedule that has ended takes nothing of the budget
    const granted = Schedule.whileInput(schedule, (reason) => attempts.take(reason))
    return Effect.flatMap(Schedule.driver(granted), (driver) => {
      const goOn = (exit: Exit.Exit<A, E>): Effect.Effect<A, E, R> => {
        const reason = reasonFor(exit)
        if (reason === undefined) {
          if (isServed(exit, transactions())) attempts.giveBack()
          return exit
        }
        return Effect.matchCauseEffect(restore(driver.next(reason)), {
          // the schedule has ended, or the pause was interrupted: what the attempt has failed with, such as an unknown outcome, is kept
          onFailure: (cause) =>
            Either.match(Cause.failureOrCause(cause), {
              onLeft: () => Effect.zipRight(attempts.end(reason), exit),
              onRight: (gone) => Effect.failCause(Exit.isFailure(exit) ? Cause.sequential(exit.cause, gone) : gone)
            }),
          onSuccess: () => attempt
        })
      }
      const attempt = Effect.flatMap(Effect.exit(restore(once)), goOn)
      return first === undefined ? attempt : goOn(first)
    })
  })

/** An open unit of work, as far as its repetition needs to know it. */
interface Opened {
  readonly unit: Unit
  readonly isRolledBack: boolean
}

/** Runs it in a new unit each time, as {@link retryTransaction}; `failed` is how the first has ended, where it was run already. */
export const retryUnit = <O extends Opened, A, E, R>(
  restore: Restore,
  open: () => O,
  once: (opened: O) => Effect.Effect<A, E, R>,
  asked: Retry,
  failed?: { readonly opened: O; readonly cause: Cause.Cause<E> }
): Effect.Effect<A, E, R> =>
  Effect.withFiberRuntime((fiber) => {
    const policy = Context.get(fiber.currentContext, RetryPolicy)
    let opened = failed?.opened
    let attempt = failed === undefined ? 0 : 1
    const next = Effect.suspend(() => {
      opened = open()
      opened.unit.attempt = ++attempt
      return once(opened)
    })
    const reasonFor = (exit: Exit.Exit<A, E>): Replayable | undefined => {
      if (opened === undefined) return undefined
      const { isRolledBack, unit } = opened
      const cause = Exit.isFailure(exit) ? exit.cause : Cause.empty
      // a success may be one that its outcome has undone
      return Exit.isFailure(exit) || isRolledBack
        ? replayableUnit(unit, reasonOf(unit.failures, cause), cause)
        : undefined
    }
    const first = failed === undefined ? undefined : Exit.failCause(failed.cause)
    return retryTransaction(restore, next, reasonFor, () => opened?.unit.begun ?? [], asked, policy, first)
  })
