/**
 * The consequences of a failed exchange for a level: the failure of the statement or of the COMMIT,
 * and the state of the level.
 */
import {
  CommitFailed,
  CommitOutcomeUnknown,
  RolledBackAtCommit,
  type StatementError,
  TransactionEnded,
  type TransactionError,
  type TransactionInterrupted
} from "../../DatabaseError.js"
import type { Connection, Exchange, Failure } from "../connection/connection.js"
import { afterFirst, toStatementError } from "../edge/statementError.js"
import { type EndingStatement, endingStatementOf, mayCommit } from "./endingStatement.js"
import type { Level, LevelState } from "./level.js"
import type { PendingBegin } from "./pendingBegin.js"

/**
 * Returns the error of a statement that has failed or has ended the transaction, and marks the
 * level accordingly.
 */
export const judge = (
  level: Level,
  failure: Failure | undefined,
  exchange: Exchange,
  text: string,
  pending: ReadonlyArray<PendingBegin>,
  isAborted: boolean,
  connection: Connection,
  interruption: TransactionInterrupted | undefined
): StatementError | undefined => {
  const { holder } = level
  if (interruption !== undefined) markInterrupted(level, interruption, connection, isAborted)
  // before the answer to BEGIN nothing of the transaction exists, so that no work can be lost or
  // done twice
  const outermost = pending[0]?.level
  const hasTransaction = outermost === undefined || outermost.parent !== undefined || outermost.isBegun
  if (!hasTransaction)
    return interruption ?? (failure === undefined ? undefined : toStatementError(holder.location, failure, "notSent"))
  const ending = endingStatementOf(exchange, text)
  const isLost = failure?._tag === "lost"
  if (ending !== undefined || (!isLost && connection.status === "I")) {
    // commands that follow a ROLLBACK in one text run outside of the transaction
    holder.mayHaveStored ||= exchange.results.length > 1
    return markEnded(level, ending, failure)
  }
  if (failure === undefined) return interruption
  // its COMMIT may have been executed before its answer was lost
  const isInDoubt = isLost && failure.sent && !failure.undone && mayCommit(text)
  holder.mayHaveStored ||= isInDoubt
  const error =
    interruption ??
    afterFirst(toStatementError(holder.location, failure, isInDoubt ? "inDoubt" : "undone"), level.failedBy)
  // the holder has recorded if this side has closed the lost connection
  if (isLost) holder.markLost(error)
  else if (isAborted) {
    level.failedBy ??= error
    holder.noteConflict(error)
  }
  return error
}

/**
 * Marks the consequence of an interrupted statement: a lost connection, or a level that the server
 * has aborted.
 */
const markInterrupted = (
  level: Level,
  error: TransactionInterrupted,
  connection: Connection,
  isAborted: boolean
): void => {
  if (connection.broken !== undefined) return level.holder.markLost(error)
  if (!isAborted) return
  let begun = level
  while (!begun.isBegun && begun.parent !== undefined) begun = begun.parent
  begun.interrupt(error)
}

/**
 * Marks a transaction that a statement has ended: further statements must run neither without
 * a transaction nor in another one that began at once.
 */
const markEnded = (
  { holder }: Level,
  by: EndingStatement | undefined,
  failure: Failure | undefined
): StatementError | undefined => {
  // without a tag the statement is PREPARE TRANSACTION, and a COMMIT PREPARED may store the work
  holder.mayHaveStored ||= by !== "ROLLBACK"
  holder.recordTokens()?.recordCommit(undefined)
  const cause = failure === undefined ? undefined : toStatementError(holder.location, failure, "undone")
  holder.markLost(
    new TransactionEnded({
      ...holder.location,
      ...(by === undefined ? {} : { by }),
      ...(cause === undefined ? {} : { cause })
    })
  )
  return holder.lost
}

/** Returns the state of a level after a failed COMMIT, and the error. */
export const commitFailure = (
  { holder, readOnly }: Level,
  failure: Failure
): readonly [LevelState, TransactionError] => {
  const { location } = holder
  if (failure._tag === "lost") {
    return failure.sent && !failure.undone && !readOnly
      ? ["unknown", new CommitOutcomeUnknown({ ...location, cause: failure.error })]
      : ["failed", toStatementError(location, failure, "undone")]
  }
  const cause = toStatementError(location, failure, "undone")
  const sqlState = failure._tag === "refused" ? (failure.error.code ?? "") : ""
  return ["failed", new CommitFailed({ ...location, sqlState, cause })]
}

/** Builds the failure of an end that has rolled back. */
export const rolledBackAtCommit = ({ failedBy, holder, undone }: Level): RolledBackAtCommit => {
  const cause = failedBy === undefined ? {} : { cause: failedBy }
  return new RolledBackAtCommit({ ...holder.location, ...(undone ?? cause) })
}
