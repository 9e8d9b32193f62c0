/**
 * The names of the options of transactions.
 */
import type { ConfigInvalid } from "../../DatabaseError.js"
import type { Options } from "../../Transaction.js"
import type { KnownNames } from "../config/knownNames.js"
import { unknownOption } from "../config/unknownOption.js"
import type { UnitSettings } from "../transaction/unitOptions.js"

const settings: KnownNames<UnitSettings> = {
  isolation: true,
  access: true,
  deferrable: true,
  statementTimeout: true,
  lockTimeout: true,
  label: true,
  applicationName: true
}

const options: KnownNames<Options> = { ...settings, propagation: true, retry: true }

/** Returns the refusal of the options of a transaction, if a name is not known. */
export const unknownOfTransaction = (database: string, given: Options): ConfigInvalid | undefined =>
  unknownOption(database, given, options)

/** Settings for all databases of a unit of work, and for single ones. */
export interface Given {
  readonly transaction?: UnitSettings | undefined
  readonly databases?: ReadonlyArray<{ readonly database: string; readonly settings: UnitSettings }> | undefined
}

/** Returns the refusal of the settings of a unit of work, if a name is not known. */
export const unknownOfSettings = ({ databases, transaction }: Given): ConfigInvalid | undefined => {
  const ofAll = transaction === undefined ? undefined : unknownOption("", transaction, settings, "transaction")
  if (ofAll !== undefined || databases === undefined) return ofAll
  for (const { database, settings: given } of databases) {
    const ofOne = unknownOption(database, given, settings)
    if (ofOne !== undefined) return ofOne
  }
  return undefined
}
