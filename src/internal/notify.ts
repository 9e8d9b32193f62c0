/**
 * What NOTIFY can carry, seen before anything is sent: LISTEN would cut a long name short, and hear nothing.
 */
import { NotificationInvalid } from "../DatabaseError.js"

/** In bytes. */
const longestChannel = 63
const longestPayload = 7999

const fault = (text: string, least: number, most: number): string | undefined => {
  const bytes = Buffer.from(text)
  if (bytes.length < least) return "empty"
  if (bytes.length > most) return `${bytes.length} bytes long`
  if (text.includes("\0")) return "text with a NUL character"
  // half of a surrogate pair would arrive as something else
  return bytes.toString() === text ? undefined : "text that is no Unicode"
}

/** What is wrong with the name of a channel. */
export const checkChannel = (database: string, channel: string): NotificationInvalid | undefined => {
  const given = fault(channel, 1, longestChannel)
  return given === undefined
    ? undefined
    : new NotificationInvalid({ database, part: "channel", given, expected: `1 to ${longestChannel} bytes of text` })
}

/** What is wrong with a message. */
export const checkMessage = (database: string, channel: string, payload: string): NotificationInvalid | undefined => {
  const given = fault(payload, 0, longestPayload)
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
