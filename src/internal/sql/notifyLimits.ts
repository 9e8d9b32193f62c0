/**
 * Limits of NOTIFY, checked before anything is sent. In LISTEN the server truncates a long name,
 * and the listener would receive no message.
 */
import { invalidNameReason } from "./nameLimits.js"

/** The longest name of a channel, in bytes. */
const longestChannel = 63
/** The longest message, in bytes. */
const longestPayload = 7999

/**
 * Part of a notification that the server rejects: descriptions of the given value and of the
 * expected one.
 */
export interface InvalidPart {
  readonly part: "channel" | "payload"
  readonly given: string
  readonly expected: string
}

/** Checks the name of a channel. */
export const checkChannel = (channel: string): InvalidPart | undefined => {
  const given = invalidNameReason(channel, 1, longestChannel)
  return given === undefined ? undefined : { part: "channel", given, expected: `1 to ${longestChannel} bytes of text` }
}

/** Checks a message and the name of its channel. */
export const checkMessage = (channel: string, payload: string): InvalidPart | undefined => {
  const given = invalidNameReason(payload, 0, longestPayload)
  const expected = `at most ${longestPayload} bytes of text; put what is longer into a table and send its key`
  return checkChannel(channel) ?? (given === undefined ? undefined : { part: "payload", given, expected })
}
