/**
 * The end of several transactions: all are checked, and then committed one after the other, or
 * rolled back.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { identity } from "effect/Function"
import { PartialCommit, type TransactionError } from "../../DatabaseError.js"
import type { Restore } from "../edge/cancellable.js"
import { toDatabaseError } from "../edge/databaseError.js"
import { runAfterHooks } from "../transaction/afterHooks.js"
import {
  checkConstraints,
  commitAndRunHooks,
  commitUninterruptibly,
  isSavepoint,
  rollbackAll,
  runBeforeCommitHooks,
  sendCommit
} from "../transaction/completion.js"
import type { TransactionContext } from "../transaction/context.js"
import { rolledBackAtCommit } from "../transaction/levelFailure.js"
import { rollbackNested } from "../transaction/levelRollback.js"
import type { Transaction } from "../transaction/transaction.js"
import type { CommitOptions } from "./commitOptions.js"
import { inCommitOrder } from "./commitOrder.js"
import { commitTwoPhase } from "./commitTwoPhase.js"
import type { Unit } from "./unit.js"

/**
 * Makes the transactions around released savepoints end in rollback, because the part that has set
 * the savepoints has failed at its end.
 */
const undoReleased = (done: ReadonlyArray<Transaction>, cause: Cause.Cause<TransactionError>): void => {
  for (const { options, outer } of done) {
    outer?.level.markUndone({ part: options.label ?? "nested, over several databases", cause: Cause.squash(cause) })
  }
}

const storedOf = (committed: ReadonlyArray<Transaction>): ReadonlyArray<Transaction> =>
  committed.filter((_) => _.stores && !isSavepoint(_))

const namesOf = (transactions: ReadonlyArray<Transaction>) => transactions.map((_) => _.origin.database)

/**
 * Returns the cause of a failed COMMIT, or `PartialCommit` with this cause if other databases of
 * the group are stored already.
 */
const withPartialCommit = (
  committed: ReadonlyArray<Transaction>,
  failed: Transaction,
  rest: ReadonlyArray<Transaction>,
  cause: Cause.Cause<TransactionError>
): Cause.Cause<TransactionError> => {
  const stored = storedOf(committed)
  if (stored.length === 0) return cause
  const error = Cause.failureOption(cause)
  const failure = Cause.fail(
    new PartialCommit({
      ...failed.level.connectionHolder.location,
      ...(error._tag === "None" ? {} : { cause: error.value }),
      committed: namesOf(stored),
      failed: failed.origin.database,
      outcome: failed.level.state === "unknown" ? "unknown" : "rolledBack",
      rolledBack: namesOf(rest)
    })
  )
  return Cause.isInterrupted(cause) ? Cause.sequential(Cause.stripFailures(cause), failure) : failure
}

/**
 * Checks the transactions that store work, before any COMMIT. The first is left out, because
 * nothing is stored yet when its own COMMIT checks it. If a constraint is violated, a transaction
 * aborted or a connection lost, all transactions are rolled back.
 */
const checkAll = (
  transactions: ReadonlyArray<Transaction>,
  restore: Restore | undefined
): Effect.Effect<void, TransactionError> => {
  const storing = transactions.filter((_) => _.stores)
  if (storing.length < 2) return Effect.void
  // each check is awaited, because an interrupted check closes its connection
  const checks = Effect.flatMap(
    Effect.forEach(storing.slice(1), (_) => Effect.exit(checkConstraints(_)), { concurrency: "unbounded" }),
    (exits) => {
      // a transaction that has passed may have lost its connection while another was still checked
      const lost = storing.map(({ level }) => level.connectionHolder.lost).find((failure) => failure !== undefined)
      return exits.find(Exit.isFailure) ?? (lost === undefined ? Effect.void : Effect.fail(toDatabaseError(lost)))
    }
  )
  return Effect.catchAllCause(restore === undefined ? checks : restore(checks), (cause) =>
    Effect.zipRight(
      rollbackAll(transactions, Cause.isInterrupted(cause) ? undefined : restore),
      Effect.failCause(cause)
    )
  )
}

/**
 * Commits the transactions one after the other. After a failure the rest is rolled back, and the
 * error names the databases that were committed before.
 *
 * An interruption has an effect only before the first COMMIT. After that the other COMMITs follow,
 * for up to 500 ms each, so that the interruption does not store a part of the work. If only
 * savepoints have work, the transactions around them must end in rollback then, because the
 * interrupted caller regards the savepoints as undone.
 */
const commitAll = (
  transactions: ReadonlyArray<Transaction>,
  restore: Restore | undefined
): Effect.Effect<void, TransactionError> => {
  const step = (
    i: number,
    interruption: Cause.Cause<TransactionError> | undefined
  ): Effect.Effect<void, TransactionError> => {
    const transaction = transactions[i]
    const isNothingStored = storedOf(transactions.slice(0, i)).length === 0
    if (transaction === undefined) {
      // savepoints that were released before their caller was interrupted
      if (interruption !== undefined && isNothingStored)
        for (const { level } of transactions.filter(isSavepoint)) level.undoReleased()
      const hooks = runAfterHooks(transactions, interruption === undefined ? restore : undefined)
      return interruption === undefined ? hooks : Effect.zipRight(hooks, Effect.failCause(interruption))
    }
    const isUninterruptible = restore === undefined || interruption !== undefined
    const countsAsUndone = isNothingStored && isSavepoint(transaction)
    const ended = isUninterruptible
      ? commitUninterruptibly(transaction, countsAsUndone && interruption !== undefined)
      : sendCommit(transaction, restore, countsAsUndone)
    return Effect.matchCauseEffect(ended, {
      onSuccess: () => step(i + 1, interruption),
      onFailure: (cause) => {
        const { state } = transaction.level
        const isInterrupted = Cause.isInterrupted(cause)
        if (isInterrupted && state === "committed") return step(i + 1, cause)
        if (isInterrupted && state === "open" && i > 0 && !isUninterruptible) return step(i, cause)
        const done = transactions.slice(0, i)
        const rest = transactions.slice(i)
        const failure = withPartialCommit(done, transaction, rest.slice(1), cause)
        undoReleased(done, cause)
        const interruptible = isInterrupted || interruption !== undefined ? undefined : restore
        return Effect.zipRight(rollbackAll(rest, interruptible, done), Effect.failCause(failure))
      }
    })
  }
  return Effect.suspend(() => step(0, undefined))
}

/** Transactions that are committed together. */
export interface CommitGroup {
  readonly unit: Unit
  /** The transaction context that the hooks run in. */
  readonly context: TransactionContext
  /** Begins the transactions that have nothing but hooks, and returns all. */
  readonly beginAll: () => ReadonlyArray<Transaction>
  /** True if the unit continues after this end. */
  readonly isEarly: boolean
  /**
   * Returns the effect to run instead, if another end is in progress. It is called when this end
   * begins, because the runtime may run another fiber between an earlier check and this end.
   */
  readonly otherEnd: () => Effect.Effect<void, TransactionError> | undefined
  /**
   * Called with the transactions after the last `beforeCommit` hook, before the first COMMIT: later
   * statements must not use them. If the end is early or has hooks, it is called again at the end,
   * also after a failure.
   */
  readonly close: (all: ReadonlyArray<Transaction>) => void
}

/**
 * Runs the `beforeCommit` hooks, which may use further databases, then commits all transactions, or
 * rolls them back if a part of one was undone. It must run in an uninterruptible region.
 */
export const finish = (
  { beginAll, close, context, isEarly, otherEnd, unit }: CommitGroup,
  { checked, isTwoPhase, leavesForks, order }: CommitOptions,
  restore: Restore | undefined
): Effect.Effect<void, TransactionError> =>
  Effect.suspend(() => {
    const other = otherEnd()
    if (other !== undefined) return other
    const leaveForks = (transactions: ReadonlyArray<Transaction>) => {
      if (leavesForks && !isEarly) for (const { level } of transactions) rollbackNested(level)
    }
    const commit = (transactions: ReadonlyArray<Transaction>) => {
      const ordered = inCommitOrder(transactions, order)
      close(ordered)
      leaveForks(ordered)
      const undone = ordered.find(({ level }) => level.undone !== undefined)
      if (undone !== undefined)
        return Effect.zipRight(
          rollbackAll(ordered, restore),
          Effect.fail(toDatabaseError(rolledBackAtCommit(undone.level)))
        )
      const inTwoPhases = isTwoPhase ? commitTwoPhase(ordered, unit.writesAround, restore) : undefined
      if (inTwoPhases !== undefined) return inTwoPhases
      const [only] = ordered
      if (only !== undefined && ordered.length === 1 && restore !== undefined)
        return commitAndRunHooks(only, restore, identity)
      const committed = commitAll(ordered, restore)
      return checked && ordered.length > 1 ? Effect.zipRight(checkAll(ordered, restore), committed) : committed
    }
    const begun = beginAll()
    const hasHooks = begun.some((transaction) => transaction.hasHooks)
    if (!hasHooks && !isEarly) return commit(begun)
    // the statements of hooks must not wait for forks either
    leaveForks(begun)
    const seen = new Set(begun)
    let isAgreed = false
    // a hook may be the first to use a database; a transaction that is rolled back meanwhile stays
    // in the set, so that the end does not count as a success
    const transactions = () => {
      if (!isAgreed) for (const transaction of beginAll()) seen.add(transaction)
      return [...seen]
    }
    const end = unit.beginEnd(transactions)
    const agreed = Effect.suspend(() => {
      const ending = transactions()
      isAgreed = true
      return commit(ending)
    })
    // the end is also over if a hook fails or is interrupted
    const over = Effect.sync(() => {
      close([...seen])
      unit.endIsOver(end)
    })
    const runsHooks = hasHooks && begun.every(({ level }) => level.undone === undefined)
    return Effect.ensuring(
      runsHooks ? Effect.zipRight(runBeforeCommitHooks(transactions, context, restore), agreed) : agreed,
      over
    )
  })
