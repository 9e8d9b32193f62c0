/**
 * The levels that begin with the next statement. Nothing of a level is sent before its first
 * statement, so the steps that begin the level are sent with that statement.
 */
import type { Step } from "../protocol/frontendMessages.js"
import type { Level } from "./level.js"

/**
 * Settings of a level, with the steps that begin the level and those that restore the settings
 * around it.
 */
export interface LevelSettings {
  /**
   * The steps that begin the level: BEGIN and the settings of a transaction, or only the settings
   * of a savepoint.
   */
  readonly begin: ReadonlyArray<Step>
  /**
   * The steps after the release of a savepoint, which restore the settings of the level around it.
   */
  readonly restore: ReadonlyArray<Step>
  readonly readOnly: boolean
  /** The statement timeout in ms: 0 is none, `undefined` the session's. */
  readonly limit: number | undefined
}

/**
 * Level that begins with the next statement, and its steps. It lives as long as the operation, so
 * it is a class and no object literal (see "Performance rules" in CONTRIBUTING.md).
 */
export class PendingBegin {
  constructor(
    readonly level: Level,
    readonly steps: ReadonlyArray<Step>
  ) {}
}

/**
 * Returns the steps before a statement: those of the levels that begin with it, then its own. Most
 * often only one of the two lists has steps, and is returned without a copy.
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
 * Gives up each level that has not begun, the innermost first. A transaction checks in its
 * connection, and a savepoint releases the lock of the level around it.
 */
export const releaseUnbegun = (pending: ReadonlyArray<PendingBegin>): void => {
  for (let i = pending.length - 1; i >= 0; i--) {
    const level = pending[i]?.level
    if (level === undefined || level.isBegun) continue
    if (level.parent === undefined) level.connectionHolder.checkIn()
    else level.parent.releaseNested()
  }
}
