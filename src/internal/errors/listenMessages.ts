/**
 * The message of a failed listener.
 */
import { type Caused, causeText, locationText } from "./messageParts.js"

const listenAdvice = {
  disconnected: "notifications may have been missed: listen again, then read the tables",
  overflow:
    "it was too slow and notifications were dropped: move slow work elsewhere, listen again, then read the tables"
} as const

interface FailedListener extends Caused {
  readonly channel: string
  readonly reason: keyof typeof listenAdvice
}

export const listenFailed = (self: FailedListener): string =>
  `${locationText(self)}: the listener of channel "${self.channel}" failed${causeText(self)} - ` +
  listenAdvice[self.reason]
