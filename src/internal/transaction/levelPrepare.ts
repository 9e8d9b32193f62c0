/**
 * The end of a level in two phases: PREPARE TRANSACTION, and then COMMIT PREPARED or ROLLBACK PREPARED.
 * The level keeps its connection between the two, so that the second phase waits for no other caller.
 */
import * as clock from "../concurrency/clock.js"
import type { TransactionFailure } from "../connection/plainFailure.js"
import { statementFailure } from "../connection/statementFailure.js"
import { type DatabaseIdentity, type Decision, endPrepared, prepareSteps } from "../consistency/preparedTransaction.js"
import type { TokenRecorder } from "../consistency/tokenRecorder.js"
import { queryPosition } from "../consistency/walPosition.js"
import type { Level } from "./level.js"
import { commitFailure, rolledBackAtCommit } from "./levelFailure.js"
import { acquireForEnd } from "./levelLock.js"
import { revert } from "./levelRollback.js"
import type { PreparedTransactions } from "./preparedTransactions.js"

type OnEnd = (failure: TransactionFailure | undefined) => void

/**
 * Identity of the database of a level, the failure of a level that cannot be kept, or the reason why
 * the server takes no prepared transactions.
 */
type Identified =
  | { readonly identity: DatabaseIdentity }
  | { readonly failure: TransactionFailure }
  | { readonly error: Error }

/** Identifies the database of a level, which goes on. The returned function gives up. */
export const identifyLevel = (
  level: Level,
  prepared: PreparedTransactions,
  done: (result: Identified) => void
): (() => void) => {
  const { connectionHolder } = level
  const start = () => {
    const finish = (result: Identified) => {
      level.lock.release()
      done(result)
    }
    const { connection, location } = connectionHolder
    if (level.blockedBy !== undefined) return finish({ failure: level.blockedBy })
    if (connection === undefined) return finish({ failure: { _tag: "TransactionEnded", ...location } })
    if (connection.status !== "T" || level.undone !== undefined) return finish({ failure: rolledBackAtCommit(level) })
    prepared.identify(connection, (identity, error) => {
      if (identity !== undefined) return finish({ identity })
      const { lost } = connectionHolder
      if (lost !== undefined) finish({ failure: lost })
      else finish({ error: error ?? new Error("the server does not report its identity") })
    })
  }
  return acquireForEnd(level, (failure) => done({ failure }), start)
}

/**
 * Prepares a level, or undoes it and reports the reason. A prepared level stays locked until
 * {@link endPreparedLevel}. The returned function gives up; if PREPARE was sent, this closes the
 * connection, and the transaction may be prepared.
 */
export const prepareLevel = (level: Level, gid: string, done: OnEnd): (() => void) => {
  const { connectionHolder } = level
  let isSent = false
  let isFinished = false
  const finish: OnEnd = (failure) => {
    isFinished = true
    if (failure !== undefined) {
      level.state = "failed"
      level.release()
    }
    done(failure)
  }
  const refuse: OnEnd = (failure) => {
    isFinished = true
    done(failure)
  }
  const leave = acquireForEnd(level, refuse, () => {
    level.isEnding = true
    const { blockedBy } = level
    const { connection, location } = connectionHolder
    if (level.state !== "open") {
      level.lock.release()
      return refuse({ _tag: "TransactionEnded", ...location })
    }
    const undo = (failure: TransactionFailure) => revert(level, level, () => finish(failure))
    if (blockedBy !== undefined || connection === undefined) {
      return undo(blockedBy ?? { _tag: "TransactionEnded", ...location })
    }
    if (connection.status === "E" || level.undone !== undefined) return undo(rolledBackAtCommit(level))
    isSent = true
    connection.steps(prepareSteps(gid), (failure) => {
      if (failure === undefined) return finish(undefined)
      // without a decision it is undone, also if it is prepared
      connectionHolder.recordLoss(failure)
      if (failure._tag === "lost") return undo(statementFailure(location, failure, "undone"))
      undo(commitFailure(level, failure)[1])
    })
  })
  return () => {
    if (isFinished) return
    if (isSent) connectionHolder.abort("PREPARE TRANSACTION was interrupted")
    else leave()
  }
}

/**
 * Ends a prepared level by the decision of its unit, for up to `timeout` ms: on its connection, or on
 * another one if that is lost. Calls back with false if the recovery has to end it.
 */
export const endPreparedLevel = (
  level: Level,
  gid: string,
  decision: Decision,
  prepared: PreparedTransactions,
  timeout: number,
  done: (isEnded: boolean) => void
): void => {
  const { connectionHolder } = level
  const { connection } = connectionHolder
  const deadline = clock.now() + timeout
  const recorder = decision === "commit" ? connectionHolder.recordTokens() : undefined
  const finish = (isEnded: boolean) => {
    level.state = decision === "commit" ? "committed" : "rolledBack"
    level.release()
    done(isEnded)
  }
  const endElsewhere = () => {
    recorder?.recordCommit(undefined)
    // the pool may have no other connection
    connectionHolder.checkIn()
    prepared.end(gid, decision, Math.max(1, deadline - clock.now()), finish)
  }
  if (connection === undefined || connection.broken !== undefined || connection.busy) return endElsewhere()
  const stop = clock.later(timeout, () => connection.destroy("broken"))
  const recordPosition = (recorder: TokenRecorder) =>
    queryPosition(connection, (status) => {
      stop()
      recorder.recordWrite(status)
      finish(true)
    })
  endPrepared(connection, gid, decision, (result) => {
    if (result === "ended" && recorder !== undefined) return recordPosition(recorder)
    stop()
    if (result === "ended") finish(true)
    else endElsewhere()
  })
}
