/**
 * The end of a level in two phases: PREPARE TRANSACTION, and then COMMIT PREPARED or ROLLBACK PREPARED.
 * The level keeps its connection between the two, so that the second phase waits for no other caller.
 */
import * as clock from "../concurrency/clock.js"
import type { TransactionFailure } from "../connection/failure.js"
import { statementFailure } from "../connection/statementFailure.js"
import { queryPosition } from "../consistency/queryPosition.js"
import type { TokenRecorder } from "../consistency/tokenRecorder.js"
import {
  type DatabaseIdentity,
  type Decision,
  endPrepared,
  prepareTransaction
} from "../outcome/preparedTransactionCommands.js"
import type { Level } from "./level.js"
import { commitFailure, rolledBackAtCommit } from "./levelFailure.js"
import { acquireForEnd, type OnEnd } from "./levelLock.js"
import { revert } from "./levelRollback.js"
import type { PreparedTransactions } from "./preparedTransactionRecovery.js"

/**
 * The time that an interrupted caller waits for the answer to PREPARE TRANSACTION, COMMIT PREPARED
 * or ROLLBACK PREPARED, in ms. What is not ended by then is left to the recovery.
 */
export const interruptedTimeout = 500

const nothing = () => {}

/**
 * Identity of the database of a level, the failure of a level that cannot be kept, or the reason why
 * the server takes no prepared transactions.
 */
type Identified =
  | { readonly identity: DatabaseIdentity }
  | { readonly failure: TransactionFailure }
  | { readonly error: Error }

/** Identifies the database of a level, which stays open. The returned function gives up. */
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
    prepared.identify(connection, (result) => {
      if ("key" in result) return finish({ identity: result })
      if ("refusal" in result) return finish({ error: result.refusal })
      connectionHolder.recordLoss(result.failure)
      finish({ failure: statementFailure(location, result.failure, "undone") })
    })
  }
  return acquireForEnd(level, (failure) => done({ failure }), start)
}

/**
 * Prepares a level, or undoes it and reports the reason. A prepared level stays locked until
 * {@link endPreparedLevel}. The returned function gives up. If PREPARE was sent, this closes the
 * connection, calls `done` with a failure, and the transaction may be prepared.
 */
export const prepareLevel = (level: Level, gid: string, done: OnEnd): (() => void) => {
  const { connectionHolder } = level
  let isSent = false
  let isFinished = false
  let isGivenUp = false
  let stop = nothing
  const finish: OnEnd = (failure) => {
    isFinished = true
    stop()
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
    prepareTransaction(connection, gid, (failure, id) => {
      connectionHolder.idTracker.id = id
      // the connection of a caller that has given up is closed
      if (failure === undefined) return finish(isGivenUp ? connectionHolder.lost : undefined)
      // without a decision the transaction is undone, also if it is prepared
      connectionHolder.recordLoss(failure)
      if (failure._tag === "lost") return undo(statementFailure(location, failure, "undone"))
      undo(commitFailure(level, failure)[1])
    })
  })
  return () => {
    if (isFinished) return
    if (!isSent) return leave()
    isGivenUp = true
    const { connection } = connectionHolder
    stop = clock.later(interruptedTimeout, () => connection?.destroy("broken"))
    connectionHolder.abort("PREPARE TRANSACTION was interrupted")
  }
}

/**
 * Ends a prepared level by the decision of its unit, for up to `timeout` ms: on its connection, or
 * on another one if that is lost or the server refuses the command. After that time the recovery
 * has to end it. The returned function makes the time shorter.
 */
export const endPreparedLevel = (
  level: Level,
  gid: string,
  decision: Decision,
  prepared: PreparedTransactions,
  timeout: number,
  done: () => void
): ((timeout: number) => void) => {
  const { connectionHolder } = level
  const { connection } = connectionHolder
  let deadline = clock.now() + timeout
  let isEnded = false
  let stop = nothing
  let giveUp: () => void = () => connection?.destroy("broken")
  const limit = (timeout: number) => {
    if (isEnded) return
    stop()
    deadline = Math.min(deadline, clock.now() + timeout)
    stop = clock.later(deadline - clock.now(), () => giveUp())
  }
  const recorder = decision === "commit" ? connectionHolder.recordTokens() : undefined
  const finish = () => {
    isEnded = true
    stop()
    level.state = decision === "commit" ? "committed" : "rolledBack"
    level.release()
    done()
  }
  const endElsewhere = (isTried: boolean) => {
    recorder?.recordCommit(undefined)
    connectionHolder.checkIn()
    const untried = isTried ? undefined : connectionHolder.idTracker
    giveUp = prepared.end(gid, decision, Math.max(1, deadline - clock.now()), untried, finish)
  }
  if (connection === undefined || connection.broken !== undefined || connection.busy) {
    endElsewhere(false)
    return limit
  }
  limit(timeout)
  const recordPosition = (recorder: TokenRecorder) =>
    queryPosition(connection, (status) => {
      recorder.recordWrite(status)
      finish()
    })
  const finishWithToken = () => (recorder === undefined ? finish() : recordPosition(recorder))
  endPrepared(connection, gid, decision, (result) => {
    if (result === "ended") finishWithToken()
    else if (result !== "missing") endElsewhere(result === "lost")
    else if (decision === "commit") prepared.checkMissing(connection, gid, connectionHolder.idTracker, finishWithToken)
    else finish()
  })
  return limit
}
