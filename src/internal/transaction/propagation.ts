/**
 * What a `withTransaction` means where there is a transaction of the same database already, or none: a pure choice.
 */
import * as Duration from "effect/Duration"
import { OptionsConflict, PropagationRefused, type TransactionError } from "../../DatabaseError.js"
import type { Isolation, Options, Settings } from "../../Transaction.js"
import { mergeSettings } from "./settingsByDatabase.js"
import type { Origin, Transaction } from "./transaction.js"

const effective = { isolation: "read committed", access: "read write" } as const

const strength: Readonly<Record<Isolation, number>> = { "read committed": 0, "repeatable read": 1, serializable: 2 }

const isHigher = (asked: Isolation | undefined, around: Isolation): asked is Isolation =>
  asked !== undefined && strength[asked] > strength[around]

/** Returns the setting of a transaction, or of the nearest one around it that has it. */
const said = <K extends "isolation" | "access">(outer: Transaction, option: K): NonNullable<Options[K]> => {
  for (let one: Transaction | undefined = outer; one !== undefined; one = one.outer) {
    const given = one.options[option]
    if (given !== undefined) return given as NonNullable<Options[K]>
  }
  return effective[option] as NonNullable<Options[K]>
}

/** The outermost transaction of the application, which has an isolation and is run again. */
export const rootOf = (transaction: Transaction): Transaction => {
  let root = transaction
  while (root.outer !== undefined) root = root.outer
  return root
}

const inMillis = (duration: Duration.DurationInput | undefined): string =>
  duration === undefined ? "none" : `${Duration.toMillis(duration)} ms`

/** The other settings that hold for a whole transaction, in words. */
const others: Readonly<Record<string, (options: Options) => string>> = {
  deferrable: ({ deferrable = false }) => String(deferrable),
  statementTimeout: ({ statementTimeout }) => inMillis(statementTimeout),
  lockTimeout: ({ lockTimeout }) => inMillis(lockTimeout),
  applicationName: ({ applicationName = "" }) => applicationName
}

/** Selects the settings of a part that a transaction takes which has sent nothing yet; a nested part has its own of all but isolation. */
const taken = (
  outer: Transaction,
  { access: _, isolation, label, propagation, retry, ...rest }: Options,
  joins: boolean
) => {
  const root = rootOf(outer)
  // one that was begun by hand is as its program has said
  const isRaised = isHigher(isolation, said(outer, "isolation")) && root.isOfUnit && root.level.isUnsent
  return { isolation: isRaised ? isolation : undefined, rest: joins && outer.level.isUnsent ? rest : undefined }
}

/** Why a transaction cannot be as a part asks that is to join it, or to be nested in it. */
export const optionsConflict = (outer: Transaction, options: Options, joins: boolean): OptionsConflict | undefined => {
  const { database } = outer.origin
  const { isolation, rest } = taken(outer, options, joins)
  for (const option of ["isolation", "access"] as const) {
    const inner = options[option]
    const around = said(outer, option)
    if (inner !== undefined && inner !== around && inner !== isolation)
      return new OptionsConflict({ database, server: "", option, outer: around, inner })
  }
  if (!joins || rest !== undefined) return undefined
  for (const [option, inWords] of Object.entries(others)) {
    const isAsked = options[option as keyof Options] !== undefined
    const [around, inner] = [inWords(outer.options), inWords(options)]
    if (isAsked && inner !== around) return new OptionsConflict({ database, server: "", option, outer: around, inner })
  }
  return undefined
}

/** Why the transactions that a unit of work will begin cannot be as a part asks: as for one that is begun, and has sent nothing. */
export const settingsConflict = (database: string, around: Settings, asked: Settings): OptionsConflict | undefined => {
  for (const option of ["isolation", "access"] as const) {
    const inner = asked[option]
    const outer = around[option] ?? effective[option]
    const isRaised = option === "isolation" && isHigher(asked.isolation, around.isolation ?? effective.isolation)
    if (inner !== undefined && inner !== outer && !isRaised)
      return new OptionsConflict({ database, server: "", option, outer, inner })
  }
  return undefined
}

/** Returns the settings of transactions that a unit of work will begin, as a part asks where that is no conflict. */
export const raiseSettings = (around: Settings, asked: Settings, joins: boolean): Settings => {
  const { access: _, isolation, label, ...rest } = asked
  const limits = joins ? mergeSettings(around, { ...rest, label: around.label ?? label }) : around
  return isHigher(isolation, around.isolation ?? effective.isolation) ? { ...limits, isolation } : limits
}

/** Builds the refusal of a part's retry by a whole that cannot be run again. */
export const retryRefused = (database: string): OptionsConflict =>
  new OptionsConflict({ database, server: "", option: "retry", outer: "false", inner: "true" })

/** Has a transaction be as a part asks, where that is no conflict. */
export const raiseIsolation = (outer: Transaction, options: Options, joins: boolean): void => {
  const { isolation, rest } = taken(outer, options, joins)
  if (rest !== undefined) outer.raise(rest)
  if (isolation !== undefined) rootOf(outer).raise({ isolation })
}

/** What to do for a `withTransaction`. */
export type PropagationDecision =
  | { readonly _tag: "join" }
  | { readonly _tag: "outside" }
  | { readonly _tag: "begin" }
  | { readonly _tag: "nest"; readonly outer: Transaction }
  | { readonly _tag: "refuse"; readonly error: TransactionError }

const join: PropagationDecision = { _tag: "join" }
const outside: PropagationDecision = { _tag: "outside" }
const fresh: PropagationDecision = { _tag: "begin" }

/** What a propagation means here. */
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
