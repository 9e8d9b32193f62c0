/**
 * Settings for the transactions of several databases.
 */
import type { Settings } from "../../Transaction.js"

/**
 * Settings for all databases, and settings for single databases by name. The latter are complete:
 * they include the settings for all.
 */
export interface SettingsByDatabase {
  readonly all: Settings
  readonly databases: ReadonlyMap<string, Settings>
}

/** Returns settings without those that are given as `undefined`. */
const given = (settings: Settings): Settings =>
  Object.fromEntries(Object.entries(settings).filter(([_, value]) => value !== undefined))

/** Returns settings, overridden by those of `more` that are given. */
export const mergeSettings = (settings: Settings, more: Settings): Settings => ({
  ...settings,
  ...given(more)
})

/**
 * Returns the settings of a database; without a name, the settings of databases that have none of
 * their own.
 */
export const settingsOf = ({ all, databases }: SettingsByDatabase, database: string | undefined): Settings =>
  database === undefined ? all : (databases.get(database) ?? all)

const nothing: Settings = {}

/** Returns settings that require nothing of one database. */
export const withoutDatabase = ({ all, databases }: SettingsByDatabase, database: string): SettingsByDatabase => ({
  all,
  databases: new Map([...databases, [database, nothing]])
})
