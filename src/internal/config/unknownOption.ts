/**
 * The check of the option names of a call, which a program without types may mistype.
 */
import { ConfigInvalid } from "../../DatabaseError.js"
import { type KnownNames, refuseUnknown } from "./knownNames.js"
import { Invalid } from "./optionParsers.js"

/**
 * Returns the refusal of options with an unknown name. It allocates nothing if all names are known.
 */
export const unknownOption = <A>(
  database: string,
  given: object,
  known: KnownNames<A> & Readonly<Record<string, true>>,
  setting = ""
): ConfigInvalid | undefined => {
  for (const name in given) if (!Object.hasOwn(known, name)) return refusal(database, given, known, setting)
  return undefined
}

const refusal = (
  database: string,
  given: object,
  known: Readonly<Record<string, true>>,
  setting: string
): ConfigInvalid | undefined => {
  try {
    refuseUnknown(setting, given, known)
    return undefined
  } catch (cause) {
    if (cause instanceof Invalid) return new ConfigInvalid({ database, ...cause })
    throw cause
  }
}
