/**
 * Runs effects as units of work, as parts that join one, and as nested parts.
 */
import { TransactionConnection } from "@effect/sql/SqlClient"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberRef from "effect/FiberRef"
import { OptionsConflict, type TransactionError } from "../../DatabaseError.js"
import { type CallSite, callSiteOfPart } from "../observability/callSite.js"
import type { Describe } from "../statement/workLabel.js"
import { currentContext, type TransactionContext } from "../transaction/context.js"
import type { PartName } from "../transaction/joinedPart.js"
import { retryRefused } from "../transaction/propagation.js"
import { runAsPart } from "../transaction/runInTransaction.js"
import type { SettingsByDatabase } from "../transaction/settingsByDatabase.js"
import { slotOf } from "../transaction/transactionSlot.js"
import { commitOptionsOf, type EndOptions, requiredEnd } from "./commitOptions.js"
import { NestedUnit } from "./nested.js"
import { nestedHandle, openUnit, type UnitHandle, type UnitPlan } from "./openUnit.js"
import { invalidOfNested, invalidOfSettings, invalidOfUnit } from "./optionRules.js"
import { decide, describeWork, type NestedOptions, settingsByDatabase, type UnitOptions } from "./options.js"
import { retryUnit } from "./retryUnit.js"
import type { Unit } from "./unit.js"
import { joinableUnitOf, unitOf } from "./unitOf.js"

/** Runs an effect in the unit of work around it, or in a new one. */
export const runUnit = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  options: UnitOptions<A, E>
): Effect.Effect<A, E | TransactionError, R> => {
  const label = options.work?.label
  const site = callSiteOfPart(label)
  return Effect.withFiberRuntime((fiber) => {
    const invalid = invalidOfUnit(options)
    if (invalid !== undefined) return Effect.fail(invalid)
    const context = currentContext(fiber)
    const unit = joinableUnitOf(context)
    return context === undefined || unit === undefined
      ? runInNewUnit(self, context, true, options, describeWork(options), site)
      : runJoined(self, context, unit, options, { label, site }, describeWork(options))
  })
}

/**
 * Runs a request as a unit of work. `describe` returns its labels, which may not be known before
 * its first statement.
 */
export const runDescribed = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  options: UnitOptions<A, E>,
  describe: Describe
): Effect.Effect<A, E | TransactionError, R> =>
  Effect.withFiberRuntime((fiber) => {
    const invalid = invalidOfSettings(options)
    if (invalid !== undefined) return Effect.fail(invalid)
    const context = currentContext(fiber)
    const unit = joinableUnitOf(context)
    return context === undefined || unit === undefined
      ? runInNewUnit(self, context, true, options, describe, undefined, true)
      : runJoined(self, context, unit, options, { label: describe(fiber)?.label, site: undefined }, describe)
  })

/** Runs an effect in a new unit of work that does not see the transactions around it. */
export const runSeparateUnit = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  options: UnitOptions<A, E>
): Effect.Effect<A, E | TransactionError, R> =>
  Effect.withFiberRuntime((fiber) => {
    const invalid = invalidOfUnit(options)
    if (invalid !== undefined) return Effect.fail(invalid)
    return runInNewUnit(self, currentContext(fiber), false, options, describeWork(options), undefined)
  })

/** Runs an effect as a nested part, with a savepoint on every database that it uses. */
export const runNested = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  options: NestedOptions<A, E>
): Effect.Effect<A, E | TransactionError, R> => {
  const label = options.work?.label
  const site = callSiteOfPart(label)
  return Effect.withFiberRuntime((fiber) => {
    const invalid = invalidOfNested(options)
    if (invalid !== undefined) return Effect.fail(invalid)
    const context = currentContext(fiber)
    if (context === undefined) return runInNewUnit(self, context, true, options, describeWork(options), site)
    // all savepoints are checked first: if one failed after another was released, a part of the
    // work would stay
    const commitOptions = { ...(unitOf(context)?.commitOptions ?? commitOptionsOf({})), checked: true }
    const unit = new NestedUnit(fiber, context, commitOptions, describeWork(options), { label, site })
    return runIn(self, nestedHandle(unit), options)
  })
}

/**
 * Makes a unit take the options of a part that joins it, or returns the conflict and changes
 * nothing.
 */
export const demandOfUnit = (
  context: TransactionContext,
  unit: Unit,
  settings: SettingsByDatabase | undefined,
  { retry = false, ...end }: EndOptions & Pick<UnitOptions<never, never>, "retry">
): OptionsConflict | undefined => {
  const takeSettings = settings === undefined ? undefined : context.demand(settings, true)
  if (takeSettings instanceof OptionsConflict) return takeSettings
  const takeEnd = unit.demandCommitOptions(requiredEnd(end))
  if (takeEnd instanceof OptionsConflict) return takeEnd
  if (retry !== false && !context.takeRetry(undefined, retry)) return retryRefused(unit.begun[0]?.origin.database ?? "")
  takeSettings?.()
  takeEnd()
  return undefined
}

/**
 * Makes the open transactions around a unit of work that joins them take its settings, or returns
 * the conflict.
 */
export const demandAround = (
  around: TransactionContext | undefined,
  settings: SettingsByDatabase | undefined
): OptionsConflict | undefined => {
  const take = settings === undefined ? undefined : around?.demand(settings, true)
  if (take instanceof OptionsConflict) return take
  take?.()
  return undefined
}

/** Returns the failure of an exit, or `undefined` for a success. */
const failureOf = (exit: Exit.Exit<unknown, unknown>): unknown =>
  Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined

const runIn = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  handle: UnitHandle,
  options: NestedOptions<A, E>
): Effect.Effect<A, E | TransactionError, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.withFiberRuntime((fiber) => {
      const outside = fiber.currentContext
      const inside = Context.add(outside, TransactionConnection, slotOf(outside, handle.unit))
      return Effect.zipRight(
        FiberRef.set(FiberRef.currentContext, inside),
        Effect.flatMap(Effect.exit(restore(self)), (exit) => {
          const outcome = decide(options, exit)
          const isInterrupted = Exit.isFailure(exit) && Cause.isInterrupted(exit.cause)
          const decided = Exit.isSuccess(outcome) ? outcome.value : "rollback"
          if (decided === "rollback") handle.unit.undoJoined(failureOf(Exit.isFailure(exit) ? exit : outcome))
          const end = handle.end(decided, isInterrupted ? undefined : restore)
          return Effect.flatMap(Effect.exit(Effect.zipRight(end, outcome)), (ended) => {
            // the work around must not store a part of a unit that has failed at its end
            if (Exit.isFailure(ended) && decided === "commit") handle.unit.undoJoined(failureOf(ended))
            const result: Exit.Exit<A, E | TransactionError> = Exit.isSuccess(ended)
              ? exit
              : Exit.failCause(Exit.isSuccess(exit) ? ended.cause : Cause.sequential(exit.cause, ended.cause))
            return Effect.zipRight(FiberRef.set(FiberRef.currentContext, outside), result)
          })
        })
      )
    })
  )

const runInNewUnit = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  around: TransactionContext | undefined,
  joins: boolean,
  options: UnitOptions<A, E>,
  describe: Describe | undefined,
  site: CallSite | undefined,
  isRequest = false
): Effect.Effect<A, E | TransactionError, R> => {
  const { retry } = options
  const settings = settingsByDatabase(options)
  const conflict = joins ? demandAround(around, settings) : undefined
  if (conflict !== undefined) return Effect.fail(conflict)
  const plan: UnitPlan = {
    around,
    joins,
    settings,
    commitOptions: commitOptionsOf(options, isRequest),
    describe,
    name: { label: options.work?.label, site }
  }
  const once = (handle: UnitHandle) => runIn(self, handle, options)
  const canRunAgain = !isRequest || (retry !== undefined && retry !== false)
  const open = () => {
    const handle = openUnit(plan)
    handle.unit.canRunAgain = canRunAgain
    return handle
  }
  if (retry !== undefined && retry !== false)
    return Effect.uninterruptibleMask((restore) => retryUnit(restore, open, once, retry))
  // uninterruptible, because an interruptible handler would lose the failures beside an
  // interruption
  return Effect.uninterruptibleMask((restore) => {
    const handle = open()
    return Effect.catchAllCause(restore(once(handle)), (cause) => {
      const { unit } = handle
      return unit.requestedRetry === undefined
        ? Effect.failCause(cause)
        : retryUnit(restore, open, once, unit.requestedRetry, { cause, opened: handle })
    })
  })
}

/**
 * Runs a part that joins a unit of work. The unit takes the options of the part, or refuses the
 * part.
 */
const runJoined = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  context: TransactionContext,
  unit: Unit,
  options: UnitOptions<A, E>,
  name: PartName,
  describe: Describe | undefined
): Effect.Effect<A, E | OptionsConflict, R> => {
  const conflict = demandOfUnit(context, unit, settingsByDatabase(options), options)
  if (conflict !== undefined) return Effect.fail(conflict)
  return runAsPart(self, context, name, { describe }, (exit) => decide(options, exit))
}
