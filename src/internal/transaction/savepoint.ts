/**
 * The steps that set, release and undo a savepoint, and the steps around a statement with a
 * savepoint of its own.
 */
import * as wire from "../protocol/frontendMessages.js"

/** Steps of one savepoint. */
export interface Savepoint {
  readonly set: wire.Step
  readonly release: wire.Step
  readonly undo: ReadonlyArray<wire.Step>
}

/**
 * Protection of a transaction from one of its statements: none, a savepoint around the statement,
 * or a savepoint in which the server refuses writes and which is always undone.
 */
export type StatementIsolation = "none" | "savepoint" | "readOnly"

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

/** Returns the steps before a statement that has a savepoint of its own. */
export const stepsBefore = (
  savepoint: Savepoint | undefined,
  isolation: StatementIsolation
): ReadonlyArray<wire.Step> =>
  savepoint === undefined ? none : isolation === "readOnly" ? [savepoint.set, readOnly] : [savepoint.set]

/** Returns the steps after a successful statement that has a savepoint of its own. */
export const stepsAfter = (
  savepoint: Savepoint | undefined,
  isolation: StatementIsolation
): ReadonlyArray<wire.Step> =>
  savepoint === undefined ? none : isolation === "readOnly" ? savepoint.undo : [savepoint.release]
