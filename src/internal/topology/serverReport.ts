/**
 * The report of a server about itself: its role, its history and its position in the WAL.
 */

import type { Request } from "../connection/connection.js"
import type { Exchange } from "../protocol/exchange.js"
import { isLsn, parseLsn } from "../sql/lsn.js"

/** Report of a server about itself. */
export interface ServerReport {
  /** The id of the cluster, which its standbys share. */
  readonly systemId: string
  readonly isStandby: boolean
  /**
   * The timeline of a primary, or of the WAL that a standby streams. `undefined` if a standby does
   * not stream.
   */
  readonly timeline: number | undefined
  /** The position that a primary has written, or a standby has replayed, as a number of bytes. */
  readonly position: bigint
  /** The age of the last commit that a standby has replayed, in ms; `undefined` if there is none. */
  readonly replayAgeMillis: number | undefined
}

/** The report of a server that refuses the query: it may be the only writer, but proves no history. */
export const withoutHistory: ServerReport = {
  systemId: "",
  isStandby: false,
  timeline: undefined,
  position: 0n,
  replayAgeMillis: undefined
}

/**
 * The query of the report. The timeline of a primary is read from the name of its WAL file, because
 * `pg_control_checkpoint` reports a new timeline only after a checkpoint. The receiver of a standby
 * counts only while it streams: otherwise it shows the timeline that it has streamed last.
 */
export const reportQuery: Request = {
  text: `SELECT s.system_identifier, r.standby::pg_catalog.text,
  CASE WHEN r.standby THEN (SELECT w.received_tli::pg_catalog.text FROM pg_catalog.pg_stat_wal_receiver w
    WHERE w.status OPERATOR(pg_catalog.=) 'streaming')
  ELSE pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()) END,
  CASE WHEN r.standby THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_flush_lsn() END,
  (EXTRACT(epoch FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) pg_catalog.pg_last_xact_replay_timestamp())
    OPERATOR(pg_catalog.*) 1000)::pg_catalog.text
FROM (SELECT pg_catalog.pg_is_in_recovery() AS standby OFFSET 0) r, pg_catalog.pg_control_system() s`,
  values: [],
  // the type parsers of the program must not change these columns
  rows: "raw",
  prepare: true,
  simple: false
}

/** Reads the report from the answer; `undefined` if the answer is not that of a PostgreSQL server. */
export const readReport = (exchange: Exchange): ServerReport | undefined => {
  const row: unknown = exchange.result.rows[0]
  const [systemId, standby, history, position, replayAge]: ReadonlyArray<unknown> = Array.isArray(row) ? row : []
  if (typeof systemId !== "string" || typeof position !== "string" || !isLsn(position)) return undefined
  const isStandby = standby === "true"
  return {
    systemId,
    isStandby,
    // the first eight digits of the name of a WAL file are its timeline
    timeline:
      typeof history !== "string" ? undefined : isStandby ? Number(history) : Number.parseInt(history.slice(0, 8), 16),
    position: parseLsn(position),
    replayAgeMillis: typeof replayAge === "string" ? Math.max(0, Number(replayAge)) : undefined
  }
}
