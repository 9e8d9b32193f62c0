/**
 * The consequences of a failed exchange for a level: the failure of the statement or of the COMMIT,
 * and the state of the level.
 */
import type { Connection, Exchange, Failure } from "../connection/connection.js"
import type { PlainFailure, StatementFailure, TransactionFailure } from "../connection/failure.js"
import { afterFirst, statementFailure } from "../connection/statementFailure.js"
import { isFenced, isMarkerRefused, markerHint } from "../outcome/commitMarker.js"
import type { ConnectionHolder } from "./connectionHolder.js"
import { type EndingStatement, endingStatementOf, mayCommit } from "./endingStatement.js"
import type { Interrupted, Level, LevelState } from "./level.js"
import type { PendingBegin } from "./pendingBegin.js"

/**
 * Returns the failure of a statement that has failed, was interrupted or has ended the transaction,
 * and marks the level and its transaction accordingly.
 */
export const judge = (
  level: Level,
  failure: Failure | undefined,
  exchange: Exchange,
  text: string,
  pending: ReadonlyArray<PendingBegin>,
  isAborted: boolean,
  connection: Connection,
  interruption: Interrupted | undefined
): StatementFailure | undefined => {
  const { connectionHolder } = level
  if (interruption !== undefined) markInterrupted(level, interruption, connection, isAborted)
  // before the answer to BEGIN nothing of the transaction exists, so that no work can be lost or
  // done twice
  const outermost = pending[0]?.level
  const hasTransaction = outermost === undefined || outermost.parent !== undefined || outermost.isBegun
  if (!hasTransaction)
    return (
      interruption ??
      (failure === undefined ? undefined : statementFailure(connectionHolder.location, failure, "notSent"))
    )
  const ending = endingStatementOf(exchange, text)
  const isLost = failure?._tag === "lost"
  if (ending !== undefined || (!isLost && connection.status === "I")) {
    // commands that follow a ROLLBACK in one text run outside of the transaction, and may be stored
    connectionHolder.mayHaveStored ||= exchange.results.length > 1
    return markEnded(level, ending, failure)
  }
  if (failure === undefined) return interruption
  // the COMMIT in its text may have been executed before the answer was lost
  const isInDoubt = isLost && failure.sent && !failure.undone && mayCommit(text)
  connectionHolder.mayHaveStored ||= isInDoubt
  const reported =
    interruption ??
    afterFirst(statementFailure(connectionHolder.location, failure, isInDoubt ? "inDoubt" : "undone"), level.failedBy)
  // if this side has closed the connection, the reason is recorded already, and stays
  if (isLost) connectionHolder.markLost(reported)
  else if (isAborted) {
    level.failedBy ??= reported
    connectionHolder.recordConflict(reported)
  }
  return reported
}

/**
 * Records an interruption: for the whole transaction if the connection is closed, or for the
 * innermost begun level if the server has aborted that.
 */
const markInterrupted = (level: Level, interruption: Interrupted, connection: Connection, isAborted: boolean): void => {
  if (connection.broken !== undefined) return level.connectionHolder.markLost(interruption)
  if (!isAborted) return
  let begun = level
  while (!begun.isBegun && begun.parent !== undefined) begun = begun.parent
  begun.interrupt(interruption)
}

/**
 * Marks a transaction that a statement has ended, and returns the failure: further statements must
 * run neither without a transaction nor in another one that the statement has begun.
 */
const markEnded = (
  { connectionHolder }: Level,
  by: EndingStatement | undefined,
  failure: Failure | undefined
): StatementFailure | undefined => {
  // `by` is undefined after PREPARE TRANSACTION, whose work a later COMMIT PREPARED may store
  connectionHolder.mayHaveStored ||= by !== "ROLLBACK"
  connectionHolder.recordTokens()?.recordCommit(undefined)
  connectionHolder.markLost({
    _tag: "TransactionEnded",
    ...connectionHolder.location,
    ...(by === undefined ? {} : { by }),
    ...(failure === undefined ? {} : { earlier: statementFailure(connectionHolder.location, failure, "undone") })
  })
  return connectionHolder.lost
}

/** Returns the fields of an error that identify the transaction on its server, if they are known. */
const idFields = ({ idTracker: { id }, marker }: ConnectionHolder) => ({
  ...(id === undefined ? {} : { xid: id.xid, systemId: id.run.systemId, timeline: id.run.timeline }),
  ...(marker === undefined ? {} : { marker: marker.id })
})

/** Returns the state of a level after a failed COMMIT, and the failure to report. */
export const commitFailure = (
  { connectionHolder, readOnly }: Level,
  failure: Failure
): readonly [LevelState, TransactionFailure] => {
  const { keyStep, location, marker } = connectionHolder
  if (failure._tag === "lost") {
    return failure.sent && !failure.undone && !readOnly
      ? ["unknown", { _tag: "CommitOutcomeUnknown", ...location, cause: failure.error, ...idFields(connectionHolder) }]
      : ["failed", statementFailure(location, failure, "undone")]
  }
  // the COMMIT came after the proof that its transaction is undone
  const isKeyTaken = keyStep !== undefined && failure.acknowledged === 0
  if (marker !== undefined && !isKeyTaken && isFenced(failure))
    return ["failed", { _tag: "Disconnected", ...location, cause: failure.error, outcome: "undone" }]
  const refusal = statementFailure(location, failure, "undone")
  const isUnusable = marker !== undefined && isMarkerRefused(failure)
  const earlier = isUnusable && refusal._tag === "QueryFailed" ? { ...refusal, hint: markerHint } : refusal
  const sqlState = failure._tag === "refused" ? (failure.error.code ?? "") : ""
  return ["failed", { _tag: "CommitFailed", ...location, sqlState, earlier }]
}

/** Builds the failure of a COMMIT or RELEASE that has become a rollback, with the reason. */
export const rolledBackAtCommit = ({
  failedBy,
  connectionHolder,
  undone
}: Level): PlainFailure<"RolledBackAtCommit"> => ({
  _tag: "RolledBackAtCommit",
  ...connectionHolder.location,
  ...(undone ?? (failedBy === undefined ? {} : { earlier: failedBy }))
})
