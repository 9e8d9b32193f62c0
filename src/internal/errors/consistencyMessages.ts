/**
 * The messages of errors of reads with a required consistency.
 */
import { type Location, locationText } from "./messageParts.js"

interface NotCaughtUp {
  readonly database: string
  readonly reason: "position" | "maxLag"
  readonly waitedMillis: number
  readonly unproved: ReadonlyArray<string>
}

export const noReplicaCaughtUp = ({ database, reason, unproved, waitedMillis }: NotCaughtUp): string => {
  if (reason === "maxLag")
    return (
      `database "${database}": all replicas are further behind the primary than maxLag or maxLagBytes allows` +
      ` - wait until they have caught up, or choose another server by whenAllBehind`
    )
  const servers =
    unproved.length === 0
      ? ""
      : `; ${unproved.join(", ")} could not prove a position: a replica must stream from the primary, this program ` +
        "must connect to it without a transaction pooler, and its user needs pg_read_all_stats"
  return (
    `database "${database}": no replica caught up with the required position within ${Math.round(waitedMillis)} ms${servers}` +
    " - wait longer, or allow reads from the primary"
  )
}

export const tokenFromLostTimeline = (self: Location & { readonly timeline: number }): string =>
  `${locationText(self)}: the token belongs to a lost timeline (${self.timeline}), or to another database` +
  " - check on the primary whether the writes before the token are stored, and take a new token"
