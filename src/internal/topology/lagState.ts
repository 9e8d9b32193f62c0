/**
 * The state of a replica by its lag. A replica is left out after two checks with too much lag, and
 * returns after two checks with less than half of the limits, so that it does not alternate.
 */
import type { LagLimits } from "../../DatabaseConfig.js"
import type { Lag } from "./primaryPositions.js"

/**
 * State of a replica by its lag, with the number of successive checks that speak for the other state.
 * The first check after a start, or after an outage of a replica that was not behind, decides alone.
 */
export type LagState =
  | { readonly _tag: "Unchecked" }
  | { readonly _tag: "Current"; readonly late: number }
  | { readonly _tag: "Behind"; readonly early: number }

/** The state before the first check. */
export const initial: LagState = { _tag: "Unchecked" }

const current: LagState = { _tag: "Current", late: 0 }

/** The number of successive checks that change the state. */
const needed = 2

const isWithin = ({ bytes, millis }: Lag, limits: LagLimits, share: number): boolean =>
  bytes <= limits.bytes * share && millis <= limits.millis * share

/** Handles the lag that a check has found; an unknown lag changes nothing. */
export const onLag = (state: LagState, lag: Lag | undefined, limits: LagLimits): LagState => {
  if (lag === undefined) return state
  if (state._tag === "Unchecked") return isWithin(lag, limits, 1) ? current : { _tag: "Behind", early: 0 }
  if (state._tag === "Current") {
    const late = isWithin(lag, limits, 1) ? 0 : state.late + 1
    return late < needed ? { _tag: "Current", late } : { _tag: "Behind", early: 0 }
  }
  const early = isWithin(lag, limits, 0.5) ? state.early + 1 : 0
  return early < needed ? { _tag: "Behind", early } : current
}

/** Checks if the next check may change the state, so that it should come soon. */
export const isUnsettled = (state: LagState): boolean =>
  state._tag !== "Unchecked" && (state._tag === "Current" ? state.late : state.early) > 0
