/**
 * The report of a server about itself: its role, its history and its position.
 */

import { rawQuery } from "../connection/statementRequest.js"
import type { Exchange } from "../protocol/exchange.js"
import { timelineOf, toLsn } from "../sql/lsn.js"

/** Report of a server about itself. */
export interface ServerReport {
  /** The id of the cluster, which its standbys share. */
  readonly systemId: string
  readonly isStandby: boolean
  /** The timeline of a primary, or the timeline that a standby receives; `undefined` if unknown. */
  readonly timeline: number | undefined
  /** The position up to which the WAL is on the disk of a primary, or is replayed by a standby. */
  readonly lsn: bigint | undefined
  /** True if a standby receives WAL; `undefined` on a primary, and if the user may not see it. */
  readonly isStreaming: boolean | undefined
  /** The time since the commit that a standby has replayed last, by the clocks of the servers, in ms. */
  readonly replayedAgo: number | undefined
}

/** The report of a server that refuses the query: it may be the only writer, but proves no history. */
export const withoutHistory: ServerReport = {
  systemId: "",
  isStandby: false,
  timeline: undefined,
  lsn: undefined,
  isStreaming: undefined,
  replayedAgo: undefined
}

/**
 * The query of the report. The timeline of a primary is read from the name of the WAL file, because
 * `pg_control_checkpoint` reports a new timeline only after a checkpoint.
 *
 * The position of a primary is that of its flush and not of its insert: after the last record the
 * insert position may be behind the header of a page, where no standby arrives until more is written.
 * A standby's timeline is read after its position; see `positionQuery` for the reason.
 */
export const reportQuery = rawQuery(
  `SELECT s.system_identifier, p.standby::pg_catalog.text,
  CASE WHEN NOT p.standby THEN pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()) END, p.lsn,
  (SELECT pg_catalog.concat(r.status, ' ', r.received_tli) FROM pg_catalog.pg_stat_wal_receiver r
    WHERE p.standby AND p.lsn IS NOT NULL),
  CASE WHEN p.standby THEN pg_catalog.date_part('epoch',
    pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) pg_catalog.pg_last_xact_replay_timestamp())::pg_catalog.text END
FROM (SELECT r.standby, CASE WHEN r.standby THEN pg_catalog.pg_last_wal_replay_lsn()
    ELSE pg_catalog.pg_current_wal_flush_lsn() END AS lsn
  FROM (SELECT pg_catalog.pg_is_in_recovery() AS standby OFFSET 0) r OFFSET 0) p, pg_catalog.pg_control_system() s`,
  { prepare: true }
)

/** Reads the state of a WAL receiver, a text such as `streaming 2`; without a receiver there is none. */
const readReceiver = (receiver: unknown): Pick<ServerReport, "isStreaming" | "timeline"> => {
  if (typeof receiver !== "string") return { isStreaming: false, timeline: undefined }
  const [status, timeline] = receiver.split(" ")
  // a user without the right to see the state sees that there is a receiver
  if (!status) return { isStreaming: undefined, timeline: undefined }
  const isStreaming = status === "streaming"
  return { isStreaming, timeline: isStreaming && timeline ? Number(timeline) : undefined }
}

/** Reads the report from the answer; `undefined` if the answer is not that of a PostgreSQL server. */
export const readReport = (exchange: Exchange): ServerReport | undefined => {
  const row: unknown = exchange.result.rows[0]
  const [systemId, standby, walFile, lsn, receiver, replayedAgo]: ReadonlyArray<unknown> = Array.isArray(row) ? row : []
  if (typeof systemId !== "string" || typeof standby !== "string") return undefined
  const common = { systemId, lsn: toLsn(lsn) }
  if (standby === "true") {
    const seconds = typeof replayedAgo === "string" ? Number(replayedAgo) : Number.NaN
    const ago = Number.isFinite(seconds) ? 1000 * seconds : undefined
    return { ...common, isStandby: true, replayedAgo: ago, ...readReceiver(receiver) }
  }
  const timeline = typeof walFile === "string" ? timelineOf(walFile) : undefined
  return { ...common, isStandby: false, timeline, isStreaming: undefined, replayedAgo: undefined }
}
