/**
 * The parsers of single settings. Each returns the given value or the default, or throws `Invalid`.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as LogLevel from "effect/LogLevel"
import { isByName } from "../protocol/parsersByName.js"
import { wholeMillis } from "../sql/timeouts.js"

/** Refusal of a setting, which the parsers throw. It must not contain a secret. */
export class Invalid {
  constructor(
    readonly setting: string,
    readonly given: string,
    readonly expected: string
  ) {}
}

/** Describes a wrong value in a few words, without the fields of an object. */
export const shown = (given: unknown): string => {
  if (typeof given === "string") return JSON.stringify(given.length > 40 ? `${given.slice(0, 40)}...` : given)
  if (given === null || typeof given === "number" || typeof given === "boolean") return String(given)
  if (Array.isArray(given)) return "an array"
  return typeof given === "object" || typeof given === "undefined" ? `an ${typeof given}` : `a ${typeof given}`
}

export const port = (setting: string, given: number): number => {
  if (!Number.isInteger(given) || given < 1 || given > 65535) {
    throw new Invalid(setting, String(given), "a port from 1 to 65535")
  }
  return given
}

export const text = (setting: string, given: string | undefined): string => {
  // a program without types may omit the value, or give one of another type
  if (typeof given !== "string") throw new Invalid(setting, given === undefined ? "missing" : "no text", "some text")
  if (given === "") throw new Invalid(setting, "empty", "some text")
  if (given.includes("\0")) throw new Invalid(setting, "text with a NUL character", "text without NUL")
  return given
}

export const count = (setting: string, given: number | undefined, otherwise: number, minimum: number): number => {
  if (given === undefined) return otherwise
  if (!Number.isInteger(given) || given < minimum)
    throw new Invalid(setting, String(given), `a whole number from ${minimum}`)
  return given
}

/** Checks if a duration is negative, which `Duration` would decode as zero, or not a number. */
export const isNegative = (given: Duration.DurationInput): boolean => {
  if (typeof given === "string") return given.startsWith("-")
  if (Array.isArray(given)) return given.some((part) => !(part >= 0))
  return (typeof given === "number" || typeof given === "bigint") && !(given >= 0)
}

export const duration = (
  setting: string,
  given: Duration.DurationInput | undefined,
  otherwise: Duration.DurationInput
): number => {
  const decoded = Duration.decodeUnknown(given ?? otherwise)
  if (decoded._tag === "None" || isNegative(given ?? otherwise))
    throw new Invalid(setting, String(given), 'a duration like "5 seconds"')
  return Duration.toMillis(decoded.value)
}

/** Returns a limit in whole milliseconds, as the server needs it. 0 means no limit. */
export const limit = (setting: string, given: Duration.DurationInput): number =>
  wholeMillis(duration(setting, given, 0))

export const limitIfAny = (setting: string, given: Duration.DurationInput | undefined): number | undefined =>
  given === undefined ? undefined : limit(setting, given)

export const effect = <A>(setting: string, given: A): void => {
  if (given !== undefined && !Effect.isEffect(given)) throw new Invalid(setting, "no effect", "an effect")
}

export const finite = (setting: string, given: number): number => {
  if (!Number.isFinite(given)) throw new Invalid(setting, "infinite", "a finite duration")
  return given
}

/** Returns a boolean, by default false. */
export const boolean = (setting: string, given: boolean | undefined): boolean => {
  if (given !== undefined && typeof given !== "boolean") throw new Invalid(setting, "no boolean", "true or false")
  return given === true
}

/**
 * Returns one of the allowed words, by default the first. The error does not show the given word,
 * which may be a part of a password.
 */
export const oneOf = <A extends string>(
  setting: string,
  given: string | undefined,
  ...all: readonly [A, ...Array<A>]
): A => {
  if (given === undefined) return all[0]
  const known = all.find((one) => one === given)
  if (known === undefined) throw new Invalid(setting, "unknown", `one of ${all.join(", ")}`)
  return known
}

/** Reads a whole number as libpq does. */
export const integer = (setting: string, given: string): number => {
  if (!/^[ \t\n\v\f\r]*[+-]?\d+[ \t\n\v\f\r]*$/.test(given)) throw new Invalid(setting, "no number", "a whole number")
  return Number(given)
}

/** Reads a switch (0 or 1) as libpq does. The default is true. */
export const flag = (setting: string, given: string | undefined): boolean =>
  given === undefined || given === "" || oneOf(setting, given, "1", "0") === "1"

export const positive = (setting: string, given: number): number => {
  if (given <= 0) throw new Invalid(setting, String(given), "a duration longer than 0")
  return given
}

export const longerThan = (setting: string, given: number, limit: number, limitName: string): number => {
  if (given <= limit) throw new Invalid(setting, `${given} ms`, `a duration longer than ${limitName} (${limit} ms)`)
  return given
}

export const echo = (given: boolean | string | undefined): LogLevel.LogLevel => {
  if (typeof given !== "string") return given === true ? LogLevel.All : LogLevel.None
  const level = LogLevel.allLevels.find(({ _tag }) => _tag === given)
  if (level !== undefined) return level
  throw new Invalid(
    "echo",
    `"${given}"`,
    `true, false or one of ${LogLevel.allLevels.map(({ _tag }) => _tag).join(", ")}`
  )
}

export const keepAlive = (
  given: Duration.DurationInput | false | undefined,
  setting = "keepAlive"
): number | undefined => {
  if (given === false) return undefined
  const millis = duration(setting, given, "30 seconds")
  // the socket option takes whole seconds: 0 would mean the default of the system, two hours, and
  // the system refuses larger values
  if (millis < 1000 || millis > 32_767_000) throw new Invalid(setting, String(given), "1 second to 9 hours, or false")
  return millis
}

/** Checks and returns the parsers of columns: those of node-postgres, or functions by type name. */
export const parsers = <A extends object>(setting: string, given: A | undefined): A | undefined => {
  if (given === undefined) return undefined
  const all = typeof given === "object" && given !== null && !Array.isArray(given) ? given : undefined
  if (all === undefined) throw new Invalid(setting, "no record", "parsers by the names of types")
  if (!isByName(all)) return all
  const wrong = Object.keys(all).find((name) => typeof all[name] !== "function")
  if (wrong !== undefined) throw new Invalid(`${setting}.${wrong}`, "no function", "a function from text to a value")
  return given
}
