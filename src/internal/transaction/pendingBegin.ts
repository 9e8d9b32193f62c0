/**
 * The levels that begin with the next statement: nothing of a level is sent before its first
 * statement, and the steps that begin levels are sent with that statement in one exchange.
 */
import type { Step } from "../protocol/messages.js"
import type { Level } from "./level.js"

/** Settings of a level, with the steps that begin it, and those that undo its settings at its end. */
export interface LevelSettings {
  /**
   * The steps that begin the level: BEGIN and the settings of a transaction, or only the settings
   * of a savepoint.
   */
  readonly begin: ReadonlyArray<Step>
  /**
   * The steps after the release of a savepoint, which set the settings of the level around it again.
   */
  readonly restore: ReadonlyArray<Step>
  readonly readOnly: boolean
  /** The statement timeout in ms: 0 is none, `undefined` the session's. */
  readonly limit: number | undefined
}

/**
 * Level that begins with the next statement. It lives as long as the operation, so it is a class and
 * no object literal (see "Performance rules" in CONTRIBUTING.md).
 */
export class PendingBegin {
  constructor(
    readonly level: Level,
    readonly steps: ReadonlyArray<Step>
  ) {}
}

/**
 * Returns the steps that come before a statement: those of the levels that begin with it, then its
 * own. Most often only one of the two lists has any, and is returned as it is.
 */
export const withOwnSteps = (pending: ReadonlyArray<PendingBegin>, own: ReadonlyArray<Step>): ReadonlyArray<Step> => {
  const [outermost] = pending
  if (outermost === undefined) return own
  if (pending.length === 1 && own.length === 0) return outermost.steps
  return [...pending.flatMap((_) => _.steps), ...own]
}

/** Checks whether a transaction begins, and not only a savepoint. */
export const beginsTransaction = ([first]: ReadonlyArray<PendingBegin>): boolean =>
  first !== undefined && first.level.parent === undefined && !first.level.isBegun

/** Marks each level as begun if the server has acknowledged its first step. */
export const markBegun = (pending: ReadonlyArray<PendingBegin>, acknowledged: number): void => {
  let left = acknowledged
  for (const { level, steps } of pending) {
    if (left > 0) level.presence = "begun"
    left -= steps.length
  }
}

/**
 * Gives up each level that has not begun, the innermost first: checks in the connection of a
 * transaction, and releases the lock that a savepoint holds on the level around it.
 */
export const releaseUnbegun = (pending: ReadonlyArray<PendingBegin>): void => {
  for (let i = pending.length - 1; i >= 0; i--) {
    const level = pending[i]?.level
    if (level === undefined || level.isBegun) continue
    if (level.parent === undefined) level.connectionHolder.checkIn()
    else level.parent.releaseNested()
  }
}
