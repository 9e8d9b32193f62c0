/**
 * The query of a server's WAL position.
 */
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import { rawQuery } from "../connection/statementRequest.js"
import type { Exchange } from "../protocol/exchange.js"
import { type Position, timelineOf, toLsn } from "../sql/lsn.js"

const none: ReadonlyArray<never> = []

/**
 * The query of a server's position, on a primary or a standby. The timeline is read after the
 * position, never before: a standby may switch to another timeline in between, and the new position
 * would then be taken for a part of the old timeline. `OFFSET 0` keeps the planner from merging the
 * two reads. Only a streaming WAL receiver counts: a receiver that does not stream reports its last
 * timeline, while the server may replay another timeline from an archive.
 *
 * `pg_last_wal_replay_lsn` alone is no proof: after a failover another history may have reached the
 * same position.
 */
export const positionQuery = rawQuery(
  `SELECT s.system_identifier, p.lsn,
  CASE WHEN p.standby THEN NULL ELSE pg_catalog.pg_walfile_name(p.lsn) END,
  (SELECT r.received_tli FROM pg_catalog.pg_stat_wal_receiver r
    WHERE p.standby AND p.lsn IS NOT NULL AND r.status OPERATOR(pg_catalog.=) 'streaming'),
  p.flushed, pg_catalog.current_setting('effect_db.commit', true), pg_catalog.current_setting('wal_block_size')
FROM (SELECT r.standby, CASE WHEN r.standby THEN pg_catalog.pg_last_wal_replay_lsn()
  ELSE pg_catalog.pg_current_wal_insert_lsn() END AS lsn,
  CASE WHEN r.standby THEN NULL ELSE pg_catalog.pg_current_wal_flush_lsn() END AS flushed
  FROM (SELECT pg_catalog.pg_is_in_recovery() AS standby OFFSET 0) r OFFSET 0) p, pg_catalog.pg_control_system() s`,
  { prepare: true }
)

/** Answer of a server to the position query. */
export interface WalStatus {
  readonly position: Position
  /** The position up to which the WAL of a primary is on disk; `undefined` on a standby. */
  readonly flushed: bigint | undefined
  /** The text that the last COMMIT with a position query has saved in the session. */
  readonly commitInfo: string
  readonly pageSize: number
}

const toText = (text: unknown): string => (typeof text === "string" ? text : "")

/** Reads the answer to the position query; returns `undefined` if the position is unknown. */
export const decodeStatus = (exchange: Exchange): WalStatus | undefined => {
  const row = exchange.result.rows[0]
  const [systemId, lsnText, walFile, receivedTimeline, flushed, commitInfo, pageSize]: ReadonlyArray<unknown> =
    Array.isArray(row) ? row : []
  const lsn = toLsn(lsnText)
  if (typeof systemId !== "string" || lsn === undefined) return undefined
  const timeline =
    typeof walFile === "string"
      ? timelineOf(walFile)
      : typeof receivedTimeline === "string"
        ? Number(receivedTimeline)
        : undefined
  return {
    position: { systemId, lsn, timeline },
    flushed: toLsn(flushed),
    commitInfo: toText(commitInfo),
    pageSize: Number(toText(pageSize))
  }
}

/**
 * Queries the position on a connection; `callback` receives `undefined` if the position is unknown.
 */
export const queryPosition = (connection: Connection, callback: (status: WalStatus | undefined) => void): void =>
  connection.run(none, positionQuery, none, (failure, exchange) =>
    callback(failure === undefined ? decodeStatus(exchange) : undefined)
  )

/** The timeout of a position query, in ms. */
export const positionTimeout = 1000

/**
 * Queries the position on a connection, and aborts the connection if the server does not answer
 * within `timeout` ms; the returned function aborts the connection at once.
 */
export const queryPositionWithin = (
  connection: Connection,
  timeout: number,
  callback: (status: WalStatus | undefined) => void
): (() => void) => {
  let isDone = false
  const finish: typeof callback = (status) => {
    if (isDone) return
    isDone = true
    clock.clear(timer)
    callback(status)
  }
  const abort = () => {
    connection.abort("cancelled")
    finish(undefined)
  }
  const timer = clock.timer(timeout, abort)
  queryPosition(connection, finish)
  return abort
}
