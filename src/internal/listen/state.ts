/**
 * The states of the listening connection.
 */

import type { ListenConnection } from "./connection.js"
import type { Handover } from "./handover.js"
import type { Outage } from "./outage.js"

/**
 * State of the listening connection.
 *
 * - `Idle`: no listener needs a connection.
 * - `Connecting`: a connect is in progress.
 * - `Pausing`: the pause before the next attempt is in progress.
 * - `Verifying`: a probe checks that messages arrive.
 * - `Listening`: the connection receives messages, and runs the commands of `synchronize`.
 * - `HandingOver`: as `Listening`, while a handover to another connection is in progress.
 * - `Closed`: the database is closed.
 */
export type State =
  | { readonly _tag: "Idle" }
  | { readonly _tag: "Closed" }
  | { readonly _tag: "Connecting"; readonly outage: Outage | undefined; readonly cancel: () => void }
  | { readonly _tag: "Pausing"; readonly outage: Outage; readonly cancel: () => void }
  | {
      readonly _tag: "Verifying"
      readonly outage: Outage | undefined
      readonly listening: ListenConnection
      readonly cancel: () => void
    }
  | { readonly _tag: "Listening"; readonly outage: Outage | undefined; readonly listening: ListenConnection }
  | { readonly _tag: "HandingOver"; readonly listening: ListenConnection; readonly handover: Handover }

export const idle = { _tag: "Idle" } as const
export const closed = { _tag: "Closed" } as const

/** Returns the connection of a state, if there is one. */
export const connectionOf = (state: State): ListenConnection | undefined =>
  "listening" in state ? state.listening : undefined

/** Returns the outage that a state is part of, if there is one. */
export const outageOf = (state: State): Outage | undefined => ("outage" in state ? state.outage : undefined)
