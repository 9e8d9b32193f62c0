/**
 * The lock of a level. A statement holds it during its exchange. The first statement of a level
 * also acquires the lock of the level around, which is held until the end of the nested level. The
 * end of a level acquires the lock, too.
 */
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import type { StatementFailure, TransactionFailure } from "../connection/failure.js"
import type { Level } from "./level.js"
import { PendingBegin } from "./pendingBegin.js"
import type { SiblingTurn } from "./siblingTurn.js"

/**
 * Callback of an acquired level, with its connection and the levels that begin with the statement,
 * the outermost first; or with the failure.
 */
type OnAcquired = (
  failure: StatementFailure | undefined,
  connection: Connection | undefined,
  pending: ReadonlyArray<PendingBegin>
) => void

/** Callback of the end of a level, with the failure if the level cannot be kept. */
export type OnEnd = (failure: TransactionFailure | undefined) => void

const none: ReadonlyArray<never> = []
const nothing = () => {}

/**
 * Acquires the lock of a level. If the level has not begun, this also acquires the level around it,
 * or a connection for a transaction, which are held while the level is open. `nested` is the nested
 * level that acquires the lock, if any. The returned function gives up.
 */
export const acquireLevel = (level: Level, acquired: OnAcquired, nested?: Level): (() => void) => {
  const { blockedBy } = level
  if (blockedBy !== undefined && !level.isEnding) {
    // the lock may be held until the connection is closed, so this does not wait for it
    acquired(blockedBy, undefined, none)
    return nothing
  }
  let leaveAbove = nothing
  let stopWaiting = nothing
  let isWaiting = true
  const leaveQueue = level.lock.acquire(() => {
    isWaiting = false
    stopWaiting()
    const fail = (failure: StatementFailure) => {
      releaseUnused(level)
      acquired(failure, undefined, none)
    }
    const { blockedBy, connectionHolder } = level
    if (level.isEnding) return fail({ _tag: "TransactionEnded", ...connectionHolder.location })
    if (blockedBy !== undefined) return fail(blockedBy)
    level.nested = nested
    if (level.isBegun) return acquired(undefined, connectionHolder.connection, none)
    const above: OnAcquired = (failure, connection, pending) => {
      if (failure !== undefined) return fail(failure)
      level.cancelBegin = undefined
      // the conflict of an earlier transaction of a sandbox is no reason to retry this one
      if (level.sandboxed?.place === "emulated") connectionHolder.forgetConflict()
      const { begin } = level.settings
      const steps = level.savepoint === undefined ? begin : [level.savepoint.set, ...begin]
      acquired(undefined, connection, pending.concat(new PendingBegin(level, steps)))
    }
    const goAbove = () =>
      level.parent === undefined ? checkOut(level, above) : acquireLevel(level.parent, above, level)
    let leave = nothing
    level.cancelBegin = (failure) => {
      leave()
      fail(failure)
    }
    leave = level.turn === undefined ? goAbove() : takeTurn(level, level.turn, goAbove, fail)
    leaveAbove = () => {
      leave()
      releaseUnused(level)
    }
  })
  if (isWaiting) {
    stopWaiting = watchQueue(level, (failure) => {
      leaveQueue()
      stopWaiting()
      acquired(failure, undefined, none)
    })
  }
  return () => {
    leaveQueue()
    stopWaiting()
    leaveAbove()
  }
}

/**
 * Acquires the lock of a level for its end, within `busyTimeout`: a nested level of a fork may hold
 * it. If the transaction is lost while the lock is held, the end is refused at once. The returned
 * function gives up.
 */
export const acquireForEnd = (
  level: Level,
  refuse: (failure: StatementFailure) => void,
  start: () => void
): (() => void) => {
  let isWaiting = true
  let stop = nothing
  const leave = level.lock.acquire(() => {
    isWaiting = false
    stop()
    start()
  })
  if (!isWaiting) return nothing
  const fail = (failure: StatementFailure) => {
    leave()
    stop()
    refuse(failure)
  }
  stop = watchEnd(level, fail)
  const { lost } = level.connectionHolder
  // a statement may hold the lock until the connection is closed
  if (lost !== undefined) fail(lost)
  return () => {
    leave()
    stop()
  }
}

/** Releases the lock of a level for which nothing was sent. */
const releaseUnused = (level: Level): void => {
  level.cancelBegin = undefined
  level.releaseNested()
}

const checkOut = (level: Level, acquired: OnAcquired): (() => void) =>
  level.connectionHolder.provider.checkout((failure, connection) => {
    if (connection !== undefined) level.connectionHolder.hold(connection)
    acquired(failure, connection, none)
  })

/**
 * Waits up to `busyTimeout` for the turn of the nested part of a level among its siblings, then
 * calls `goOn`. The returned function gives up.
 */
const takeTurn = (
  level: Level,
  turn: SiblingTurn,
  goOn: () => () => void,
  refuse: (failure: StatementFailure) => void
): (() => void) => {
  let giveUp = nothing
  let stop = nothing
  let isTaken = false
  const leave = turn.take(() => {
    isTaken = true
    stop()
    giveUp = goOn()
  })
  if (isTaken) return giveUp
  stop = watchEnd(level, (failure) => {
    leave()
    stop()
    refuse(failure)
  })
  return () => {
    leave()
    stop()
    giveUp()
  }
}

/**
 * Fails a waiter after `busyTimeout`, or when the transaction is lost. The returned function stops
 * the watch.
 */
const watchEnd = ({ connectionHolder }: Level, fail: (failure: StatementFailure) => void): (() => void) => {
  const { busyTimeout } = connectionHolder.provider
  const timer = clock.timer(busyTimeout, () =>
    fail({ _tag: "TransactionBusy", ...connectionHolder.location, waitedMillis: busyTimeout })
  )
  const unwatch = connectionHolder.onLost(fail)
  return () => {
    clock.clear(timer)
    unwatch()
  }
}

/**
 * Fails a waiter when the transaction is lost, or when a nested level holds the lock after
 * `busyTimeout`. If a statement holds it, the wait continues for another `busyTimeout`. The
 * returned function stops the watch.
 */
const watchQueue = (level: Level, fail: (failure: StatementFailure) => void): (() => void) => {
  const { location, provider } = level.connectionHolder
  const { busyTimeout } = provider
  const check = () => {
    if (level.nested !== undefined) fail({ _tag: "TransactionBusy", ...location, waitedMillis: busyTimeout })
    else timer = clock.timer(busyTimeout, check)
  }
  let timer = clock.timer(busyTimeout, check)
  const unwatch = level.connectionHolder.onLost(fail)
  return () => {
    clock.clear(timer)
    unwatch()
  }
}
