/**
 * The hooks that run after the end of transactions.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import { Observation } from "../../Observation.js"
import type { Restore } from "../edge/cancellable.js"
import type { Hook } from "./hook.js"
import type { Origin, Transaction } from "./transaction.js"

const none: ReadonlyArray<never> = []

/**
 * Removes the hooks that are due after the end of a transaction, and returns them. A savepoint
 * passes its hooks to the transaction around it instead.
 */
const takeDue = (transaction: Transaction, isWhole: boolean): ReadonlyArray<Hook> => {
  const { state } = transaction.level
  if (transaction.outer !== undefined) {
    transaction.passHooksOn(state === "committed")
    return none
  }
  if (state === "unknown") return transaction.takeHooks("afterUnknown", "afterEnd", "whenStored")
  if (state === "committed" && isWhole) return transaction.takeHooks("afterCommit", "afterEnd", "whenStored")
  if (state === "committed" && transaction.stores) return transaction.takeHooks("afterEnd", "whenStored")
  // a committed transaction that has stored nothing counts as undone if others of its group are
  // undone
  return transaction.takeHooks("afterRollback", "afterEnd")
}

/**
 * Runs the hooks that are due after the end of transactions, in the order of their registration.
 * They can be interrupted only with `restore`. Failures of hooks are reported, and do not fail the
 * effect.
 */
export const runAfterHooks = (
  transactions: ReadonlyArray<Transaction>,
  restore: Restore | undefined,
  /** False if only a part of the group was committed. */
  isWhole = true
): Effect.Effect<void> =>
  Effect.suspend(() => {
    const hooks = transactions
      .flatMap((transaction) => takeDue(transaction, isWhole).map((hook) => ({ hook, origin: transaction.origin })))
      .sort((a, b) => a.hook.order - b.hook.order)
    let isInterruptible = restore
    return Effect.forEach(
      hooks,
      ({ hook, origin }) => {
        const run = runReported(origin, hook)
        if (isInterruptible === undefined) return run
        let hasBegun = false
        const begin = Effect.suspend(() => {
          hasBegun = true
          return run
        })
        return Effect.catchAllCause(isInterruptible(begin), () => {
          // interrupted in this hook or before it; the other hooks must run nevertheless
          isInterruptible = undefined
          return hasBegun ? Effect.void : run
        })
      },
      { discard: true }
    )
  })

/**
 * Runs a hook, and reports its failure as an observation and in the log. An interruption is no such
 * failure, and interrupts the caller.
 */
export const runReported = (origin: Origin, hook: Hook): Effect.Effect<void> =>
  Effect.catchAllCause(Effect.asVoid(hook.run(undefined)), (cause) => {
    if (Cause.isInterruptedOnly(cause)) return Effect.interrupt
    const { database, observer } = origin
    const name = hook.kind === "afterCommit" || hook.kind === "afterUnknown" ? hook.kind : "afterRollback"
    if (observer.active)
      observer.observe(Observation.HookFailed({ database, hook: name, message: Cause.pretty(cause) }))
    return Effect.logError(`database "${database}": an ${name} hook failed`, cause)
  })
