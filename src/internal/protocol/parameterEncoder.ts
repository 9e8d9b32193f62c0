/**
 * The encoder of the values of a statement.
 *
 * Secrets are revealed only here, in the bytes of a message. Statements, errors and spans hold the
 * values as the program has given them, so they show no secret.
 */
import { isDate } from "node:util/types"
import { prepareValue } from "./pgDriver.js"
import { isSecret, mayHaveSecret, reveal } from "./secret.js"

/** Checks that a value is an object of any kind. */
export const isObject = (value: unknown): value is object => typeof value === "object" && value !== null

/** Checks that a value is a plain object, without a class. */
export const isPlain = (value: unknown): value is Readonly<Record<string, unknown>> => {
  if (!isObject(value)) return false
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === Object.prototype || prototype === null
}

const hasJson = (value: unknown): value is { readonly toJSON: (key: string) => unknown } =>
  isObject(value) && "toJSON" in value && typeof value.toJSON === "function"

/** Returns an object with renamed keys, and with values mapped by `map`. */
export const renameKeys = (
  value: Readonly<Record<string, unknown>>,
  rename: (key: string) => string,
  map: (value: unknown) => unknown
): Record<string, unknown> => {
  const other: Record<string, unknown> = {}
  for (const key in value) {
    const name = rename(key)
    const mapped = map(value[key])
    // an assignment would set the prototype and no key
    if (name === "__proto__")
      Object.defineProperty(other, name, { value: mapped, enumerable: true, writable: true, configurable: true })
    else other[name] = mapped
  }
  return other
}

const itself = (value: unknown): unknown => value

/**
 * Returns the JSON of a value with its secrets revealed and its keys renamed by `rename`, if it is
 * given.
 */
const stringify = (value: unknown, rename?: ((key: string) => string) | undefined): string => {
  const plain = JSON.stringify(value)
  if (plain === undefined) throw new Error(`a ${typeof value} has no JSON`)
  if (rename === undefined && !mayHaveSecret(plain)) return plain
  // `this` has the original value; `json` is the result of its `toJSON`
  return JSON.stringify(value, function (this: Readonly<Record<string, unknown>>, key: string, json: unknown) {
    const original = this[key]
    const revealed = isSecret(original) ? reveal(original) : json
    const shown = revealed !== json && hasJson(revealed) ? revealed.toJSON(key) : revealed
    return rename !== undefined && isPlain(shown) ? renameKeys(shown, rename, itself) : shown
  })
}

/**
 * Value that is stored as JSON: an array becomes a JSON array and not an array of the server, and
 * `null` becomes the `null` of JSON.
 */
export class Json {
  constructor(
    private readonly value: unknown,
    private readonly rename: ((key: string) => string) | undefined
  ) {}

  /**
   * Returns the text of the JSON. node-postgres calls a method of this name, also inside of an
   * array.
   */
  toPostgres(): string {
    return stringify(reveal(this.value), this.rename)
  }

  /** Returns the value, for programs that print their statements. */
  toJSON(): unknown {
    return this.value
  }
}

/**
 * Placeholder of a value that cannot be sent. A statement with such a value fails with the reason.
 */
export class Unsendable {
  constructor(private readonly reason: string) {}

  toPostgres(): never {
    throw new Error(this.reason)
  }

  toJSON(): string {
    return this.reason
  }
}

/** The type id of fragments of @effect/sql, which this layer does not import. */
const fragmentId = Symbol.for("@effect/sql/Fragment")

const digits = (value: number, length = 2): string => String(value).padStart(length, "0")

/**
 * Returns the text of a date in the time zone of this process, with the offset. A `timestamp` or
 * `date` ignores the offset.
 */
const dateText = (date: Date): string => {
  if (Number.isNaN(date.getTime())) throw new Error("an invalid Date cannot be sent")
  const year = date.getFullYear()
  const offset = -date.getTimezoneOffset()
  const day = `${digits(year < 1 ? 1 - year : year, 4)}-${digits(date.getMonth() + 1)}-${digits(date.getDate())}`
  const time = `${digits(date.getHours())}:${digits(date.getMinutes())}:${digits(date.getSeconds())}`
  const zone = `${offset < 0 ? "-" : "+"}${digits(Math.floor(Math.abs(offset) / 60))}:${digits(Math.abs(offset) % 60)}`
  return `${day}T${time}.${digits(date.getMilliseconds(), 3)}${zone}${year < 1 ? " BC" : ""}`
}

const hasOwnForm = (value: object): value is { readonly toPostgres: (write: (value: unknown) => unknown) => unknown } =>
  "toPostgres" in value && typeof value.toPostgres === "function"

const encodeObject = (value: object): unknown => {
  if (isSecret(value)) return encodeParameter(reveal(value))
  if (Array.isArray(value)) return prepareValue(value.some(isObject) ? value.map(encodeElement) : value)
  if (isDate(value)) return dateText(value)
  if (hasOwnForm(value)) return encodeParameter(value.toPostgres(encodeParameter))
  return ArrayBuffer.isView(value) ? prepareValue(value) : stringify(value)
}

/** Encodes an element of an array; node-postgres puts it into the text of the array. */
const encodeElement = (value: unknown): unknown => {
  if (!isObject(value)) return value
  if (isSecret(value)) return encodeElement(reveal(value))
  if (Array.isArray(value)) return value.map(encodeElement)
  if (fragmentId in value && !hasOwnForm(value)) {
    throw new Error("a part of a statement cannot be an element of an array")
  }
  return encodeParameter(value)
}

/** Encodes a value as the text or bytes of a parameter. */
export const encodeParameter = (value: unknown): unknown =>
  isObject(value) ? encodeObject(value) : prepareValue(value)
