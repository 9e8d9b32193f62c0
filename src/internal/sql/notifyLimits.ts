/**
 * What NOTIFY can carry, seen before anything is sent: LISTEN would cut a long name short, and hear nothing.
 */
import { NotificationInvalid } from "../../DatabaseError.js"
import { invalidNameReason } from "./nameLimits.js"

/** In bytes. */
const longestChannel = 63
const longestPayload = 7999

/** What is wrong with the name of a channel. */
export const checkChannel = (database: string, channel: string): NotificationInvalid | undefined => {
  const given = invalidNameReason(channel, 1, longestChannel)
  return given === undefined
    ? undefined
    : new NotificationInvalid({ database, part: "channel", given, expected: `1 to ${longestChannel} bytes of text` })
}

/** What is wrong with a message. */
export const checkMessage = (database: string, channel: string, payload: string): NotificationInvalid | undefined => {
  const given = invalidNameReason(payload, 0, longestPayload)
  return (
    checkChannel(database, channel) ??
    (given === undefined
      ? undefined
      : new NotificationInvalid({
          database,
          part: "payload",
          given,
          expected: `at most ${longestPayload} bytes of text; put what is longer into a table and send its key`
        }))
  )
}
