/**
 * Limits of NOTIFY, which are checked before a command is sent. LISTEN has the same limit for the
 * name of a channel, because the server would truncate the name, and the listener would receive
 * nothing.
 */
import { invalidNameReason } from "./invalidText.js"

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

/** Checks the name of a channel, and returns it as the invalid part if it is invalid. */
export const checkChannel = (channel: string): InvalidPart | undefined => {
  const given = invalidNameReason(channel, 1, longestChannel)
  return given === undefined ? undefined : { part: "channel", given, expected: `1 to ${longestChannel} bytes of text` }
}

/** Checks a message and the name of its channel, and returns the first invalid part. */
export const checkMessage = (channel: string, payload: string): InvalidPart | undefined => {
  const given = invalidNameReason(payload, 0, longestPayload)
  const expected = `at most ${longestPayload} bytes of text; store a longer text in a table and send its key`
  return checkChannel(channel) ?? (given === undefined ? undefined : { part: "payload", given, expected })
}
