/**
 * The names of the options of transactions and units of work, so that a mistyped one is refused.
 */
import type { ConfigInvalid } from "../../DatabaseError.js"
import type { Options, Settings } from "../../Transaction.js"
import type { KnownNames } from "../config/knownNames.js"
import { unknownOption } from "../config/unknownOption.js"
import type { NestedOptions, SettingsOptions, UnitOptions } from "./options.js"

const settings: KnownNames<Settings> = {
  isolation: true,
  access: true,
  deferrable: true,
  statementTimeout: true,
  lockTimeout: true,
  label: true,
  applicationName: true
}

const transactionOptions: KnownNames<Options> = { ...settings, propagation: true, retry: true }

const nestedOptions: KnownNames<NestedOptions<unknown, unknown>> = { outcome: true, work: true }

const unitOptions: KnownNames<UnitOptions<unknown, unknown>> = {
  ...nestedOptions,
  transaction: true,
  databases: true,
  order: true,
  checkFirst: true,
  retry: true
}

/** Returns the refusal of the options of a transaction, if a name is not known. */
export const unknownOfTransaction = (database: string, given: Options): ConfigInvalid | undefined =>
  unknownOption(database, given, transactionOptions)

/** Returns the refusal of the options of a unit of work, if a name is not known. */
export const unknownOfUnit = <A, E>(options: UnitOptions<A, E>): ConfigInvalid | undefined =>
  unknownOption("", options, unitOptions) ?? unknownOfSettings(options)

/** Returns the refusal of the options of a nested part, if a name is not known. */
export const unknownOfNested = <A, E>(options: NestedOptions<A, E>): ConfigInvalid | undefined =>
  unknownOption("", options, nestedOptions)

/** Returns the refusal of the settings of a unit of work, if a name is not known. */
export const unknownOfSettings = ({ databases, transaction }: SettingsOptions): ConfigInvalid | undefined => {
  const ofAll = transaction === undefined ? undefined : unknownOption("", transaction, settings, "transaction")
  if (ofAll !== undefined || databases === undefined) return ofAll
  for (const { database, settings: given } of databases) {
    const ofOne = unknownOption(database, given, settings)
    if (ofOne !== undefined) return ofOne
  }
  return undefined
}
