/**
 * The settings that a part requires of a unit of work: their conflicts with those of the unit, and
 * the settings of the unit after it has taken them.
 */
import type { OptionsConflict } from "../../DatabaseError.js"
import type { Settings } from "../../Transaction.js"
import { optionsConflict, raiseSettings, settingsConflict } from "../transaction/propagation.js"
import { type SettingsByDatabase, settingsOf } from "../transaction/settingsByDatabase.js"
import type { Transaction } from "../transaction/transaction.js"

const namesIn = (own: SettingsByDatabase, required: SettingsByDatabase): ReadonlySet<string> =>
  new Set([...own.databases.keys(), ...required.databases.keys()])

/** Returns the conflict of a part's settings with a transaction that has begun, if there is one. */
export const conflictOfBegun = (
  begun: ReadonlyArray<Transaction>,
  required: SettingsByDatabase,
  joins: boolean
): OptionsConflict | undefined => {
  for (const transaction of begun) {
    const error = optionsConflict(transaction, settingsOf(required, transaction.origin.database), joins)
    if (error !== undefined) return error
  }
  return undefined
}

/**
 * Returns the conflict of a part's settings with those of transactions that have not begun, if
 * there is one.
 */
export const conflictOfSettings = (
  own: SettingsByDatabase,
  required: SettingsByDatabase,
  /** Checks if the transaction of a database is one around the unit. */
  isLeftAround: (database: string) => boolean,
  settingsFor: (database: string | undefined) => Settings
): OptionsConflict | undefined => {
  const all = [undefined, ...[...namesIn(own, required)].filter((database) => !isLeftAround(database))]
  for (const database of all) {
    const error = settingsConflict(database ?? "", settingsFor(database), settingsOf(required, database))
    if (error !== undefined) return error
  }
  return undefined
}

/** Returns the settings of a unit after it has taken those of a part. */
export const raiseAll = (own: SettingsByDatabase, required: SettingsByDatabase, joins: boolean): SettingsByDatabase => {
  const raised = (database: string | undefined) =>
    raiseSettings(settingsOf(own, database), settingsOf(required, database), joins)
  return {
    all: raised(undefined),
    databases: new Map([...namesIn(own, required)].map((database) => [database, raised(database)]))
  }
}
