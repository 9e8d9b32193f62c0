/**
 * How a transaction ends: kept or undone, and what is done then.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import { CommitVetoed, TransactionBusy, type TransactionError } from "../../DatabaseError.js"
import { Observation } from "../../Observation.js"
import { cancellableWithin, type Restore } from "../edge/cancellable.js"
import type { TransactionContext } from "./context.js"
import { runAfterHooks } from "./hooks.js"
import type { Transaction } from "./transaction.js"

/** Tells whether the end of a transaction is left to that of another. */
export const isSavepoint = ({ outer }: Transaction): boolean => outer !== undefined

/** Commits and runs the hooks; where it cannot be committed, undoes it. */
export const commitAndRunHooks = <X>(
  transaction: Transaction,
  restore: Restore,
  wrap: (error: TransactionError) => X
): Effect.Effect<void, X> =>
  Effect.matchCauseEffect(sendCommit(transaction, restore, isSavepoint(transaction)), {
    onFailure: (cause) =>
      Effect.zipRight(
        rollback(transaction, Cause.isInterrupted(cause) ? undefined : restore),
        Effect.failCause(Cause.map(cause, wrap))
      ),
    onSuccess: () => (transaction.hasHooks ? runAfterHooks([transaction], restore) : Effect.void)
  })

/**
 * Sends COMMIT, or RELEASE. An interruption after it was sent waits for the answer, within a second; where none comes, its cause holds
 * `CommitOutcomeUnknown`, too. With `takesBack` it is that of a savepoint which its caller takes for undone.
 */
export const sendCommit = (
  transaction: Transaction,
  restore: Restore,
  takesBack = false
): Effect.Effect<void, TransactionError> =>
  cancellableWithin(restore, (resume) => {
    const giveUp = commitLevel(transaction, resume)
    return () => Effect.async((settled) => giveUp((unknown) => settled(unknown), takesBack))
  })

/** Commits; the returned function gives up, and its callback gets the failure that an interrupted caller has to know, if there is one. */
const commitLevel = (
  transaction: Transaction,
  resume: (ended: Effect.Effect<void, TransactionError>) => void
): ((settled: (unknown: Effect.Effect<void, TransactionError>) => void, takesBack: boolean) => void) => {
  transaction.span?.ends(transaction.outer === undefined ? "commit" : "savepoint")
  let ended: Effect.Effect<void, TransactionError> = Effect.void
  const giveUp = transaction.level.commit((error) => {
    const { state } = transaction.level
    // one that somebody else has ended was told of then
    if (error === undefined || state === "failed" || state === "unknown") observe(transaction, error)
    ended = error === undefined ? Effect.void : Effect.fail(error)
    resume(ended)
  })
  return (settled, takesBack) =>
    giveUp(() => settled(transaction.level.state === "unknown" ? ended : Effect.void), takesBack)
}

/**
 * Has the server check now what it would check at COMMIT. A transaction that it knows nothing of passes.
 */
export const checkConstraints = (transaction: Transaction): Effect.Effect<void, TransactionError> =>
  Effect.async((resume) => {
    const giveUp = transaction.level.check((error) => resume(error === undefined ? Effect.void : Effect.fail(error)))
    return Effect.sync(giveUp)
  })

/**
 * Commits for a caller who is not there any more, within a second: it cannot be interrupted, and it does not wait for a turn. `takesBack` is
 * as for {@link sendCommit}.
 */
export const commitUninterruptibly = (
  transaction: Transaction,
  takesBack = false
): Effect.Effect<void, TransactionError> =>
  Effect.async((resume) => {
    const { level } = transaction
    const giveUp = commitLevel(transaction, resume)
    giveUp(() => {
      if (level.state === "open") resume(Effect.fail(new TransactionBusy({ ...level.link.place, waited: 0 })))
    }, takesBack)
  })

/** Rolls back what is still open; in a hurry where `restore` is not given. */
const rollBack = (transaction: Transaction, restore: Restore | undefined): Effect.Effect<void> =>
  Effect.suspend(() => {
    const { level } = transaction
    if (level.state !== "open") return Effect.void
    transaction.span?.ends("rollback")
    return Effect.async<void>((resume) =>
      level.rollback(
        () => {
          observe(transaction)
          resume(Effect.void)
        },
        restore === undefined ? "interrupted" : "default"
      )
    )
  })

/**
 * Rolls back what is still open and runs the hooks of its end, interruptibly where `restore` is given.
 */
export const rollback = (transaction: Transaction, restore: Restore | undefined): Effect.Effect<void> =>
  Effect.suspend(() => {
    const rolledBack = rollBack(transaction, restore)
    return transaction.hasHooks ? Effect.zipRight(rolledBack, runAfterHooks([transaction], restore)) : rolledBack
  })

/**
 * Rolls back all at once, then runs the hooks of all, in the order in which they were registered; with those of what was to be committed with
 * them, and is.
 */
export const rollbackAll = (
  transactions: ReadonlyArray<Transaction>,
  restore: Restore | undefined,
  committed: ReadonlyArray<Transaction> = []
): Effect.Effect<void> => {
  const rolledBack = Effect.forEach(transactions, (transaction) => rollBack(transaction, restore), {
    discard: true,
    concurrency: "unbounded"
  })
  const isWhole = committed.length === 0
  return Effect.zipRight(rolledBack, runAfterHooks([...committed, ...transactions], restore, isWhole))
}

const outcomes = {
  open: "failed",
  committed: "committed",
  rolledBack: "rolledBack",
  failed: "failed",
  unknown: "unknown"
} as const

const observe = (transaction: Transaction, error?: TransactionError | undefined): void => {
  const { level, options, origin } = transaction
  transaction.span?.end(outcomes[level.state], error)
  if (!origin.observer.active || level.parent !== undefined) return
  const { database, server } = level.link.place
  origin.observer.observe(
    Observation.TransactionEnded({
      database,
      server,
      outcome: outcomes[level.state],
      label: options.label,
      took: transaction.age
    })
  )
}

/**
 * Runs the `beforeCommit` hooks, and those that they register, also on databases that they are the first to touch. Where one fails all
 * is undone.
 */
export const runBeforeCommitHooks = (
  open: () => ReadonlyArray<Transaction>,
  ambient: TransactionContext,
  restore: Restore | undefined
): Effect.Effect<void, TransactionError> =>
  Effect.suspend(() => {
    const hooks = open()
      .flatMap((transaction) =>
        transaction.outer === undefined
          ? transaction.takeHooks("beforeCommit").map((hook) => ({ hook, transaction }))
          : []
      )
      .sort((a, b) => a.hook.order - b.hook.order)
    if (hooks.length === 0) return Effect.void
    const all = Effect.forEach(
      hooks,
      ({ hook, transaction }) =>
        Effect.catchAllCause(
          restore === undefined ? hook.run(ambient.slot) : restore(hook.run(ambient.slot)),
          (cause) =>
            Cause.isInterruptedOnly(cause)
              ? Effect.interrupt
              : Effect.fail(new CommitVetoed({ ...transaction.level.link.place, cause: Cause.squash(cause) }))
        ),
      { discard: true }
    )
    return Effect.matchCauseEffect(all, {
      onFailure: (cause) =>
        Effect.zipRight(
          Effect.suspend(() => {
            const heard = Cause.isInterrupted(cause) ? undefined : restore
            return rollbackAll(open(), heard)
          }),
          Effect.failCause(cause)
        ),
      onSuccess: () => runBeforeCommitHooks(open, ambient, restore)
    })
  })
