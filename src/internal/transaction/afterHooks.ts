/**
 * The hooks that run after the end of transactions.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as FiberRef from "effect/FiberRef"
import { Observation } from "../../Observation.js"
import type { Restore } from "../edge/cancellable.js"
import type { Hook, RegisteredHook } from "./hook.js"
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
        if (isInterruptible === undefined) return runToEnd(origin, hook)
        let hasBegun = false
        const begin = Effect.suspend(() => {
          hasBegun = true
          return runReported(origin, hook)
        })
        return Effect.catchAllCause(isInterruptible(begin), (cause) =>
          Effect.flatMap(FiberRef.get(FiberRef.interruptedCause), (interruption) => {
            // there was no interruption from outside, so the hook has interrupted itself
            if (Cause.isEmpty(interruption)) return report(origin, hook, cause)
            // interrupted in this hook or before it; the other hooks must run nevertheless
            isInterruptible = undefined
            return hasBegun ? Effect.void : runToEnd(origin, hook)
          })
        )
      },
      { discard: true }
    )
  })

/**
 * Returns the kind that an observer and the log receive, one of those that a program can register.
 * `whenStored`, a hook of the library, is reported as `afterCommit`.
 */
const registeredKind = ({ kind }: Hook): RegisteredHook =>
  kind === "afterEnd" ? "afterRollback" : kind === "whenStored" ? "afterCommit" : kind

/** Reports the failure of a hook as an observation and in the log. */
const report = ({ database, observer }: Origin, hook: Hook, cause: Cause.Cause<unknown>): Effect.Effect<void> => {
  const kind = registeredKind(hook)
  if (observer.active) observer.observe(Observation.HookFailed({ database, hook: kind, message: Cause.pretty(cause) }))
  return Effect.logError(`database "${database}": a hook failed (${kind})`, cause)
}

/** Runs a hook, and reports its failure. An interruption is no failure, and interrupts the caller. */
export const runReported = (origin: Origin, hook: Hook): Effect.Effect<void> =>
  Effect.catchAllCause(Effect.asVoid(hook.run(undefined)), (cause) =>
    Cause.isInterruptedOnly(cause) ? Effect.interrupt : report(origin, hook, cause)
  )

/**
 * Runs a hook in an uninterruptible caller. An interruption is that of the hook itself, such as an
 * offer to a queue that has shut down, and is reported like a failure.
 */
const runToEnd = (origin: Origin, hook: Hook): Effect.Effect<void> =>
  Effect.catchAllCause(Effect.asVoid(hook.run(undefined)), (cause) => report(origin, hook, cause))
