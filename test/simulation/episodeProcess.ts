/**
 * The process of a simulation: it runs the episodes that its parent sends, one at a time. Its time,
 * timers, random numbers and sockets are virtual.
 */
import "./loop/globals.js"

import { Episode, type EpisodeResult } from "./work/episode.js"
import type { EpisodeOptions } from "./work/settings.js"

/** Job of the process. */
export interface Job extends EpisodeOptions {
  /** True to send each line of the trace. */
  readonly isTraced?: boolean | undefined
}

/** Message to the parent. */
export type Message =
  | { readonly _tag: "line"; readonly line: string }
  | { readonly _tag: "result"; readonly result: EpisodeResult }
  | { readonly _tag: "crash"; readonly message: string; readonly trace: ReadonlyArray<string> }

const send = (message: Message): void => {
  process.send?.(message)
}

let current: Episode | undefined

const onCrash = (cause: unknown): void => {
  const message = cause instanceof Error ? (cause.stack ?? cause.message) : String(cause)
  send({ _tag: "crash", message, trace: current?.trace.last(60) ?? [] })
}

process.on("uncaughtException", onCrash)
process.on("unhandledRejection", onCrash)
// the parent ends this process
process.on("SIGINT", () => {})

process.on("message", (job: Job) => {
  const episode = new Episode(job)
  current = episode
  if (job.isTraced) episode.trace.onLine = (line) => send({ _tag: "line", line })
  episode.run().then((result) => send({ _tag: "result", result }), onCrash)
})
