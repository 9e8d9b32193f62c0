/**
 * Look-ups of the unit of work that a transaction context is in.
 */
import type { TransactionContext } from "../transaction/context.js"
import { OutsideContext } from "../transaction/outsideContext.js"
import { Unit } from "./unit.js"

/** Returns the innermost unit of work of a context. */
export const unitOf = (context: TransactionContext | undefined): Unit | undefined => {
  for (let one = context; one !== undefined; one = one.parent) if (one instanceof Unit) return one
  return undefined
}

/**
 * Returns the unit of work that a part joins, if there is one. A part that was isolated from a
 * database on purpose joins none.
 */
export const joinableUnitOf = (context: TransactionContext | undefined): Unit | undefined => {
  for (let one = context; one !== undefined; one = one.parent) {
    if (one instanceof Unit) return one
    if (one instanceof OutsideContext) return undefined
  }
  return undefined
}
