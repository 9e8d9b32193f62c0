/**
 * The names of settings, so that one that is mistyped is refused instead of ignored.
 */
import { nearestName } from "./nearestName.js"
import { Invalid } from "./optionParsers.js"

/** A table with every name of some settings; a name that is missing here does not compile. */
export type KnownNames<A> = { readonly [K in keyof Required<A>]: true }

/** Refuses settings with a name that is not known. `synonyms` are the words of other libraries. */
export const refuseUnknown = (
  setting: string,
  given: object,
  known: Readonly<Record<string, true>>,
  synonyms: Readonly<Record<string, string>> = {}
): void => {
  for (const name of Object.keys(given)) {
    if (Object.hasOwn(known, name)) continue
    const names = Object.keys(known)
    const instead = Object.hasOwn(synonyms, name) ? synonyms[name] : nearestName(name, names)
    throw new Invalid(
      setting === "" ? name : `${setting}.${name}`,
      "an unknown setting",
      instead === undefined ? `one of ${names.join(", ")}` : `"${instead}"`
    )
  }
}
