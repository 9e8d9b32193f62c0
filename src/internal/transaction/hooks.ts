/**
 * What is done at the end of a transaction, by whoever has asked for it inside of it.
 */
import { TransactionConnection } from "@effect/sql/SqlClient"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import { Observation } from "../../Observation.js"
import type { Role } from "../../Topology.js"
import type { Options } from "../../Transaction.js"
import type { Restore } from "../edge/cancellable.js"
import type { WorkLabel } from "../statement/workLabel.js"
import { currentContext, type TransactionContext } from "./context.js"
import { slotOf, withoutSlot } from "./contextSlot.js"
import type { LevelState } from "./level.js"
import type { Origin, Transaction } from "./transaction.js"

/** An origin that begins transactions. */
export interface TransactionFactory extends Origin {
  readonly begin: (
    kind: Role,
    options: Options,
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined,
    site: undefined,
    work: WorkLabel | undefined
  ) => Transaction
}

/**
 * `afterEnd`: an `afterRollback` of what was undone inside, which waits for the end of the whole. `whenStored`: for what is stored, or may be,
 * whatever becomes of other databases.
 */
export type HookKind = RegisteredHook | "afterEnd" | "whenStored"

/** The kinds that a program registers. */
export type RegisteredHook = "beforeCommit" | "afterCommit" | "afterRollback" | "afterUnknown"

/** Something to be done at the end of a transaction. */
export interface Hook {
  readonly kind: HookKind
  /** Of all hooks: hooks of several databases run in the order in which they were registered. */
  readonly order: number
  /** What it does, in the context in which it was registered but for the transaction slot. */
  readonly run: (slot: TransactionContext["slot"] | undefined) => Effect.Effect<unknown, unknown>
}

/** Returns a hook as it is left to the transaction around its own, when that is kept or undone; `undefined` if it is dropped with it. */
export const passedOn = (hook: Hook, isKept: boolean): Hook | undefined =>
  isKept ? hook : hook.kind === "afterRollback" || hook.kind === "afterEnd" ? { ...hook, kind: "afterEnd" } : undefined

/** Takes the hooks that are to run after the end of a transaction. */
const due = (transaction: Transaction, isWhole: boolean): ReadonlyArray<Hook> => {
  const { state } = transaction.level
  if (transaction.outer !== undefined) {
    transaction.passHooksOn(state === "committed")
    return none
  }
  if (state === "unknown") return transaction.takeHooks("afterUnknown", "afterEnd", "whenStored")
  if (state === "committed" && isWhole) return transaction.takeHooks("afterCommit", "afterEnd", "whenStored")
  if (state === "committed" && transaction.stores) return transaction.takeHooks("afterEnd", "whenStored")
  // what has stored nothing is undone with the rest
  return transaction.takeHooks("afterRollback", "afterEnd")
}

const none: ReadonlyArray<never> = []

/**
 * Runs the hooks that follow the end of transactions, in the order in which they were registered, or leaves them to those around these. They
 * do not fail: they report.
 */
export const runAfterHooks = (
  transactions: ReadonlyArray<Transaction>,
  restore: Restore | undefined,
  /** Whether all that was to be committed with them is. */
  isWhole = true
): Effect.Effect<void> =>
  Effect.suspend(() => {
    const hooks = transactions
      .flatMap((transaction) => due(transaction, isWhole).map((hook) => ({ hook, origin: transaction.origin })))
      .sort((a, b) => a.hook.order - b.hook.order)
    let isInterruptible = restore
    return Effect.forEach(
      hooks,
      ({ hook, origin }) => {
        const run = report(origin, hook)
        if (isInterruptible === undefined) return run
        let begun = false
        const begin = Effect.suspend(() => {
          begun = true
          return run
        })
        return Effect.catchAllCause(isInterruptible(begin), () => {
          // interrupted in this one, or before it could begin; the rest have to run all the same
          isInterruptible = undefined
          return begun ? Effect.void : run
        })
      },
      { discard: true }
    )
  })

const report = (origin: Origin, hook: Hook): Effect.Effect<void> =>
  Effect.catchAllCause(Effect.asVoid(hook.run(undefined)), (cause) => {
    if (Cause.isInterruptedOnly(cause)) return Effect.interrupt
    const { database, observer } = origin
    const name = hook.kind === "afterCommit" || hook.kind === "afterUnknown" ? hook.kind : "afterRollback"
    if (observer.active)
      observer.observe(Observation.HookFailed({ database, hook: name, message: Cause.pretty(cause) }))
    return Effect.logError(`database "${database}": an ${name} hook failed`, cause)
  })

let registrations = 0

/** Tells whether a hook runs at once that is registered after the end of its transaction; without one everything is committed. */
const isDue = (kind: RegisteredHook, state: LevelState): boolean => {
  if (state === "committed") return kind === "beforeCommit" || kind === "afterCommit"
  return kind === (state === "unknown" ? "afterUnknown" : "afterRollback")
}

/**
 * Registers a hook with the innermost transaction of a database, or with the unit of work that is going to begin one; without either
 * `afterCommit` runs at once, for everything is committed.
 */
export const registerHook = <E, R>(
  origin: TransactionFactory,
  kind: RegisteredHook,
  hook: Effect.Effect<unknown, E, R>
): Effect.Effect<void, never, R> =>
  Effect.withFiberRuntime((fiber) => {
    const ambient = currentContext(fiber)
    const found = ambient?.find(origin, "writer")
    const around = fiber.currentContext
    // R is in the fiber's context, because this effect asks for it
    const context = withoutSlot(around as Context.Context<R>)
    const registered: Hook = {
      kind,
      order: ++registrations,
      run: (slot) =>
        Effect.mapInputContext(hook, () =>
          slot === undefined ? context : Context.add(context, TransactionConnection, slotOf(around, slot[0]))
        )
    }
    const open = found !== undefined && found !== "none" && found.level.state === "open"
    if (open) {
      found.addHook(registered)
      return Effect.void
    }
    // what names it may throw: here it is seen, at the end it would keep the others from theirs
    const work = ambient?.work(fiber)
    const begin = (options: Options) => origin.begin("writer", options, fiber, ambient, undefined, work)
    if (found === undefined && ambient?.addHook(origin, registered, begin) === true) return Effect.void
    const state = found === undefined || found === "none" ? "committed" : found.level.state
    return isDue(kind, state) ? report(origin, registered) : Effect.void
  })
