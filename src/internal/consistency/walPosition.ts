/**
 * The query of a server's WAL position, the tokens that are made of positions, and the check of a
 * position against tokens.
 */

import type { Session, Token } from "../../Consistency.js"
import * as clock from "../concurrency/clock.js"
import type { Connection, Request } from "../connection/connection.js"
import type { Exchange } from "../protocol/exchange.js"
import { constantStep, type Step } from "../protocol/frontendMessages.js"
import { isLsn, type Position, parseLsn } from "../sql/lsn.js"

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
const positionQuery: Request = {
  text: `SELECT s.system_identifier, p.lsn,
  CASE WHEN p.standby THEN NULL ELSE pg_catalog.pg_walfile_name(p.lsn) END,
  (SELECT r.received_tli FROM pg_catalog.pg_stat_wal_receiver r
    WHERE p.standby AND p.lsn IS NOT NULL AND r.status OPERATOR(pg_catalog.=) 'streaming'),
  p.flushed, pg_catalog.current_setting('effect_db.commit', true), pg_catalog.current_setting('wal_block_size')
FROM (SELECT r.standby, CASE WHEN r.standby THEN pg_catalog.pg_last_wal_replay_lsn()
  ELSE pg_catalog.pg_current_wal_insert_lsn() END AS lsn,
  CASE WHEN r.standby THEN NULL ELSE pg_catalog.pg_current_wal_flush_lsn() END AS flushed
  FROM (SELECT pg_catalog.pg_is_in_recovery() AS standby OFFSET 0) r OFFSET 0) p, pg_catalog.pg_control_system() s`,
  values: [],
  // the type parsers of the program must not change these columns
  rows: "raw",
  prepare: true,
  simple: false
}

/**
 * The step before COMMIT that saves `synchronous_commit` and the id of the transaction. COMMIT
 * resets `synchronous_commit` if it was SET LOCAL. A transaction without an id has nothing to
 * commit.
 */
const commitInfoStep: Step = constantStep(
  `SELECT pg_catalog.set_config('effect_db.commit', pg_catalog.concat(pg_catalog.current_setting('synchronous_commit'), ' ',
  pg_catalog.pg_current_xact_id_if_assigned()), false)`
)

/**
 * Returns the end of the last WAL record, given the start of the next. If the next record is the
 * first of a page, the header of the page is between the two.
 */
const recordEnd = (lsn: bigint, pageSize: number): bigint => {
  if (!(pageSize > 0)) return lsn
  const offset = lsn % BigInt(pageSize)
  return offset === 24n || offset === 40n ? lsn - offset : lsn
}

/** Returns the timeline: the first eight digits of the name of a WAL file. */
const timelineOf = (walFile: string): number => Number.parseInt(walFile.slice(0, 8), 16)

/** Answer of a server to the position query. */
export interface WalStatus {
  readonly position: Position
  /** The position up to which the WAL of a primary is on disk; `undefined` on a standby. */
  readonly flushed: bigint | undefined
  /** The text that {@link commitInfoStep} has saved last in the session. */
  readonly commitInfo: string
  readonly pageSize: number
}

const toLsn = (text: unknown): bigint | undefined =>
  typeof text === "string" && isLsn(text) ? parseLsn(text) : undefined

const toText = (text: unknown): string => (typeof text === "string" ? text : "")

const decodeStatus = (exchange: Exchange): WalStatus | undefined => {
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

const none: ReadonlyArray<never> = []

/** Result of a COMMIT with a position query, with the status of the server after the COMMIT. */
export interface CommitResult {
  /** False if the server has rolled back instead. */
  readonly isCommitted: boolean
  readonly status: WalStatus | undefined
}

const commitSteps = [commitInfoStep, constantStep("COMMIT")]

/** The steps that reset a session that other clients share behind a pooler. */
const resetSteps = [constantStep("RESET effect_db.commit")]

/**
 * Commits and queries the position in the same exchange. `callback` receives a failure only if the
 * COMMIT was not answered.
 */
export const commitAndQueryPosition = (
  connection: Connection,
  callback: (failure: Parameters<Parameters<Connection["steps"]>[1]>[0], result: CommitResult) => void
): void =>
  connection.run(commitSteps, positionQuery, connection.isPooled ? resetSteps : none, (failure, exchange) => {
    const isAnswered = exchange.acknowledged >= commitSteps.length
    const status = failure === undefined ? decodeStatus(exchange) : undefined
    // a failure after the answer to COMMIT cannot undo the COMMIT
    callback(isAnswered ? undefined : failure, { isCommitted: exchange.precedingTag !== "ROLLBACK", status })
  })

/** Fields of a token, as a causal session records them. */
type TokenFields = Pick<Token, "database" | "systemId" | "timeline" | "lsn">

/**
 * Returns a token that covers a write; `undefined` if the timeline is unknown. If the COMMIT has
 * waited for the flush of its WAL, the token is the position on disk, and WAL on disk is sent to
 * replicas. Otherwise the token is the end of the last record, and possibly the server sends the
 * WAL up to that position only after another commit.
 */
const tokenOf = (
  database: string,
  { flushed, pageSize, position }: WalStatus,
  isOnDisk: boolean
): TokenFields | undefined => {
  const { systemId, timeline } = position
  if (timeline === undefined) return undefined
  const lsn = isOnDisk && flushed !== undefined ? flushed : recordEnd(position.lsn, pageSize)
  return { database, systemId, timeline, lsn }
}

/**
 * Recorder of tokens for causal sessions. It must be created before the position query, because the
 * answer covers only the writes before the creation.
 */
export class TokenRecorder {
  private readonly sessions: ReadonlyArray<readonly [session: Session, queriedAt: number]>

  constructor(
    private readonly database: string,
    sessions: Iterable<Session>
  ) {
    this.sessions = Array.from(sessions, (session) => [session, session.beginQuery()] as const)
  }

  /**
   * Records the token of a COMMIT, unless the COMMIT had nothing to commit. Without a status the
   * position counts as unknown.
   */
  recordCommit(status: WalStatus | undefined): void {
    const [synchronous = "", xid = ""] = status?.commitInfo.split(" ") ?? []
    if (status !== undefined && synchronous !== "" && xid === "") return
    const isOnDisk = synchronous !== "" && synchronous !== "off"
    this.record(status === undefined ? undefined : tokenOf(this.database, status, isOnDisk))
  }

  /**
   * Records a token after a write whose COMMIT was not observed. Without a status the position
   * counts as unknown.
   */
  recordWrite(status: WalStatus | undefined): void {
    this.record(status === undefined ? undefined : tokenOf(this.database, status, false))
  }

  private record(token: TokenFields | undefined): void {
    for (const [session, queriedAt] of this.sessions) session.record(this.database, token, queriedAt)
  }
}

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

const judgeToken = ({ lsn, systemId, timeline }: Position, database: string, token: Token): Freshness => {
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
  tokens: ReadonlyArray<Token>
): Freshness => {
  if (position === undefined) return "unproved"
  const all = tokens.map((token) => judgeToken(position, database, token))
  return worstFirst.find((freshness) => all.includes(freshness)) ?? "caughtUp"
}
