/**
 * Hooks: actions of a program at the end of a transaction.
 */
import type * as Effect from "effect/Effect"
import type { TransactionContext } from "./context.js"

/** The kinds that a program registers. */
export type RegisteredHook = "beforeCommit" | "afterCommit" | "afterRollback" | "afterUnknown"

/**
 * All kinds. `afterEnd` is an `afterRollback` of an undone savepoint, which waits for the end of
 * the transaction. `whenStored` runs if the work is stored, or may be, regardless of other
 * databases.
 */
export type HookKind = RegisteredHook | "afterEnd" | "whenStored"

/** An action at the end of a transaction. */
export interface Hook {
  readonly kind: HookKind
  /** The order of registration over all databases, in which hooks run. */
  readonly order: number
  /** Runs the hook in the context of its registration, with another transaction slot. */
  readonly run: (slot: TransactionContext["slot"] | undefined) => Effect.Effect<unknown, unknown>
}

/**
 * Returns the hook of an ended savepoint in the form that is passed to the transaction around;
 * `undefined` if it is dropped.
 */
export const passedOn = (hook: Hook, isKept: boolean): Hook | undefined =>
  isKept ? hook : hook.kind === "afterRollback" || hook.kind === "afterEnd" ? { ...hook, kind: "afterEnd" } : undefined
