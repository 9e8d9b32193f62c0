/**
 * The end of a level that is undone.
 */
import * as clock from "../concurrency/clock.js"
import { rollbackTimeout } from "../sql/timeouts.js"
import type { Level } from "./level.js"

const nothing = () => {}

/**
 * Rolls back a level if it is open. This does not fail: if the server does not answer in time, the
 * connection is closed, which undoes the transaction as well.
 */
export const rollbackLevel = (
  level: Level,
  done: () => void,
  timeout: keyof typeof rollbackTimeout = "default"
): void => {
  const { connectionHolder } = level
  level.isEnding = true
  if (level.state !== "open") return done()
  let isOver = false
  let stop = nothing
  const over = () => {
    if (isOver) return
    isOver = true
    stop()
    done()
  }
  const finish = () => {
    if (level.state === "open") {
      level.state = "rolledBack"
      level.release()
    }
    over()
  }
  // the transaction is lost, and the nested level may hold the lock for long
  if (connectionHolder.lost !== undefined && level.nested !== undefined) return finish()
  rollbackNested(level)
  // a statement that was not sent yet may wait for long, for example for the turn of its part, and
  // must not be sent any more
  level.cancelBegin?.({ _tag: "TransactionEnded", ...connectionHolder.location })
  stop = clock.later(rollbackTimeout[timeout], () => {
    // the statement or nested level that holds the lock loses its connection
    connectionHolder.abort("ROLLBACK was not possible in time", level.interrupted)
    finish()
  })
  level.lock.acquire(() => {
    // another caller has ended the level
    if (level.state !== "open") {
      level.lock.release()
      return over()
    }
    revert(level, outermostToUndo(level), finish)
  })
}

/**
 * Starts to roll back the open nested levels of a level, the innermost first. Each rollback waits
 * for the statement in progress at its level. Later statements of the outer level wait for the
 * rollbacks.
 */
export const rollbackNested = (level: Level): void => {
  const open: Array<Level> = []
  for (let nested = level.nested; nested !== undefined; nested = nested.nested) open.unshift(nested)
  for (const nested of open) rollbackLevel(nested, nothing, "unbounded")
}

/**
 * Undoes a level on the server, together with the levels around it up to `outermost`. After a loss
 * of the connection they are undone already.
 */
export const revert = (level: Level, outermost: Level, done: () => void): void => {
  const { connectionHolder } = level
  const { connection, lost } = connectionHolder
  const isClosed = connection === undefined || connection.broken !== undefined || connection.status === "I"
  // a lost transaction is undone as a whole, so its savepoints need no step
  if (!level.isBegun || isClosed || (level.savepoint !== undefined && lost !== undefined)) return done()
  connection.undo(outermost.undoSteps, (failure) => {
    if (failure !== undefined) connectionHolder.abort("ROLLBACK was refused", level.interrupted)
    else if (outermost !== level) forgetAround(level, outermost)
    done()
  })
}

/**
 * Returns the level itself, or for a nested part the outermost level around it that has no other
 * work. The snapshot of that level must not remain either.
 */
const outermostToUndo = (part: Level): Level => {
  let level = part
  if (part.turn === undefined) return level
  while (level.parent !== undefined && !level.parent.hasOwnWork) level = level.parent
  return level
}

/**
 * Marks the levels around a level, up to `outermost`, as undone, and releases their locks and
 * connection. The next statement begins them again.
 */
const forgetAround = (level: Level, outermost: Level): void => {
  const all: Array<Level> = []
  for (let around = level.parent; around !== undefined; around = around === outermost ? undefined : around.parent) {
    around.presence = "undone"
    all.push(around)
  }
  // before the locks are released: the next waiter must not find the connection
  if (outermost.parent === undefined) outermost.connectionHolder.checkIn()
  for (const { parent } of all) parent?.releaseNested()
}
