/**
 * What a server says of how far it is, and whether that is far enough.
 */
import type { Request } from "../Connection.js"
import { Token } from "../Consistency.js"
import type { Flight } from "./flight.js"
import { isLsn, type Position, parseLsn } from "./lsn.js"

/**
 * Asks a server how far it is, a primary or a standby. The timeline is read after the position, never before: a standby may go over to
 * another one in between, and then what was read before would be taken for a part of it. `OFFSET 0` keeps the two apart.
 *
 * `pg_last_wal_replay_lsn` is no proof alone: after a failover another history may have got that far.
 */
export const askPosition: Request = {
  text: `SELECT s.system_identifier::pg_catalog.text, p.lsn::pg_catalog.text,
  CASE WHEN p.standby THEN NULL ELSE pg_catalog.pg_walfile_name(p.lsn) END,
  (SELECT r.received_tli::pg_catalog.text FROM pg_catalog.pg_stat_wal_receiver r WHERE p.standby AND p.lsn IS NOT NULL)
FROM (SELECT r.standby, CASE WHEN r.standby THEN pg_catalog.pg_last_wal_replay_lsn()
  ELSE pg_catalog.pg_current_wal_insert_lsn() END AS lsn
  FROM (SELECT pg_catalog.pg_is_in_recovery() AS standby OFFSET 0) r OFFSET 0) p, pg_catalog.pg_control_system() s`,
  values: [],
  rows: "array",
  prepare: true,
  simple: false
}

const page = 8192n

/**
 * Where the last record ends, of where the next one is going to begin: at the end of a page the header of the next one is between, 24 bytes or
 * 40, and a standby that has all there is would never be there. A record that does end so little into a page began before it, so that whoever
 * has reached the page has all of it.
 */
const endOf = (lsn: bigint): bigint => {
  const into = lsn % page
  return into === 24n || into === 40n ? lsn - into : lsn
}

/** The first eight digits of the name of a part of the log. */
const timelineOf = (file: string): number => Number.parseInt(file.slice(0, 8), 16)

/** What a server has answered, if that says how far it is. */
export const readPosition = (flight: Flight): Position | undefined => {
  const row = flight.result.rows[0]
  const [systemId, lsn, file, followed]: ReadonlyArray<unknown> = Array.isArray(row) ? row : []
  if (typeof systemId !== "string" || typeof lsn !== "string" || !isLsn(lsn)) return undefined
  const timeline =
    typeof file === "string" ? timelineOf(file) : typeof followed === "string" ? Number(followed) : undefined
  return { systemId, lsn: endOf(parseLsn(lsn)), timeline }
}

/** The token of a position, if its history is known. */
export const tokenOf = (database: string, position: Position | undefined): Token | undefined =>
  position?.timeline === undefined
    ? undefined
    : // made of what was checked when it was read
      new Token({ database, ...position, timeline: position.timeline }, { disableValidation: true })

/**
 * Whether a server has what a token tells of.
 *
 * - `caughtUp`: it has.
 * - `behind`: it is on its way there.
 * - `lost`: its history is another one, by a failover or because it is another cluster.
 * - `unproved`: it does not say which history it is in.
 */
export type Verdict = "caughtUp" | "behind" | "lost" | "unproved"

export const judge = (position: Position | undefined, token: Token): Verdict => {
  if (position === undefined) return "unproved"
  if (position.systemId !== token.systemId) return "lost"
  if (position.timeline === undefined) return "unproved"
  if (position.timeline > token.timeline) return "lost"
  return position.timeline === token.timeline && position.lsn >= token.lsn ? "caughtUp" : "behind"
}
