/**
 * The state of a server for its monitor, and its transitions. They are pure, so that every order of
 * events can be tested on virtual time. All times are in ms.
 */

import type { ServerReport } from "./serverReport.js"

/** State of a server. `since` is the time of the last change from one tag to another. */
export type ServerState =
  | { readonly _tag: "Unknown"; readonly since: number }
  | { readonly _tag: "Up"; readonly since: number; readonly report: ServerReport; readonly latencyMillis: number }
  /** A connection was lost, and no probe has answered or failed since. */
  | { readonly _tag: "Suspect"; readonly since: number; readonly reason: string }
  /** The server takes no part until a trial at `retryAt`. */
  | { readonly _tag: "Down"; readonly since: number; readonly reason: string; readonly retryAt: number }
  /** One probe decides whether the server is up again. */
  | { readonly _tag: "Trial"; readonly since: number; readonly reason: string }

/** Event of a server. */
export type ServerEvent =
  | { readonly _tag: "Answered"; readonly report: ServerReport; readonly latencyMillis: number }
  | { readonly _tag: "Failed"; readonly reason: string }
  /** A connection that is not the monitor's was lost. */
  | { readonly _tag: "ConnectionLost"; readonly reason: string }
  | { readonly _tag: "TrialBegun" }

/** The pause of a server that is down before its next trial. */
export const trialDelay = 1000

/** Returns the state before the first event. */
export const unknownSince = (now: number): ServerState => ({ _tag: "Unknown", since: now })

/** Returns the state after an event. */
export const onServerEvent = (state: ServerState, event: ServerEvent, now: number): ServerState => {
  switch (event._tag) {
    case "Answered": {
      const { latencyMillis, report } = event
      return { _tag: "Up", since: state._tag === "Up" ? state.since : now, report, latencyMillis }
    }
    case "Failed":
      return {
        _tag: "Down",
        since: state._tag === "Down" || state._tag === "Trial" ? state.since : now,
        reason: event.reason,
        retryAt: now + trialDelay
      }
    case "ConnectionLost":
      return state._tag === "Up" ? { _tag: "Suspect", since: now, reason: event.reason } : state
    case "TrialBegun":
      return state._tag === "Down" && now >= state.retryAt
        ? { _tag: "Trial", since: state.since, reason: state.reason }
        : state
  }
}

/** Checks if new work may go to a server. An unknown server may serve until a probe has failed. */
export const mayServe = ({ _tag }: ServerState): boolean => _tag === "Up" || _tag === "Unknown" || _tag === "Suspect"
