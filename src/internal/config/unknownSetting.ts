/**
 * The refusal of settings with unknown names. A mistyped name must not be ignored.
 */
import { nearestName } from "./nearestName.js"
import { Invalid } from "./optionParsers.js"

/** Table with the names of all fields of `A`. A table without one of them does not compile. */
export type KnownNames<A> = { readonly [K in keyof Required<A>]: true }

/** Refuses settings with unknown names. `synonyms` are the names that other libraries use. */
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
