/**
 * The steps that set, release and undo a savepoint, and the steps around a statement with a
 * savepoint of its own.
 */
import * as wire from "../protocol/frontendMessages.js"
import { emulateCommit, saveSettings } from "./emulatedCommit.js"

/** Steps of one savepoint. */
export interface Savepoint {
  readonly set: wire.Step
  readonly release: wire.Step
  readonly undo: ReadonlyArray<wire.Step>
}

/**
 * Protection of a transaction from one of its statements: none, a savepoint around the statement, or
 * a savepoint in which the server refuses writes and which is always undone. `autocommit` is a
 * savepoint that ends as a transaction of the statement alone would.
 */
export type StatementIsolation = "none" | "savepoint" | "autocommit" | "readOnly"

const none: ReadonlyArray<never> = []
const readOnly = wire.constantStep("SET LOCAL transaction_read_only = on")

let count = 0

/** Creates a savepoint with a name of its own. */
export const makeSavepoint = (): Savepoint => {
  const name = `effect_db_${++count}`
  return {
    set: wire.step(`SAVEPOINT ${name}`),
    release: wire.step(`RELEASE SAVEPOINT ${name}`),
    undo: [wire.step(`ROLLBACK TO SAVEPOINT ${name}`), wire.step(`RELEASE SAVEPOINT ${name}`)]
  }
}

/**
 * Returns the steps before a statement: its own savepoint, if it has one, and the saving of the
 * settings that end with its emulated transaction.
 */
export const stepsBefore = (
  savepoint: Savepoint | undefined,
  isolation: StatementIsolation,
  localSettings: ReadonlySet<string> | undefined
): ReadonlyArray<wire.Step> => {
  const save = localSettings === undefined ? none : saveSettings(localSettings)
  if (savepoint === undefined) return save
  return isolation === "readOnly" ? [savepoint.set, readOnly] : [savepoint.set, ...save]
}

/** Returns the steps after a successful statement that has a savepoint of its own. */
export const stepsAfter = (
  savepoint: Savepoint | undefined,
  isolation: StatementIsolation,
  localSettings: ReadonlySet<string> | undefined
): ReadonlyArray<wire.Step> => {
  if (savepoint === undefined) return none
  if (isolation === "readOnly") return savepoint.undo
  return isolation === "autocommit" ? [...emulateCommit(localSettings), savepoint.release] : [savepoint.release]
}
