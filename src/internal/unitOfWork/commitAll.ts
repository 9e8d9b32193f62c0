/**
 * The end of several transactions: checked together, committed one after the other, or undone.
 */
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberId from "effect/FiberId"
import { identity } from "effect/Function"
import { PartialCommit, type TransactionError } from "../../DatabaseError.js"
import type { Restore } from "../edge/cancellable.js"
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
import { runAfterHooks } from "../transaction/hooks.js"
import type { Transaction } from "../transaction/transaction.js"
import type { Order, Unit, UnitOutcome } from "./unitOfWork.js"

/** A COMMIT of serializable work may well be refused, others hardly ever; and a read-only one loses nothing. */
const risk = ({ options, readOnly }: Transaction): number =>
  readOnly ? 2 : options.isolation === "serializable" ? 0 : 1

/** The order of commits. The first may fail without harm, so what is likely to fail comes first. */
const byRisk = (transactions: ReadonlyArray<Transaction>, order: Order): ReadonlyArray<Transaction> => {
  if (order === "touched") return transactions
  const place =
    order === "safest"
      ? risk
      : ({ origin }: Transaction) => {
          const at = order.indexOf(origin.database)
          return at < 0 ? order.length : at
        }
  return [...transactions].sort((a, b) => place(a) - place(b))
}

/** Returns the order of the ends: savepoints come last, because they can still be undone when a COMMIT has failed. */
const inOrder = (transactions: ReadonlyArray<Transaction>, order: Order): ReadonlyArray<Transaction> => {
  if (transactions.length < 2) return transactions
  const ordered = byRisk(transactions, order)
  return ordered.some(isSavepoint)
    ? [...ordered].sort((a, b) => Number(isSavepoint(a)) - Number(isSavepoint(b)))
    : ordered
}

/** Makes what is around released savepoints end in rollback, because the end of their part has failed. */
const undoReleased = (done: ReadonlyArray<Transaction>, cause: Cause.Cause<TransactionError>): void => {
  for (const { options, outer } of done) {
    outer?.level.markUndone({ part: options.label ?? "nested, over several databases", cause: Cause.squash(cause) })
  }
}

const areStored = (committed: ReadonlyArray<Transaction>): ReadonlyArray<Transaction> =>
  committed.filter((_) => _.stores && !isSavepoint(_))

const names = (transactions: ReadonlyArray<Transaction>) => transactions.map((_) => _.origin.database)

/** Says what is stored, where some databases have committed before one did not. */
const partial = (
  committed: ReadonlyArray<Transaction>,
  failed: Transaction,
  rest: ReadonlyArray<Transaction>,
  cause: Cause.Cause<TransactionError>
): Cause.Cause<TransactionError> => {
  const stored = areStored(committed)
  if (stored.length === 0) return cause
  const error = Cause.failureOption(cause)
  const failure = Cause.fail(
    new PartialCommit({
      ...failed.level.link.place,
      ...(error._tag === "None" ? {} : { cause: error.value }),
      committed: names(stored),
      failed: failed.origin.database,
      outcome: failed.level.state === "unknown" ? "unknown" : "rolledBack",
      rolledBack: names(rest)
    })
  )
  return Cause.isInterrupted(cause) ? Cause.sequential(Cause.stripFailures(cause), failure) : failure
}

/**
 * What can be known before the first COMMIT, about all but that first one: a constraint that is checked late, a transaction that a failed
 * statement has aborted, a connection that is gone. Then nothing is stored, instead of a part.
 */
const checkAll = (
  transactions: ReadonlyArray<Transaction>,
  restore: Restore | undefined
): Effect.Effect<void, TransactionError> => {
  const storing = transactions.filter((_) => _.stores)
  if (storing.length < 2) return Effect.void
  // to the end of each: an interrupted one would cost its connection
  const checks = Effect.flatMap(
    Effect.forEach(storing.slice(1), (_) => Effect.exit(checkConstraints(_)), { concurrency: "unbounded" }),
    (exits) => {
      // one that has passed may have lost its connection while another was still checked
      const lost = storing.map(({ level }) => level.link.lost).find((error) => error !== undefined)
      return exits.find(Exit.isFailure) ?? (lost === undefined ? Effect.void : Effect.fail(lost))
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
 * Commits one after the other; a failure rolls the rest back and says what is stored already. An interruption is heard only before the
 * first is committed: after that the rest follow, within a second each, so that nobody leaves a half behind by going away. Where all of
 * them are savepoints, what is around them ends in rollback then, for their caller takes them for undone.
 */
const commitAll = (
  transactions: ReadonlyArray<Transaction>,
  restore: Restore | undefined
): Effect.Effect<void, TransactionError> => {
  const step = (i: number, gone: Cause.Cause<TransactionError> | undefined): Effect.Effect<void, TransactionError> => {
    const transaction = transactions[i]
    const takesBack = areStored(transactions.slice(0, i)).length === 0
    if (transaction === undefined) {
      // those that were released before their caller left
      if (gone !== undefined && takesBack) for (const { level } of transactions.filter(isSavepoint)) level.takeBack()
      const hooks = runAfterHooks(transactions, gone === undefined ? restore : undefined)
      return gone === undefined ? hooks : Effect.zipRight(hooks, Effect.failCause(gone))
    }
    const soon = restore === undefined || gone !== undefined
    const isUndone = takesBack && isSavepoint(transaction)
    const ended = soon
      ? commitUninterruptibly(transaction, isUndone && gone !== undefined)
      : sendCommit(transaction, restore, isUndone)
    return Effect.matchCauseEffect(ended, {
      onSuccess: () => step(i + 1, gone),
      onFailure: (cause) => {
        const { state } = transaction.level
        const left = Cause.isInterrupted(cause)
        if (left && state === "committed") return step(i + 1, cause)
        if (left && state === "open" && i > 0 && !soon) return step(i, cause)
        const done = transactions.slice(0, i)
        const rest = transactions.slice(i)
        const failure = partial(done, transaction, rest.slice(1), cause)
        undoReleased(done, cause)
        const hearing = left || gone !== undefined ? undefined : restore
        // a savepoint that was undone in what is committed is undone all the same
        return Effect.zipRight(rollbackAll(rest, hearing, done), Effect.failCause(failure))
      }
    })
  }
  return Effect.suspend(() => step(0, undefined))
}

/** What is to be committed together. */
export interface CommitGroup {
  readonly unit: Unit
  /** Where the hooks run. */
  readonly ambient: TransactionContext
  readonly all: () => ReadonlyArray<Transaction>
  /** Whether the unit goes on after it. */
  readonly isEarly: boolean
  /** Called with them when all hooks have agreed: from now on nothing may be begun in it. If it is early, or has hooks, also when it is over. */
  readonly close: (all: ReadonlyArray<Transaction>) => void
}

/**
 * Runs the hooks that may veto, which may touch further databases, then commits all. The end begins with the call, so what it gives is to be
 * run at once, and not to be interrupted.
 */
export const finish = (
  { all, ambient, close, isEarly, unit }: CommitGroup,
  { checked, leavesForks, order }: UnitOutcome,
  restore: Restore | undefined
): Effect.Effect<void, TransactionError> => {
  const leaveForks = (transactions: ReadonlyArray<Transaction>) => {
    if (leavesForks && !isEarly) for (const { level } of transactions) level.leaveNested()
  }
  const commits = (transactions: ReadonlyArray<Transaction>) => {
    const ordered = inOrder(transactions, order)
    close(ordered)
    leaveForks(ordered)
    const undone = ordered.find(({ level }) => level.undone !== undefined)
    if (undone !== undefined)
      return Effect.zipRight(rollbackAll(ordered, restore), Effect.fail(undone.level.rolledBackAtCommit()))
    const [only] = ordered
    if (only !== undefined && ordered.length === 1 && restore !== undefined)
      return commitAndRunHooks(only, restore, identity)
    const commits = commitAll(ordered, restore)
    return checked && ordered.length > 1 ? Effect.zipRight(checkAll(ordered, restore), commits) : commits
  }
  const begun = all()
  const hasHooks = begun.some((transaction) => transaction.hasHooks)
  if (!hasHooks && !isEarly) return commits(begun)
  // hooks have statements of their own, which must not wait for them either
  leaveForks(begun)
  const seen = new Set(begun)
  let isAgreed = false
  // a hook may be the first to touch a database; and what somebody rolls back meanwhile is not stored, so this is no success
  const transactions = () => {
    if (!isAgreed) for (const transaction of all()) seen.add(transaction)
    return [...seen]
  }
  const end = { transactions, over: Deferred.unsafeMake<void>(FiberId.none) }
  unit.beginEnd(end)
  const agreed = Effect.suspend(() => {
    const ending = transactions()
    isAgreed = true
    return commits(ending)
  })
  // a hook that fails, or is interrupted, ends it as well
  const over = Effect.suspend(() => {
    close([...seen])
    return unit.endIsOver(end)
  })
  const isAsked = hasHooks && begun.every(({ level }) => level.undone === undefined)
  return Effect.ensuring(
    isAsked ? Effect.zipRight(runBeforeCommitHooks(transactions, ambient, restore), agreed) : agreed,
    over
  )
}
