/**
 * The end of a level that is kept: the check before a COMMIT, COMMIT, and RELEASE of a savepoint.
 */
import * as clock from "../concurrency/clock.js"
import type { Connection, Failure } from "../connection/connection.js"
import type { TransactionFailure } from "../connection/failure.js"
import { statementFailure } from "../connection/statementFailure.js"
import { commitAndQueryPosition } from "../consistency/commitAndQueryPosition.js"
import { markerStepOf } from "../outcome/commitMarker.js"
import * as wire from "../protocol/frontendMessages.js"
import { checkConstraints, emulateCommit } from "./emulatedCommit.js"
import type { Level, LevelState } from "./level.js"
import { commitFailure, rolledBackAtCommit } from "./levelFailure.js"
import { acquireForEnd, type OnEnd } from "./levelLock.js"
import { revert } from "./levelRollback.js"
import type { OnOutcome, Prove } from "./resolution.js"
import type { Savepoint } from "./savepoint.js"

/**
 * The timeout of a COMMIT after an interruption of its caller, in ms. On a dead network an
 * interrupted caller waits for one COMMIT and then for the ROLLBACK of other transactions, together
 * within a second.
 */
const interruptedCommitTimeout = 500

const none: ReadonlyArray<never> = []
const commit = [wire.constantStep("COMMIT")]
const nothing = () => {}

/**
 * Checks if a level can be committed. For a transaction the server checks the deferred constraints
 * now, and not at COMMIT. The returned function gives up; if the check was sent, this closes the
 * connection.
 */
export const checkLevel = (level: Level, done: OnEnd): (() => void) => {
  const { connectionHolder } = level
  let isSent = false
  let isFinished = false
  const refuse: OnEnd = (failure) => {
    isFinished = true
    done(failure)
  }
  const finish: OnEnd = (failure) => {
    isFinished = true
    level.lock.release()
    done(failure)
  }
  const leave = acquireForEnd(level, refuse, () => {
    const { blockedBy } = level
    const { connection, location } = connectionHolder
    if (blockedBy !== undefined) return finish(blockedBy)
    if (!level.isBegun || connection === undefined) return finish(undefined)
    if (connection.status === "E" || level.undone !== undefined) return finish(rolledBackAtCommit(level))
    if (level.savepoint !== undefined && level.sandboxed?.place !== "emulated") return finish(undefined)
    isSent = true
    connection.steps([checkConstraints], (failure) => {
      if (failure === undefined) return finish(undefined)
      connectionHolder.recordLoss(failure)
      finish(failure._tag === "lost" ? statementFailure(location, failure, "undone") : commitFailure(level, failure)[1])
    })
  })
  return () => {
    if (isFinished) return
    if (isSent) connectionHolder.abort("a check before COMMIT was interrupted")
    else leave()
  }
}

/**
 * Commits a level, or undoes it and reports the reason if it cannot be kept. The returned function
 * is for an interrupted caller. If nothing was sent, it gives up, else it waits for the answer, up
 * to a timeout. Then it calls `onEnded`. With `countsAsUndone` the caller regards the savepoint as
 * undone, even if it is released.
 */
export const commitLevel = (level: Level, done: OnEnd): ((onEnded: () => void, countsAsUndone: boolean) => void) => {
  const { connectionHolder } = level
  level.isEnding = true
  let isSent = false
  let isFinished = false
  let isUndoneForCaller = false
  let onAnswer = nothing
  let stopResolving = nothing
  let isTimeOver = false
  const finish: OnCommitted = (state, failure) => {
    level.state = state
    isFinished = true
    // before `release`, because the COMMIT of the level around may wait for its lock
    if (isUndoneForCaller) level.undoReleased()
    level.release()
    done(failure)
    onAnswer()
  }
  const refuse: OnEnd = (failure) => {
    isFinished = true
    done(failure)
  }
  const leaveQueue = acquireForEnd(level, refuse, () => {
    const { blockedBy, savepoint } = level
    const { connection } = connectionHolder
    // another caller has ended the level, perhaps with another outcome
    if (level.state !== "open") {
      isFinished = true
      level.lock.release()
      return done({ _tag: "TransactionEnded", ...connectionHolder.location })
    }
    isSent = blockedBy !== undefined || level.isBegun
    if (blockedBy !== undefined) return revert(level, level, () => finish("failed", blockedBy))
    if (!level.isBegun || connection === undefined) return finish("committed", undefined)
    if (level.undone !== undefined) return revert(level, level, () => finish("failed", rolledBackAtCommit(level)))
    const resolve: Resolve = (prove, done) => {
      if (isTimeOver) return done(undefined)
      // the pool may have no other connection
      connectionHolder.checkIn()
      stopResolving = prove(done)
    }
    if (savepoint === undefined)
      connectionHolder.idTracker.beforeCommit(connection, () => sendCommit(level, connection, resolve, finish))
    else sendRelease(level, savepoint, connection, finish)
  })
  return (onEnded, countsAsUndone) => {
    isUndoneForCaller = countsAsUndone
    if (isFinished) {
      if (countsAsUndone) level.undoReleased()
      return onEnded()
    }
    if (!isSent) {
      leaveQueue()
      return onEnded()
    }
    const stop = clock.later(interruptedCommitTimeout, () => {
      isTimeOver = true
      connectionHolder.connection?.destroy("broken")
      stopResolving()
    })
    onAnswer = () => {
      stop()
      onEnded()
    }
  }
}

type OnCommitted = (state: LevelState, failure: TransactionFailure | undefined) => void

/** Function that proves the outcome of a COMMIT while there is time for that. */
type Resolve = (prove: Prove, done: OnOutcome) => void

const sendCommit = (level: Level, connection: Connection, resolve: Resolve, finish: OnCommitted): void => {
  const { connectionHolder } = level
  // an aborted transaction stores nothing, so it needs no token and no marker
  const isStoring = !level.readOnly && connection.status !== "E"
  const recorder = isStoring ? connectionHolder.recordTokens() : undefined
  const marker = isStoring ? connectionHolder.makeMarker() : undefined
  const steps = marker === undefined ? commit : [markerStepOf(connection, marker), ...commit]
  const { keyStep } = connectionHolder
  // before the marker, which is stored only if the transaction has written
  const all = keyStep === undefined || !isStoring ? steps : [keyStep, ...steps]
  const refused = (failure: Failure) => {
    const [state, reported] = commitFailure(level, failure)
    if (state !== "unknown") {
      connectionHolder.provider.markers?.onRefused(failure)
      // if the step before COMMIT was refused, the transaction is still open
      return revert(level, level, () => finish(state, reported))
    }
    const end: OnOutcome = (outcome) => {
      if (outcome !== "undone") recorder?.recordCommit(undefined)
      if (outcome === "committed") finish("committed", undefined)
      else if (outcome === undefined) finish(state, reported)
      else finish("failed", statementFailure(connectionHolder.location, failure, "undone"))
    }
    const { prove } = connectionHolder
    if (prove === undefined) end(undefined)
    else resolve(prove, end)
  }
  const ended = (isKept: boolean) => {
    if (marker?.isPreparable === true) connection.hasProofStatement = connection.preparesStatements
    finish(isKept ? "committed" : "failed", isKept ? undefined : rolledBackAtCommit(level))
  }
  if (recorder === undefined) {
    connection.steps(all, (failure, exchange) => {
      // a failure after the answer to COMMIT cannot undo it
      if (failure !== undefined && exchange.acknowledged < all.length) return refused(failure)
      ended(exchange.result.command !== "ROLLBACK")
    })
  } else {
    commitAndQueryPosition(connection, all, (failure, { status, isCommitted }) => {
      if (failure !== undefined) return refused(failure)
      if (isCommitted) recorder.recordCommit(status)
      ended(isCommitted)
    })
  }
}

const sendRelease = (level: Level, { release }: Savepoint, connection: Connection, finish: OnCommitted): void => {
  const { connectionHolder, parent, sandboxed } = level
  // an aborted transaction would refuse the steps of a COMMIT, and it stores nothing
  const isEmulated = sandboxed?.place === "emulated" && connection.status !== "E"
  const before = isEmulated ? emulateCommit(sandboxed.localSettings) : none
  connection.steps([...before, release, ...level.settings.restore], (failure) => {
    if (failure === undefined) {
      if (parent !== undefined) parent.hasOwnWork = true
      return finish("committed", undefined)
    }
    connectionHolder.recordLoss(failure)
    const isRefused = isEmulated && failure._tag === "refused"
    const reported = isRefused ? commitFailure(level, failure)[1] : (connectionHolder.lost ?? rolledBackAtCommit(level))
    revert(level, level, () => finish("failed", reported))
  })
}
