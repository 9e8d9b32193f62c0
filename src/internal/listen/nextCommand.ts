/**
 * The commands that bring a listening connection up to date with the listeners.
 */

import type { Listeners } from "./listeners.js"

/** Command for some channels. */
interface ChannelCommand {
  readonly command: "LISTEN" | "UNLISTEN"
  readonly channels: ReadonlyArray<string>
}

/**
 * Returns the next command for a connection that listens to `current`, or `undefined` if it is up
 * to date.
 */
export const nextCommand = (current: ReadonlySet<string>, listeners: Listeners): ChannelCommand | undefined => {
  const missing = [...listeners.channels()].filter((channel) => !current.has(channel))
  // the channels of disconnected listeners are restored together: the commands of one text are one
  // transaction
  const returning = missing.filter((channel) => listeners.of(channel).some(({ state }) => state === "disconnected"))
  if (returning.length > 0) return { command: "LISTEN", channels: returning }
  // the LISTEN of a new channel is sent alone, so that an error of the server concerns that channel
  // only
  if (missing.length > 0) return { command: "LISTEN", channels: missing.slice(0, 1) }
  const left = [...current].filter((channel) => !listeners.has(channel))
  return left.length > 0 ? { command: "UNLISTEN", channels: left } : undefined
}
