/**
 * Settings for the transactions of several databases.
 */
import type { Options } from "../../Transaction.js"

/** How a unit's transactions are to be. */
export type UnitSettings = Omit<Options, "propagation" | "retry">

/** For all databases, and by the names of single ones, where they hold what is said for all as well. */
export interface UnitOptions {
  readonly all: UnitSettings
  readonly databases: ReadonlyMap<string, UnitSettings>
}

/** Settings without those that are given as `undefined`. */
const given = (settings: UnitSettings): UnitSettings =>
  Object.fromEntries(Object.entries(settings).filter(([_, value]) => value !== undefined))

/** Returns settings with others before them. */
export const mergeSettings = (settings: UnitSettings, more: UnitSettings): UnitSettings => ({
  ...settings,
  ...given(more)
})

/** Returns the settings of a database; without a name, of all that have none of their own. */
export const settingsOf = ({ all, databases }: UnitOptions, database: string | undefined): UnitSettings =>
  database === undefined ? all : (databases.get(database) ?? all)

const nothing: UnitSettings = {}

/** Returns options that ask nothing of one database. */
export const withoutDatabase = ({ all, databases }: UnitOptions, database: string): UnitOptions => ({
  all,
  databases: new Map([...databases, [database, nothing]])
})
