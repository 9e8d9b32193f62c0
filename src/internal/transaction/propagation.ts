/**
 * Propagation: a `withTransaction` joins the transaction of its database around it, nests in it,
 * begins another transaction, or runs outside of all. A part is work that joins a transaction or
 * unit, or nests in it; the options of a part must not conflict with those of the whole. All
 * functions are pure, except `raiseIsolation`, which changes a transaction.
 */
import * as Duration from "effect/Duration"
import { OptionsConflict, PropagationRefused, type TransactionError } from "../../DatabaseError.js"
import type { Options, Settings } from "../../Transaction.js"
import { isHigher } from "./isolation.js"
import { inMillis } from "./optionsInMillis.js"
import { mergeSettings } from "./settingsByDatabase.js"
import type { Origin, Transaction } from "./transaction.js"

const effective = { isolation: "read committed", access: "read write" } as const

/**
 * Returns the isolation or access of a transaction: its own option, else that of the nearest
 * transaction around it with this option, else the default.
 */
const settingOf = <K extends "isolation" | "access">(outer: Transaction, option: K): NonNullable<Options[K]> => {
  for (let one: Transaction | undefined = outer; one !== undefined; one = one.outer) {
    const given = one.options[option]
    if (given !== undefined) return given as NonNullable<Options[K]>
  }
  return effective[option] as NonNullable<Options[K]>
}

/**
 * Returns the outermost transaction around a transaction, or the transaction itself. That of a
 * sandbox does not count. The isolation is set in the outermost one, and a retry runs all of it
 * again.
 */
export const rootOf = (transaction: Transaction): Transaction => {
  let root = transaction
  while (root.outer !== undefined) root = root.outer
  return root
}

const formatMillis = (duration: Duration.DurationInput | undefined): string =>
  duration === undefined ? "none" : `${Duration.toMillis(duration)} ms`

/** The other settings of a whole transaction, with their formats for the error. */
const others: Readonly<Record<string, (options: Options) => string>> = {
  deferrable: ({ deferrable = false }) => String(deferrable),
  statementTimeout: ({ statementTimeout }) => formatMillis(statementTimeout),
  lockTimeout: ({ lockTimeout }) => formatMillis(lockTimeout),
  applicationName: ({ applicationName = "" }) => applicationName
}

/**
 * Selects the settings of a part that the transactions around it can still take, because they have
 * sent nothing. From a nested part they take only the isolation: its savepoint has the other
 * settings.
 */
const taken = (
  outer: Transaction,
  { access: _, isolation, label, propagation, retry, ...rest }: Options,
  joins: boolean
) => {
  const root = rootOf(outer)
  // a transaction of `withTransaction` keeps the isolation of its own options
  const isRaised = isHigher(isolation, settingOf(outer, "isolation")) && root.isOfUnit && root.level.isUnsent
  return { isolation: isRaised ? isolation : undefined, rest: joins && outer.level.isUnsent ? rest : undefined }
}

/**
 * Returns the conflict of a part's options with the transaction that it joins or is nested in, if
 * there is one.
 */
export const optionsConflict = (outer: Transaction, options: Options, joins: boolean): OptionsConflict | undefined => {
  const { database } = outer.origin
  const { isolation, rest } = taken(outer, options, joins)
  for (const option of ["isolation", "access"] as const) {
    const inner = options[option]
    const around = settingOf(outer, option)
    if (inner !== undefined && inner !== around && inner !== isolation)
      return new OptionsConflict({ database, server: "", option, outer: around, inner })
  }
  if (!joins || rest !== undefined) return undefined
  for (const [option, format] of Object.entries(others)) {
    const isGiven = options[option as keyof Options] !== undefined
    const [around, inner] = [format(outer.options), format(options)]
    if (isGiven && inner !== around) return new OptionsConflict({ database, server: "", option, outer: around, inner })
  }
  return undefined
}

/**
 * Returns the conflict of a part's settings with those of a unit of work, for transactions that the
 * unit has not begun.
 */
export const settingsConflict = (
  database: string,
  around: Settings,
  required: Settings
): OptionsConflict | undefined => {
  for (const option of ["isolation", "access"] as const) {
    const inner = required[option]
    const outer = around[option] ?? effective[option]
    const isRaised = option === "isolation" && isHigher(required.isolation, around.isolation ?? effective.isolation)
    if (inner !== undefined && inner !== outer && !isRaised)
      return new OptionsConflict({ database, server: "", option, outer, inner })
  }
  return undefined
}

/**
 * Returns the settings of a unit of work after it has taken those of a part, which do not conflict.
 * A part that does not join raises only the isolation.
 */
export const raiseSettings = (around: Settings, required: Settings, joins: boolean): Settings => {
  const { access: _, isolation, label, ...rest } = required
  const limits = joins ? mergeSettings(around, { ...rest, label: around.label ?? label }) : around
  return isHigher(isolation, around.isolation ?? effective.isolation) ? { ...limits, isolation } : limits
}

/**
 * Builds the error of a part with `retry` inside of a transaction or unit that cannot be run again.
 */
export const retryRefused = (database: string): OptionsConflict =>
  new OptionsConflict({ database, server: "", option: "retry", outer: "false", inner: "true" })

/**
 * Makes a transaction and the outermost one around it take the settings of a part, which do not
 * conflict.
 */
export const raiseIsolation = (outer: Transaction, options: Options, joins: boolean): void => {
  const { isolation, rest } = taken(outer, options, joins)
  if (rest !== undefined) outer.raise(inMillis(rest))
  if (isolation !== undefined) rootOf(outer).raise({ isolation })
}

/** Decision of a propagation. */
export type PropagationDecision =
  | { readonly _tag: "join" }
  | { readonly _tag: "outside" }
  | { readonly _tag: "begin" }
  | { readonly _tag: "nest"; readonly outer: Transaction }
  | { readonly _tag: "refuse"; readonly error: TransactionError }

const join: PropagationDecision = { _tag: "join" }
const outside: PropagationDecision = { _tag: "outside" }
const fresh: PropagationDecision = { _tag: "begin" }

/** Decides the propagation of a `withTransaction` with these options inside of `current`. */
export const decidePropagation = (
  origin: Origin,
  current: Transaction | undefined,
  options: Options
): PropagationDecision => {
  const propagation = options.propagation ?? "nested"
  if (current === undefined) {
    if (propagation === "mandatory") return refuse(origin, "mandatory")
    return propagation === "supports" || propagation === "notSupported" || propagation === "never" ? outside : fresh
  }
  switch (propagation) {
    case "never":
      return refuse(origin, "never")
    case "notSupported":
      return outside
    case "requiresNew":
      return fresh
    default: {
      const error = optionsConflict(current, options, propagation !== "nested")
      if (error !== undefined) return { _tag: "refuse", error }
      return propagation === "nested" ? { _tag: "nest", outer: current } : join
    }
  }
}

const refuse = (origin: Origin, propagation: PropagationRefused["propagation"]): PropagationDecision => ({
  _tag: "refuse",
  error: new PropagationRefused({ database: origin.database, server: "", propagation })
})
