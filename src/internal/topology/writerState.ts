/**
 * The state of the writer of a database, and its transitions. They are pure, so that every order of
 * events can be tested.
 */

import type { ServerReport } from "./probeReport.js"

/** The history of a cluster: a promotion begins a new timeline. */
export interface History {
  readonly systemId: string
  readonly timeline: number
}

/** State of the writer. `highest` is the latest history that any host has reported as a writer. */
export type WriterState =
  | {
      readonly _tag: "Known"
      readonly host: string
      readonly highest: History | undefined
      /** True after an event that makes the writer doubtful, while it is searched. */
      readonly isDoubted: boolean
      /** True after the host has been removed from the hosts: it stays until another one is the writer. */
      readonly isRemoved: boolean
    }
  | { readonly _tag: "Searching"; readonly lost: string | undefined; readonly highest: History | undefined }

/** The state before the first report. */
export const initial: WriterState = { _tag: "Searching", lost: undefined, highest: undefined }

/** Reason why a host is not the writer. */
export type NotWriter = "standby" | "olderTimeline" | "otherCluster" | "unproved"

/** Returns the reason why the host of a report is not the writer, or `undefined` if it may be. */
export const whyNotWriter = (report: ServerReport, highest: History | undefined): NotWriter | undefined => {
  if (report.isStandby) return "standby"
  // without any history, there is none to compare with
  if (highest === undefined) return undefined
  if (report.timeline === undefined) return "unproved"
  if (report.systemId !== highest.systemId) return "otherCluster"
  return report.timeline < highest.timeline ? "olderTimeline" : undefined
}

/** Change of the writer. */
export interface WriterChange {
  readonly from: string | undefined
  readonly to: string
  readonly timeline: number | undefined
}

/**
 * Handles the report of a host. A host on a higher timeline becomes the writer at once. On an equal
 * timeline the known writer stays, unless a search has given it up, or it was removed from the hosts:
 * then the other host may be the same server under another name.
 */
export const onReport = (
  state: WriterState,
  host: string,
  report: ServerReport
): readonly [state: WriterState, change: WriterChange | undefined] => {
  const { highest } = state
  if (whyNotWriter(report, highest) !== undefined) {
    // the host has been demoted, or another host has a higher timeline
    return state._tag === "Known" && state.host === host ? [giveUp(state), undefined] : [state, undefined]
  }
  const { systemId, timeline } = report
  const history = timeline === undefined ? highest : { systemId, timeline }
  if (state._tag === "Known" && state.host === host) {
    return [{ ...state, highest: history, isDoubted: false }, undefined]
  }
  const isNewer = history !== undefined && (highest === undefined || history.timeline > highest.timeline)
  if (state._tag === "Known" && !isNewer && !state.isRemoved) return [state, undefined]
  const from = state._tag === "Known" ? state.host : state.lost
  const known: WriterState = { _tag: "Known", host, highest: history, isDoubted: false, isRemoved: false }
  return [known, from === host ? undefined : { from, to: host, timeline }]
}

/** Handles an event that makes the writer doubtful, such as a lost connection to it. */
export const onDoubt = (state: WriterState, host: string): WriterState =>
  state._tag === "Known" && state.host === host ? { ...state, isDoubted: true } : state

/** Handles the removal of a host from the hosts, or its return. */
export const onListed = (state: WriterState, host: string, isListed: boolean): WriterState =>
  state._tag === "Known" && state.host === host ? { ...state, isRemoved: !isListed } : state

/** Handles a host that gives no answer: a writer without an answer is searched elsewhere. */
export const onNoAnswer = (state: WriterState, host: string): WriterState =>
  state._tag === "Known" && state.host === host ? giveUp(state) : state

const giveUp = ({ highest, host }: Extract<WriterState, { _tag: "Known" }>): WriterState => ({
  _tag: "Searching",
  lost: host,
  highest
})
