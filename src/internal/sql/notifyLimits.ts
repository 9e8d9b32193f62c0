/**
 * Limits of NOTIFY, which are checked before anything is sent. LISTEN truncates a long name on the
 * server, so its listener would receive no message.
 */
import { invalidNameReason } from "./nameLimits.js"

/** The longest name of a channel, in bytes. */
const longestChannel = 63
/** The longest message, in bytes. */
const longestPayload = 7999

/**
 * Part of a notification that is beyond the limits, with descriptions of the given value and of
 * valid values.
 */
export interface InvalidPart {
  readonly part: "channel" | "payload"
  readonly given: string
  readonly expected: string
}

/** Checks the name of a channel; returns the invalid part, if there is one. */
export const checkChannel = (channel: string): InvalidPart | undefined => {
  const given = invalidNameReason(channel, 1, longestChannel)
  return given === undefined ? undefined : { part: "channel", given, expected: `1 to ${longestChannel} bytes of text` }
}

/** Checks a message and the name of its channel; returns the invalid part, if there is one. */
export const checkMessage = (channel: string, payload: string): InvalidPart | undefined => {
  const given = invalidNameReason(payload, 0, longestPayload)
  const expected = `at most ${longestPayload} bytes of text; put what is longer into a table and send its key`
  return checkChannel(channel) ?? (given === undefined ? undefined : { part: "payload", given, expected })
}
