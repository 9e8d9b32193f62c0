/**
 * The report of a server about itself: its role and its history.
 */

import type { Request } from "../connection/connection.js"
import type { Exchange } from "../protocol/exchange.js"
import { timelineOf } from "../sql/lsn.js"

/** Report of a server about itself. */
export interface ServerReport {
  /** The id of the cluster, which its standbys share. */
  readonly systemId: string
  readonly isStandby: boolean
  /** The timeline of a primary; `undefined` on a standby. */
  readonly timeline: number | undefined
}

/** The report of a server that refuses the query: it may be the only writer, but proves no history. */
export const withoutHistory: ServerReport = { systemId: "", isStandby: false, timeline: undefined }

/**
 * The query of the report. The timeline is read from the name of the WAL file, because
 * `pg_control_checkpoint` reports a new timeline only after a checkpoint.
 */
export const reportQuery: Request = {
  text: `SELECT s.system_identifier, r.standby::pg_catalog.text,
  CASE WHEN NOT r.standby THEN pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()) END
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
  const [systemId, standby, walFile]: ReadonlyArray<unknown> = Array.isArray(row) ? row : []
  if (typeof systemId !== "string" || typeof standby !== "string") return undefined
  return {
    systemId,
    isStandby: standby === "true",
    timeline: typeof walFile === "string" ? timelineOf(walFile) : undefined
  }
}
