/**
 * The completion of a transaction: COMMIT or ROLLBACK, and the hooks before and after it.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import { type CommitOutcomeUnknown, CommitVetoed, TransactionBusy, type TransactionError } from "../../DatabaseError.js"
import { Observation } from "../../Observation.js"
import { setResolve } from "../edge/annotateError.js"
import { cancellableWithin, type Restore } from "../edge/cancellable.js"
import { toDatabaseError } from "../edge/databaseError.js"
import { runAfterHooks } from "./afterHooks.js"
import type { TransactionContext } from "./context.js"
import { checkLevel, commitLevel } from "./levelCommit.js"
import { rollbackLevel } from "./levelRollback.js"
import type { ProvedOutcome } from "./resolution.js"
import type { Transaction } from "./transaction.js"

/**
 * Checks whether a transaction is a savepoint of the program. The work of a savepoint is stored
 * with the transaction around it.
 */
export const isSavepoint = ({ outer }: Transaction): boolean => outer !== undefined

/**
 * Commits a transaction, or rolls it back if that fails, and runs the hooks after its end. `wrap`
 * converts the failure.
 */
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
 * Sends COMMIT, or RELEASE for a savepoint. If the answer is lost, the outcome is asked for. If the
 * caller is interrupted after the command was sent, the answer, or the outcome, is awaited for up
 * to 500 ms. If the outcome is still unknown then, `CommitOutcomeUnknown` is added to the
 * interruption. With `countsAsUndone`, an interrupted caller regards the savepoint as undone, so if
 * it was released, the level around it can only be rolled back.
 */
export const sendCommit = (
  transaction: Transaction,
  restore: Restore,
  countsAsUndone = false
): Effect.Effect<void, TransactionError> =>
  cancellableWithin(restore, (resume) => {
    const giveUp = startCommit(transaction, resume)
    return () => Effect.async((onEnded) => giveUp((unknown) => onEnded(unknown), countsAsUndone))
  })

/**
 * Starts to commit, and passes the result to `resume`. The returned function gives up for an
 * interrupted caller. It calls `onEnded` with a failure to add to the interruption if the outcome
 * is unknown, else with success.
 */
const startCommit = (
  transaction: Transaction,
  resume: (ended: Effect.Effect<void, TransactionError>) => void
): ((onEnded: (unknown: Effect.Effect<void, TransactionError>) => void, countsAsUndone: boolean) => void) => {
  transaction.span?.ends(transaction.outer === undefined ? "commit" : "savepoint")
  let ended: Effect.Effect<void, TransactionError> = Effect.void
  const giveUp = commitLevel(transaction.level, (failure) => {
    const { state } = transaction.level
    const error = failure === undefined ? undefined : toDatabaseError(failure)
    if (error?._tag === "CommitOutcomeUnknown") addResolve(transaction, error)
    // in any other state, another caller has ended the transaction and observed that, or it is
    // still open
    if (error === undefined || state === "failed" || state === "unknown") observe(transaction, error)
    ended = error === undefined ? Effect.void : Effect.fail(error)
    resume(ended)
  })
  return (onEnded, countsAsUndone) =>
    giveUp(() => onEnded(transaction.level.state === "unknown" ? ended : Effect.void), countsAsUndone)
}

/** Adds the effect that asks for the outcome again, if it can be proved. */
const addResolve = ({ level }: Transaction, error: CommitOutcomeUnknown): void => {
  const { prove } = level.connectionHolder
  if (prove === undefined) return
  const resolve = Effect.async<ProvedOutcome, CommitOutcomeUnknown>((resume) => {
    const giveUp = prove((outcome) => resume(outcome === undefined ? Effect.fail(error) : Effect.succeed(outcome)))
    return Effect.sync(giveUp)
  })
  setResolve(error, resolve)
}

/**
 * Makes the server check the deferred constraints now, and not at COMMIT. This also fails if the
 * transaction can only be rolled back. A transaction that has not begun has nothing to check.
 */
export const checkConstraints = (transaction: Transaction): Effect.Effect<void, TransactionError> =>
  Effect.async((resume) => {
    const giveUp = checkLevel(transaction.level, (failure) =>
      resume(failure === undefined ? Effect.void : Effect.fail(toDatabaseError(failure)))
    )
    return Effect.sync(giveUp)
  })

/**
 * Commits for a caller that was interrupted. This waits up to 500 ms for the answer and cannot be
 * interrupted. If another operation holds the lock of the level, this fails with `TransactionBusy`.
 * `countsAsUndone` is as for {@link sendCommit}.
 */
export const commitUninterruptibly = (
  transaction: Transaction,
  countsAsUndone = false
): Effect.Effect<void, TransactionError> =>
  Effect.async((resume) => {
    const { level } = transaction
    const giveUp = startCommit(transaction, resume)
    giveUp(() => {
      if (level.state === "open")
        resume(Effect.fail(new TransactionBusy({ ...level.connectionHolder.location, waitedMillis: 0 })))
    }, countsAsUndone)
  })

/**
 * Rolls back a transaction if it is open. Without `restore` the caller was interrupted, and the
 * timeout is shorter.
 */
const rollBack = (transaction: Transaction, restore: Restore | undefined): Effect.Effect<void> =>
  Effect.suspend(() => {
    const { level } = transaction
    if (level.state !== "open") return Effect.void
    transaction.span?.ends("rollback")
    return Effect.async<void>((resume) =>
      rollbackLevel(
        level,
        () => {
          observe(transaction)
          resume(Effect.void)
        },
        restore === undefined ? "interrupted" : "default"
      )
    )
  })

/**
 * Rolls back a transaction if it is open, and runs the hooks after its end. The hooks can be
 * interrupted only with `restore`.
 */
export const rollback = (transaction: Transaction, restore: Restore | undefined): Effect.Effect<void> =>
  Effect.suspend(() => {
    const rolledBack = rollBack(transaction, restore)
    return transaction.hasHooks ? Effect.zipRight(rolledBack, runAfterHooks([transaction], restore)) : rolledBack
  })

/**
 * Rolls back transactions concurrently, then runs the hooks after their ends. `committed` are the
 * transactions of the same unit that were committed before; their hooks run together with the
 * others, in the order of registration.
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

/** Ends the span of a transaction, and reports its end to the observers. */
export const observe = (transaction: Transaction, error?: TransactionError | undefined): void => {
  const { level, options, origin } = transaction
  transaction.span?.end(outcomes[level.state], error)
  if (!origin.observer.active || level.parent !== undefined) return
  const { database, server } = level.connectionHolder.location
  origin.observer.observe(
    Observation.TransactionEnded({
      database,
      server,
      outcome: outcomes[level.state],
      label: options.label,
      tookMillis: transaction.age
    })
  )
}

/**
 * Runs the `beforeCommit` hooks of the open transactions, then those that the hooks have
 * registered, also in transactions that the hooks have begun. If a hook fails, all transactions are
 * rolled back, and the failure is `CommitVetoed`. The hooks of a savepoint run before the COMMIT of
 * the transaction around it.
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
              : Effect.fail(
                  new CommitVetoed({ ...transaction.level.connectionHolder.location, cause: Cause.squash(cause) })
                )
        ),
      { discard: true }
    )
    return Effect.matchCauseEffect(all, {
      onFailure: (cause) =>
        Effect.zipRight(
          Effect.suspend(() => {
            const interruptible = Cause.isInterrupted(cause) ? undefined : restore
            return rollbackAll(open(), interruptible)
          }),
          Effect.failCause(cause)
        ),
      onSuccess: () => runBeforeCommitHooks(open, ambient, restore)
    })
  })
