/**
 * Hooks: actions of a program at the end of a transaction.
 */
import type * as Effect from "effect/Effect"
import type { TransactionContext } from "./context.js"

/** The kinds that a program registers. */
export type RegisteredHook = "beforeCommit" | "afterCommit" | "afterRollback" | "afterUnknown"

/**
 * All kinds. `afterEnd` is an `afterRollback` of an undone savepoint: it runs after the end of the
 * transaction, whatever the outcome. `whenStored` runs if the work is stored, or may be, regardless
 * of other databases.
 */
export type HookKind = RegisteredHook | "afterEnd" | "whenStored"

/** An action at the end of a transaction. */
export interface Hook {
  readonly kind: HookKind
  /** The order of registration over all databases, in which hooks run. */
  readonly order: number
  /**
   * Runs the hook in the context of its registration, with the transactions of `slot`, or without
   * any.
   */
  readonly run: (slot: TransactionContext["slot"] | undefined) => Effect.Effect<unknown, unknown>
}

/**
 * Returns the hook that an ended savepoint passes to the transaction around it, if any. An undone
 * savepoint passes only its `afterRollback` hooks, as `afterEnd`.
 */
export const passedOn = (hook: Hook, isKept: boolean): Hook | undefined =>
  isKept ? hook : hook.kind === "afterRollback" || hook.kind === "afterEnd" ? { ...hook, kind: "afterEnd" } : undefined
