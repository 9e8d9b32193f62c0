/**
 * The id of a transaction on its server, and the query of its status after the answer to its COMMIT
 * was lost.
 *
 * `pg_xact_status` is true only in the history that the id was assigned in. After a failover the
 * new primary assigns the same ids again, so the system identifier and the timeline must be the
 * same. After a crash the same server may assign an id again on the same timeline, if no record of
 * the transaction was on disk. Therefore the run of the server counts, too: the start of its
 * postmaster, and the end of its last recovery, which changes without a new postmaster if one
 * backend crashes. In a later run, only the loss of a transaction can be proved: by a recovery that
 * has ended before the position at which the id was queried, or by the status `aborted`. The status
 * `committed` may be that of a later transaction with the same id.
 */
import { isInvalidParameter } from "../../SqlState.js"
import type { Connection } from "../connection/connection.js"
import { codeOf } from "../connection/statementFailure.js"
import { maintenanceQuery, rawQuery } from "../connection/statementRequest.js"
import { constantStep, preparedStep, type Step } from "../protocol/frontendMessages.js"
import { parseLsn, type ServerRun, timelineOf, toLsn } from "../sql/lsn.js"

/**
 * The id of a transaction that has written. It lives as long as the transaction, so it is a class
 * and no object literal (see "Performance rules" in CONTRIBUTING.md).
 */
export class TransactionId {
  constructor(
    readonly xid: string,
    /** A position before the COMMIT of the transaction, as a text. */
    readonly lsn: string,
    readonly run: ServerRun
  ) {}
}

const none: ReadonlyArray<never> = []

const ifPrimary = (value: string): string => `CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN ${value} END`

const insertLsn = "pg_catalog.pg_current_wal_insert_lsn()"

const idColumns = `pg_catalog.pg_current_xact_id_if_assigned(), ${ifPrimary(insertLsn)}`

const runColumns = `s.system_identifier, ${ifPrimary(`pg_catalog.pg_walfile_name(${insertLsn})`)} AS wal_file,
  pg_catalog.int8(pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time()) OPERATOR(pg_catalog.*) 1000000)
  AS started_at, pg_catalog.pg_last_wal_replay_lsn() AS recovered_to`

const runSource = "pg_catalog.pg_control_system() s"

const idAndRunText = `SELECT ${idColumns}, ${runColumns} FROM ${runSource}`
const idAndRunStep = constantStep(idAndRunText)
const idText = `SELECT ${idColumns}`
const idStep = constantStep(idText)
const preparedIdStep = preparedStep("effect_db_id", idText)

/** The query of the id and the run, for an exchange of its own. */
export const idRequest = maintenanceQuery(idAndRunText)

/**
 * Returns the step that queries the id of the open transaction. A session ends with the run of its
 * server, so the run is queried only once for each session.
 */
export const idStepOf = ({ hasProofStatement, isPooled, preparesStatements, serverRun }: Connection): Step => {
  if (isPooled || serverRun === undefined) return idAndRunStep
  if (!preparesStatements) return idStep
  return hasProofStatement ? preparedIdStep.again : preparedIdStep.first
}

const toText = (value: unknown): string | undefined => (typeof value === "string" ? value : undefined)

/** Decodes the columns of a run; returns `undefined` if the server is a standby. */
const decodeRun = ([systemId, walFile, started, recovered]: ReadonlyArray<unknown>): ServerRun | undefined => {
  const file = toText(walFile)
  if (file === undefined) return undefined
  return {
    systemId: toText(systemId) ?? "",
    timeline: timelineOf(file),
    startedAt: toText(started) ?? "",
    recoveredTo: toLsn(recovered)
  }
}

/**
 * Decodes the answer to a query of the id, and keeps the run of the server for its connection.
 * Returns `undefined` if the transaction has no id.
 */
export const decodeId = (connection: Connection, row: ReadonlyArray<unknown>): TransactionId | undefined => {
  const [xidText, lsnText] = row
  if (row.length > 2) connection.serverRun = decodeRun(row.slice(2))
  else connection.hasProofStatement = connection.preparesStatements
  const xid = toText(xidText)
  const lsn = toText(lsnText)
  const run = connection.serverRun
  return xid === undefined || lsn === undefined || run === undefined ? undefined : new TransactionId(xid, lsn, run)
}

/**
 * Status of a transaction.
 *
 * - `open`: the transaction is in progress, or no primary has answered; a later query may decide.
 * - `unproved`: no later query can decide either.
 */
export type TransactionStatus = "committed" | "undone" | "open" | "unproved"

/** Answer of a server to the query of a status. */
interface StatusAnswer {
  /** The run of the server; `undefined` on a standby. */
  readonly run: ServerRun | undefined
  /** The answer of `pg_xact_status`; `undefined` for an id of another history or a very old one. */
  readonly status: string | undefined
}

/**
 * Returns the status of a transaction by the answer of a server. After a crash the server may
 * assign the id of a transaction to a later one, but not if the transaction was prepared.
 */
export const judgeStatus = (
  { lsn, run }: TransactionId,
  { run: now, status }: StatusAnswer,
  wasPrepared = false
): TransactionStatus => {
  if (now === undefined) return "open"
  if (now.systemId !== run.systemId || now.timeline !== run.timeline) return "unproved"
  const isSameRun = now.startedAt === run.startedAt && now.recoveredTo === run.recoveredTo
  // the status may be that of a later transaction with the same id
  if (!isSameRun && now.recoveredTo !== undefined && now.recoveredTo < parseLsn(lsn)) return "undone"
  switch (status) {
    case "in progress":
      return "open"
    case "aborted":
      return "undone"
    case "committed":
      return isSameRun || wasPrepared ? "committed" : "unproved"
    default:
      return "unproved"
  }
}

/** The query of a status. The server reads the status only if it has the history of the id. */
const statusText = `SELECT r.*, CASE WHEN r.system_identifier::pg_catalog.text OPERATOR(pg_catalog.=) $1
  AND pg_catalog."left"(r.wal_file, 8) OPERATOR(pg_catalog.=) $2 THEN pg_catalog.pg_xact_status($3::pg_catalog.xid8) END
FROM (SELECT ${runColumns} FROM ${runSource} OFFSET 0) r`

/** Queries the status of a transaction on a connection. */
export const queryStatus = (
  connection: Connection,
  id: TransactionId,
  callback: (status: TransactionStatus) => void,
  wasPrepared = false
): void => {
  const { run, xid } = id
  const timeline = run.timeline.toString(16).toUpperCase().padStart(8, "0")
  const request = rawQuery(statusText, { values: [run.systemId, timeline, xid] })
  connection.run(none, request, none, (failure, exchange) => {
    if (failure !== undefined) {
      // the id is in the future of the server: a crash has lost its transaction, and the server has
      // not assigned the id again yet
      const isFuture = failure._tag === "refused" && isInvalidParameter(codeOf(failure.error))
      return callback(isFuture ? "undone" : "open")
    }
    const row = exchange.result.rows[0]
    const columns: ReadonlyArray<unknown> = Array.isArray(row) ? row : none
    callback(judgeStatus(id, { run: decodeRun(columns), status: toText(columns[4]) }, wasPrepared))
  })
}
