/**
 * Rules for the options of calls. A program without types may mistype a name, or pass a value of
 * another type.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { ConfigInvalid } from "../../DatabaseError.js"
import { nearestName } from "./nearestName.js"
import { isNegative, shown } from "./optionParsers.js"

/** Rule for the value of one option. */
export interface OptionRule {
  /** A description of the values that the rule accepts. */
  readonly expected: string
  readonly accepts: (given: unknown) => boolean
}

/** Rules by the names of options. A table without one of the names does not compile. */
export type OptionRules<A> = { readonly [K in keyof Required<A>]: OptionRule }

/** Accepts any value, for an option that has another check. */
export const anything: OptionRule = { expected: "", accepts: () => true }

/** Accepts a boolean. */
export const aBoolean: OptionRule = { expected: "true or false", accepts: (given) => typeof given === "boolean" }

/** Accepts a text. */
export const aText: OptionRule = { expected: "a text", accepts: (given) => typeof given === "string" }

/** Accepts a function. */
export const aFunction: OptionRule = { expected: "a function", accepts: (given) => typeof given === "function" }

/** Accepts an effect. */
export const anEffect: OptionRule = { expected: "an effect", accepts: Effect.isEffect }

/** Accepts an object with fields. */
export const anObject: OptionRule = {
  expected: "an object",
  accepts: (given) => typeof given === "object" && given !== null && !Array.isArray(given)
}

/** Accepts a duration from 0, infinity included. */
export const aDuration: OptionRule = {
  expected: 'a duration like "5 seconds"',
  accepts: (given) =>
    typeof given === "number"
      ? given >= 0
      : Duration.decodeUnknown(given)._tag === "Some" && !isNegative(given as Duration.DurationInput)
}

/** Accepts the option `retry` of a transaction or a unit of work. */
export const aRetry: OptionRule = {
  expected: "true, false or a Schedule",
  accepts: (given) => typeof given === "boolean" || Schedule.isSchedule(given)
}

/** Accepts one of some words. */
export const aWord = (...words: ReadonlyArray<string>): OptionRule => ({
  expected: `one of ${words.join(", ")}`,
  accepts: (given) => typeof given === "string" && words.includes(given)
})

/** Accepts a list of values that `accepts` accepts. */
export const aList = (expected: string, accepts: OptionRule["accepts"]): OptionRule => ({
  expected,
  accepts: (given) => Array.isArray(given) && given.every(accepts)
})

/** Accepts a value that one of several rules accepts. */
export const anyOf = (...rules: ReadonlyArray<OptionRule>): OptionRule => ({
  expected: rules.map(({ expected }) => expected).join(", or "),
  accepts: (given) => {
    for (const rule of rules) if (rule.accepts(given)) return true
    return false
  }
})

/** Returns the refusal of options with an unknown name or a value of another type. */
export const invalidOption = <A>(
  database: string,
  given: object,
  rules: OptionRules<A> & Readonly<Record<string, OptionRule>>,
  setting = ""
): ConfigInvalid | undefined => {
  for (const name in given) {
    const value: unknown = given[name as keyof typeof given]
    if (!Object.hasOwn(rules, name)) return unknownName(database, setting, name, Object.keys(rules))
    if (value !== undefined && rules[name]?.accepts(value) !== true)
      return new ConfigInvalid({
        database,
        setting: path(setting, name),
        given: shown(value),
        expected: rules[name]?.expected ?? ""
      })
  }
  return undefined
}

const path = (setting: string, name: string): string => (setting === "" ? name : `${setting}.${name}`)

const unknownName = (database: string, setting: string, name: string, names: ReadonlyArray<string>): ConfigInvalid => {
  const nearest = nearestName(name, names)
  const expected = nearest === undefined ? `one of ${names.join(", ")}` : `"${nearest}"`
  return new ConfigInvalid({ database, setting: path(setting, name), given: "an unknown setting", expected })
}
