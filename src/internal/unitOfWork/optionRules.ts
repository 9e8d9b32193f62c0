/**
 * The rules for the options of transactions and units of work.
 */
import * as Predicate from "effect/Predicate"
import type { ConfigInvalid } from "../../DatabaseError.js"
import type { Options, Settings } from "../../Transaction.js"
import {
  aBoolean,
  aDuration,
  aFunction,
  aList,
  anObject,
  anyOf,
  aRetry,
  aText,
  aWord,
  invalidOption,
  type OptionRules
} from "../config/callOptionRules.js"
import type { NestedOptions, SettingsOptions, UnitOptions } from "./options.js"

const settings: OptionRules<Settings> = {
  isolation: aWord("read committed", "repeatable read", "serializable"),
  access: aWord("read write", "read only"),
  deferrable: aBoolean,
  statementTimeout: aDuration,
  lockTimeout: aDuration,
  label: aText,
  applicationName: aText
}

const transactionOptions: OptionRules<Options> = {
  ...settings,
  propagation: aWord("nested", "required", "requiresNew", "mandatory", "supports", "notSupported", "never"),
  retry: aRetry
}

const nestedOptions: OptionRules<NestedOptions<unknown, unknown>> = { outcome: aFunction, work: anObject }

/** Checks if a value has a `databaseName`, like the class of a database. */
const isDatabase = (given: unknown): boolean =>
  Predicate.hasProperty(given, "databaseName") && typeof given.databaseName === "string"

const isDatabaseSettings = (given: unknown): boolean =>
  Predicate.hasProperty(given, "database") && Predicate.hasProperty(given, "settings")

/** The rules for the options that units of work and requests share. */
export const sharedOptions = {
  databases: aList("a list of UnitOfWork.on(database, settings)", isDatabaseSettings),
  order: anyOf(aWord("safest", "touched"), aList("a list of databases", isDatabase)),
  checkFirst: aBoolean,
  atomic: aWord("twoPhase")
}

const unitOptions: OptionRules<UnitOptions<unknown, unknown>> = {
  ...nestedOptions,
  ...sharedOptions,
  transaction: anObject,
  retry: aRetry
}

/** Returns the error of the options of a transaction, if one of them is invalid. */
export const invalidOfTransaction = (database: string, given: Options): ConfigInvalid | undefined =>
  invalidOption(database, given, transactionOptions)

/** Returns the error of the options of a unit of work, if one of them is invalid. */
export const invalidOfUnit = <A, E>(options: UnitOptions<A, E>): ConfigInvalid | undefined =>
  invalidOption("", options, unitOptions) ?? invalidOfSettings(options)

/** Returns the error of the options of a nested part, if one of them is invalid. */
export const invalidOfNested = <A, E>(options: NestedOptions<A, E>): ConfigInvalid | undefined =>
  invalidOption("", options, nestedOptions)

/**
 * Returns the error of settings, if they are invalid. A function of the program may have returned
 * them, so they may be no object.
 */
const invalidSettings = (database: string, given: Settings, name: string): ConfigInvalid | undefined =>
  anObject.accepts(given)
    ? invalidOption(database, given, settings, database === "" ? name : "")
    : invalidOption(database, { [name]: given }, { [name]: anObject })

/** Returns the error of the settings of a unit of work, if one of them is invalid. */
export const invalidOfSettings = ({ databases, transaction }: SettingsOptions): ConfigInvalid | undefined => {
  const ofAll = transaction === undefined ? undefined : invalidSettings("", transaction, "transaction")
  if (ofAll !== undefined || databases === undefined) return ofAll
  for (const { database, settings: given } of databases) {
    const ofOne = invalidSettings(database, given, "settings")
    if (ofOne !== undefined) return ofOne
  }
  return undefined
}
