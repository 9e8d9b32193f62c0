/**
 * Settings for the transactions of several databases.
 */
import type { Settings } from "../../Transaction.js"

/**
 * Settings for all databases, and by the names of single ones, where they include those for all.
 */
export interface SettingsByDatabase {
  readonly all: Settings
  readonly databases: ReadonlyMap<string, Settings>
}

/** Returns settings without those that are given as `undefined`. */
const given = (settings: Settings): Settings =>
  Object.fromEntries(Object.entries(settings).filter(([_, value]) => value !== undefined))

/** Returns settings, with others in their place where those are given. */
export const mergeSettings = (settings: Settings, more: Settings): Settings => ({
  ...settings,
  ...given(more)
})

/** Returns the settings of a database; without a name, of all that have none of their own. */
export const settingsOf = ({ all, databases }: SettingsByDatabase, database: string | undefined): Settings =>
  database === undefined ? all : (databases.get(database) ?? all)

const nothing: Settings = {}

/** Returns settings that ask nothing of one database. */
export const withoutDatabase = ({ all, databases }: SettingsByDatabase, database: string): SettingsByDatabase => ({
  all,
  databases: new Map([...databases, [database, nothing]])
})
