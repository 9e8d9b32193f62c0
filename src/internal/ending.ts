/**
 * How a transaction ends: kept or undone, and what is done then.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import { CommitVetoed, TransactionBusy, type TransactionError } from "../DatabaseError.js"
import { Observation } from "../Observation.js"
import type { Transaction } from "../Transaction.js"
import { cancellableWithin, type Restore } from "./cancellable.js"
import type { Carrier } from "./carrier.js"
import { after } from "./hooks.js"

/** Commits and runs the hooks; where it cannot be committed, undoes it. */
export const keep = <X>(
  transaction: Transaction,
  restore: Restore,
  wrap: (error: TransactionError) => X
): Effect.Effect<void, X> =>
  Effect.matchCauseEffect(commit(transaction, restore), {
    onFailure: (cause) =>
      Effect.zipRight(
        undo(transaction, Cause.isInterrupted(cause) ? undefined : restore),
        Effect.failCause(Cause.map(cause, wrap))
      ),
    onSuccess: () => (transaction.hasHooks ? after(transaction, restore) : Effect.void)
  })

/**
 * Sends COMMIT, or RELEASE. An interruption after it was sent waits for the answer, within a second.
 */
export const commit = (transaction: Transaction, restore: Restore): Effect.Effect<void, TransactionError> =>
  cancellableWithin(restore, (resume) => {
    const giveUp = commitLevel(transaction, resume)
    return () => Effect.async<void>((settled) => giveUp(() => settled(Effect.void)))
  })

const commitLevel = (
  transaction: Transaction,
  resume: (ended: Effect.Effect<void, TransactionError>) => void
): ((settled: () => void) => void) => {
  transaction.span?.ends(transaction.outer === undefined ? "commit" : "savepoint")
  return transaction.level.commit((error) => {
    const { state } = transaction.level
    // one that somebody else has ended was told of then
    if (error === undefined || state === "failed" || state === "unknown") observe(transaction, error)
    resume(error === undefined ? Effect.void : Effect.fail(error))
  })
}

/**
 * Has the server check now what it would check at COMMIT. A transaction that it knows nothing of passes.
 */
export const check = (transaction: Transaction): Effect.Effect<void, TransactionError> =>
  Effect.async((resume) => {
    const giveUp = transaction.level.check((error) => resume(error === undefined ? Effect.void : Effect.fail(error)))
    return Effect.sync(giveUp)
  })

/**
 * Commits for a caller who is not there any more, within a second: it cannot be interrupted, and it does not wait for a turn.
 */
export const commitSoon = (transaction: Transaction): Effect.Effect<void, TransactionError> =>
  Effect.async((resume) => {
    const { level } = transaction
    const giveUp = commitLevel(transaction, resume)
    giveUp(() => {
      if (level.state === "open") resume(Effect.fail(new TransactionBusy({ ...level.link.place, waited: 0 })))
    })
  })

/**
 * Rolls back what is still open and runs the hooks of its end, interruptibly where `restore` is given.
 */
export const undo = (transaction: Transaction, restore: Restore | undefined): Effect.Effect<void> =>
  Effect.suspend(() => {
    const { level } = transaction
    if (level.state === "open") transaction.span?.ends("rollback")
    const rolledBack =
      level.state !== "open"
        ? Effect.void
        : Effect.async<void>((resume) =>
            level.rollback(
              () => {
                observe(transaction)
                resume(Effect.void)
              },
              restore === undefined ? "hurried" : "usual"
            )
          )
    return transaction.hasHooks ? Effect.zipRight(rolledBack, after(transaction, restore)) : rolledBack
  })

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
export const veto = (
  open: () => ReadonlyArray<Transaction>,
  carrier: Carrier,
  restore: Restore | undefined
): Effect.Effect<void, TransactionError> =>
  Effect.suspend(() => {
    const hooks = open().flatMap((transaction) =>
      transaction.outer === undefined
        ? transaction.takeHooks("beforeCommit").map((hook) => ({ hook, transaction }))
        : []
    )
    if (hooks.length === 0) return Effect.void
    const all = Effect.forEach(
      hooks,
      ({ hook, transaction }) =>
        Effect.catchAllCause(
          restore === undefined ? hook.run(carrier.slot) : restore(hook.run(carrier.slot)),
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
            return Effect.forEach(open(), (_) => undo(_, heard), { discard: true, concurrency: "unbounded" })
          }),
          Effect.failCause(cause)
        ),
      onSuccess: () => veto(open, carrier, restore)
    })
  })
