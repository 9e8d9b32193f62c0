/**
 * The check of a server's WAL position against tokens.
 */
import type { Position } from "../sql/lsn.js"
import type { TokenFields } from "./tokenRecorder.js"

/**
 * Relation of a server to a token.
 *
 * - `caughtUp`: the server has the writes that the token covers.
 * - `behind`: the server is in the same history, or an earlier part of it, and has not reached the
 *   token.
 * - `unproved`: the server does not report its history.
 * - `lost`: the server has another history, after a failover or because it is another cluster or
 *   database.
 */
export type Freshness = "caughtUp" | "behind" | "unproved" | "lost"

const judgeToken = ({ lsn, systemId, timeline }: Position, database: string, token: TokenFields): Freshness => {
  if (database !== token.database || systemId !== token.systemId) return "lost"
  if (timeline === undefined) return "unproved"
  if (timeline > token.timeline) return "lost"
  return timeline === token.timeline && lsn >= token.lsn ? "caughtUp" : "behind"
}

const worstFirst: ReadonlyArray<Freshness> = ["lost", "unproved", "behind"]

/** Returns the worst relation of a position to several tokens. */
export const judgeFreshness = (
  position: Position | undefined,
  database: string,
  tokens: ReadonlyArray<TokenFields>
): Freshness => {
  if (position === undefined) return "unproved"
  const all = tokens.map((token) => judgeToken(position, database, token))
  return worstFirst.find((freshness) => all.includes(freshness)) ?? "caughtUp"
}
