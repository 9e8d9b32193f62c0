/**
 * Registration of hooks.
 */
import { TransactionConnection } from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type { Role } from "../../Topology.js"
import type { Options, WorkLabel } from "../../Transaction.js"
import { runReported } from "./afterHooks.js"
import { currentContext, type TransactionContext } from "./context.js"
import type { Hook, RegisteredHook } from "./hook.js"
import type { LevelState } from "./level.js"
import type { Origin, Transaction } from "./transaction.js"
import { slotOf, withoutSlot } from "./transactionSlot.js"

/** Origin that begins transactions. */
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

let registrations = 0

/** A number that no count of registrations reaches. */
const precedence = 2 ** 52

/** Checks if a hook that is registered after the end of its transaction runs at once. */
const isDue = (kind: RegisteredHook | "whenStored", state: LevelState): boolean => {
  if (state === "committed") return kind === "beforeCommit" || kind === "afterCommit" || kind === "whenStored"
  return kind === (state === "unknown" ? "afterUnknown" : "afterRollback")
}

/**
 * Registers a hook with the innermost transaction of a database, or with the unit of work that will
 * begin one. Without either the work counts as committed, so `beforeCommit` and `afterCommit` run
 * at once. After the end of its transaction a hook runs at once if it fits the outcome, and else
 * never.
 */
export const registerHook = <E, R>(
  origin: TransactionFactory,
  kind: RegisteredHook | "whenStored",
  hook: Effect.Effect<unknown, E, R>
): Effect.Effect<void, never, R> =>
  Effect.withFiberRuntime((fiber) => {
    const ambient = currentContext(fiber)
    const found = ambient?.enlist(origin, "writer")
    const around = fiber.currentContext
    // R is in the fiber's context, because this effect requires it
    const context = withoutSlot(around as Context.Context<R>)
    const registered: Hook = {
      kind,
      // what the library does when work is stored precedes the hooks of the program
      order: ++registrations - (kind === "whenStored" ? precedence : 0),
      run: (slot) =>
        Effect.mapInputContext(hook, () =>
          slot === undefined ? context : Context.add(context, TransactionConnection, slotOf(around, slot[0]))
        )
    }
    const isOpen = found !== undefined && found !== "none" && found.level.state === "open"
    if (isOpen) {
      found.addHook(registered)
      return Effect.void
    }
    // the program's function for labels may throw. It is called here, because at the end its
    // exception would stop the other hooks
    const work = ambient?.work(fiber)
    const begin = (options: Options) => origin.begin("writer", options, fiber, ambient, undefined, work)
    if (found === undefined && ambient?.addHook(origin, registered, begin) === true) return Effect.void
    const state = found === undefined || found === "none" ? "committed" : found.level.state
    return isDue(kind, state) ? runReported(origin, registered) : Effect.void
  })
