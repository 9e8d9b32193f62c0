/**
 * The marker of a COMMIT: a row that is stored with the transaction, by which its outcome is proved
 * after the answer to the COMMIT was lost.
 *
 * To prove it, a fence with the id of the marker is inserted on the primary. The insertion waits for
 * a transaction that has inserted the marker and is still open. If it finds the marker, the
 * transaction is committed. Otherwise the transaction is undone for good, because its own marker
 * would collide with the fence. The marker travels with replication and recovery, so it shows the
 * outcome in the history that the primary has.
 */

import { meaning } from "../../SqlState.js"
import * as clock from "../concurrency/clock.js"
import type { Connection, Failure, Request } from "../connection/connection.js"
import { codeOf } from "../connection/statementFailure.js"
import { maintenanceQuery } from "../connection/statementRequest.js"
import { constantStep, parameterStep, type Step, step } from "../protocol/frontendMessages.js"
import type { TransactionStatus } from "./transactionStatus.js"

/**
 * The marker of one COMMIT. It lives as long as the transaction, so it is a class and no object
 * literal (see "Performance rules" in CONTRIBUTING.md).
 */
export class CommitMarker {
  /**
   * `notifies` is true if the transaction may have notified. The server assigns the id of such a
   * transaction at COMMIT, later than the marker, so the marker must not depend on the id.
   */
  constructor(
    readonly notifies: boolean,
    /** True if the marker decides about prepared transactions, so that it is stored in every case. */
    readonly isDecision = false,
    readonly id = clock.uuid(),
    readonly createdAt = clock.now()
  ) {}

  /** True if its step is a statement that sessions keep prepared. */
  get isPreparable(): boolean {
    return !this.notifies && !this.isDecision
  }
}

const hasWritten = "pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL"
const mayWrite = "pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'off'"

/** Returns the text that inserts a marker, unless the transaction has nothing to commit. */
const markerText = (notifies: boolean, id: string): string =>
  `SELECT CASE WHEN ${hasWritten}${notifies ? ` OR ${mayWrite}` : ""} THEN effect_db.mark_commit(${id}) END`

const preparedText = markerText(false, "$1")
const preparedName = "effect_db_marker"

/**
 * Makes the COMMIT wait for the disk. A decision must not be lost in a crash, because other
 * databases have followed it.
 */
const durably = `pg_catalog.set_config('synchronous_commit', CASE
  WHEN pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.=) 'off' THEN 'on'
  ELSE pg_catalog.current_setting('synchronous_commit') END, true)`

/** Returns the step before COMMIT that inserts a marker. */
export const markerStepOf = (
  connection: Connection,
  { id, isDecision, isPreparable, notifies }: CommitMarker
): Step => {
  if (isDecision) return step(`SELECT effect_db.mark_commit('${id}'), ${durably}`)
  const text = () => markerText(notifies, `'${id}'`)
  if (!isPreparable || connection.isPooled || !connection.preparesStatements) return step(text())
  return parameterStep(preparedName, preparedText, [id], connection.hasProofStatement, text)
}

/** Checks if a COMMIT was refused because of the fence with the id of its marker. */
export const isFenced = (failure: Failure): boolean => {
  if (failure._tag !== "refused" || meaning(codeOf(failure.error)) !== "UniqueViolation") return false
  const { schema, table } = failure.error
  return schema === "effect_db" && table === "outcome"
}

/**
 * Checks if a COMMIT was refused because its transaction may not use the table, or because the
 * table does not exist, for example after a failover that has lost it.
 */
export const isMarkerRefused = (failure: Failure): boolean =>
  failure._tag === "refused" && failure.acknowledged === 0 && /^(?:42|3F)/.test(codeOf(failure.error))

/** The advice for such a refusal. */
export const markerHint =
  'outcome: "marker" writes to effect_db.outcome: create it with Migrations.outcomeTable, and ' +
  "GRANT USAGE ON SCHEMA effect_db to each role that transactions set"

const none: ReadonlyArray<never> = []
const commit = [constantStep("COMMIT")]
const rollback = [constantStep("ROLLBACK")]

/** The longest wait for an open transaction in one attempt, in ms. */
const lockTimeout = 500

const begin = constantStep("BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE")
const limits = `SELECT pg_catalog.set_config('lock_timeout', '${lockTimeout}', true),
  pg_catalog.set_config('statement_timeout', '${4 * lockTimeout}', true)`

/**
 * The begin of a transaction of the library. Its COMMIT need not be on disk: after a crash, the
 * transactions that a fence concerns do not exist any more.
 */
const beginSteps = [
  begin,
  constantStep(`${limits},
  pg_catalog.set_config('synchronous_commit', 'off', true)`)
]

/**
 * The steps around the fence of a decision. Prepared transactions outlive a crash, and follow the
 * fence, so the COMMIT of the fence waits for the disk and the synchronous standbys. The server
 * would end that wait after `statement_timeout` as if the standbys had answered, so the COMMIT has
 * no timeout.
 */
const beginDecision = [begin, constantStep(`${limits}, ${durably}`)]
const commitDecision = [constantStep("SET LOCAL statement_timeout = 0"), constantStep("COMMIT")]

/** Runs a statement in a transaction of its own, in one exchange if it does not fail. */
const runAlone = (
  connection: Connection,
  before: ReadonlyArray<Step>,
  request: Request,
  callback: Parameters<Connection["run"]>[3],
  after = commit
): void =>
  connection.run(before, request, after, (failure, exchange) => {
    if (failure?._tag !== "refused" || connection.status === "I") return callback(failure, exchange)
    connection.undo(rollback, () => callback(failure, exchange))
  })

const ownerRequest = (id: string): Request =>
  maintenanceQuery("SELECT o.is_fence FROM effect_db.outcome o WHERE o.id OPERATOR(pg_catalog.=) $1", [id])

/** Queries the outcome of the transaction of a marker, and fences it unless it is committed. */
export const queryMarker = (
  connection: Connection,
  { id, isDecision }: CommitMarker,
  callback: (status: TransactionStatus) => void
): void => {
  // the second attempt for a decision must write, so that its COMMIT waits for the disk and the
  // standbys, and with that for the COMMIT of the first attempt
  const otherwise = isDecision ? "(id) DO UPDATE SET is_fence = outcome.is_fence" : "DO NOTHING"
  const fence = step(`INSERT INTO effect_db.outcome (id, is_fence) VALUES ('${id}', true) ON CONFLICT ${otherwise}`)
  const before = [...(isDecision ? beginDecision : beginSteps), fence]
  const onAnswer: Parameters<Connection["run"]>[3] = (failure, exchange) => {
    const row = exchange.result.rows[0]
    const [isFence]: ReadonlyArray<unknown> = Array.isArray(row) ? row : none
    if (failure !== undefined || isFence === undefined) return callback("open")
    callback(isFence === "t" ? "undone" : "committed")
  }
  runAlone(connection, before, ownerRequest(id), onAnswer, isDecision ? commitDecision : commit)
}

/** The number of rows of one batch. */
const batchSize = 5000

const isOld = `o.at OPERATOR(pg_catalog.<) (pg_catalog.now() OPERATOR(pg_catalog.-) pg_catalog.make_interval(secs => $2))`

/**
 * Deletes old rows. The primary key has the markers in the order of time. The keys of requests have
 * an index of their own for this.
 */
const sweepText = `WITH old_marker AS (
  SELECT o.id FROM effect_db.outcome o WHERE o.id OPERATOR(pg_catalog.<) $1::pg_catalog.uuid AND ${isOld}
  ORDER BY o.id LIMIT ${batchSize} FOR UPDATE SKIP LOCKED
), old_key AS (
  SELECT o.id FROM effect_db.outcome o WHERE o.fingerprint IS NOT NULL AND ${isOld}
  ORDER BY o.at LIMIT ${batchSize} FOR UPDATE SKIP LOCKED
) DELETE FROM effect_db.outcome d
  USING (SELECT id FROM old_marker UNION ALL SELECT id FROM old_key) old WHERE d.id OPERATOR(pg_catalog.=) old.id`

/**
 * Deletes a batch of the rows that are older than `retention` ms. The deletion waits for no lock.
 * `callback` receives the failure, if there is one, and true if there may be more rows.
 */
export const sweepMarkers = (
  connection: Connection,
  retention: number,
  callback: (failure: Failure | undefined, hasMore: boolean) => void
): void => {
  const values = [clock.uuidBefore(retention), retention / 1000]
  runAlone(connection, beginSteps, maintenanceQuery(sweepText, values), (failure, exchange) =>
    callback(failure, failure === undefined && (exchange.result.rowCount ?? 0) >= batchSize)
  )
}
