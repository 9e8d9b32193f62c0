/**
 * Statements that send a notification: NOTIFY, and a SELECT of `pg_notify` alone.
 */

/** Notification that a statement sends. */
export interface SentNotification {
  readonly channel: string
  readonly payload: string
}

const literal = "'((?:[^']|'')*)'"
const argument = `\\s*(?:\\$(\\d+)|${literal})(?:\\s*::\\s*\\w+)?\\s*`
const end = "(?:\\s+AS\\s+\\w+)?\\s*;?\\s*(?:--[^\\n]*|/\\*[^*]*\\*/)?\\s*$"
const call = new RegExp(`^\\s*SELECT\\s+(?:pg_catalog\\.)?pg_notify\\s*\\(${argument},${argument}\\)${end}`, "i")
const command = new RegExp(
  `^\\s*NOTIFY\\s+(?:"((?:[^"]|"")+)"|([A-Za-z_\\x80-\\uffff][\\w$\\x80-\\uffff]*))(?:\\s*,\\s*${literal})?\\s*;?\\s*$`,
  "i"
)

const unquoted = (text: string, quote: string): string => text.replaceAll(quote + quote, quote)

/**
 * Returns the notification that a statement sends, if its text is one of these forms. A NULL as the
 * payload is sent as an empty text.
 */
export const sentNotificationOf = (text: string, values: ReadonlyArray<unknown>): SentNotification | undefined => {
  const called = call.exec(text)
  if (called !== null) {
    const argumentOf = (position: string | undefined, written: string | undefined): string => {
      const value = position === undefined ? unquoted(written ?? "", "'") : values[Number(position) - 1]
      return value === null || value === undefined ? "" : String(value)
    }
    return { channel: argumentOf(called[1], called[2]), payload: argumentOf(called[3], called[4]) }
  }
  const found = command.exec(text)
  if (found === null) return undefined
  const [, quoted, folded = "", payload = ""] = found
  const channel = quoted === undefined ? folded.toLowerCase() : unquoted(quoted, '"')
  return { channel, payload: unquoted(payload, "'") }
}
