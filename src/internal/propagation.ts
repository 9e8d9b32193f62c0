/**
 * What a `withTransaction` means where there is a transaction of the same database already, or none: a pure choice.
 */
import { OptionsConflict, PropagationRefused, type TransactionError } from "../DatabaseError.js"
import type { Options, Origin, Transaction } from "../Transaction.js"

const effective = { isolation: "read committed", access: "read write" } as const

/** Why a transaction is not as somebody asks who is to join it. */
export const conflict = (outer: Transaction, options: Options): OptionsConflict | undefined => {
  for (const option of ["isolation", "access"] as const) {
    const inner = options[option]
    const around = outer.options[option] ?? effective[option]
    if (inner !== undefined && inner !== around) {
      return new OptionsConflict({ database: outer.origin.database, server: "", option, outer: around, inner })
    }
  }
  return undefined
}

/** What to do for a `withTransaction`. */
export type Plan =
  | { readonly _tag: "join" }
  | { readonly _tag: "outside" }
  | { readonly _tag: "begin" }
  | { readonly _tag: "nest"; readonly outer: Transaction }
  | { readonly _tag: "refuse"; readonly error: TransactionError }

const join: Plan = { _tag: "join" }
const outside: Plan = { _tag: "outside" }
const fresh: Plan = { _tag: "begin" }

/** What a propagation means here. */
export const plan = (origin: Origin, current: Transaction | undefined, options: Options): Plan => {
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
      const error = conflict(current, options)
      if (error !== undefined) return { _tag: "refuse", error }
      return propagation === "nested" ? { _tag: "nest", outer: current } : join
    }
  }
}

const refuse = (origin: Origin, propagation: PropagationRefused["propagation"]): Plan => ({
  _tag: "refuse",
  error: new PropagationRefused({ database: origin.database, server: "", propagation })
})
