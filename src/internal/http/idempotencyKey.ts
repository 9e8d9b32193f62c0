/**
 * The idempotency key of a request: its header, its hash and the problems that concern it.
 */
import { createHash } from "node:crypto"
import { ConfigInvalid } from "../../DatabaseError.js"
import {
  aBoolean,
  aFunction,
  anObject,
  anyOf,
  invalidOption,
  type OptionRule,
  type OptionRules
} from "../config/callOptionRules.js"
import type { RequestKey } from "../outcome/requestKey.js"
import { isBodiless } from "./isReplayableRequest.js"

/** Options of idempotency keys. */
export interface KeyOptions<Database, Request> {
  readonly database: Database
  readonly header?: string | undefined
  readonly required?: boolean | undefined
  readonly scope?: ((request: Request) => string) | undefined
  readonly fingerprint?: ((request: Request) => string | Uint8Array) | undefined
  readonly keepAnswer?: boolean | { readonly maxBytes: number } | undefined
}

const aDatabase: OptionRule = {
  expected: "the class of a database",
  accepts: (given) => typeof given === "function" && "databaseName" in given
}

const aHeader: OptionRule = {
  expected: "the name of a header",
  accepts: (given) => typeof given === "string" && /^[!#$%&'*+\-.^_`|~\w]+$/.test(given)
}

/** The rules for `KeyOptions`. */
const keyOptions: OptionRules<KeyOptions<unknown, never>> = {
  database: aDatabase,
  header: aHeader,
  required: aBoolean,
  scope: aFunction,
  fingerprint: aFunction,
  keepAnswer: anyOf(aBoolean, anObject)
}

/** Returns the refusal of options of keys, if one is invalid. */
export const invalidKeyOption = (options: KeyOptions<unknown, never> | undefined): ConfigInvalid | undefined => {
  if (options === undefined) return undefined
  const { keepAnswer } = options
  const maxBytes = typeof keepAnswer === "object" && keepAnswer !== null ? keepAnswer.maxBytes : 0
  return (
    invalidOption("", options, keyOptions, "idempotencyKey") ??
    (aDatabase.accepts(options.database) ? undefined : missing("database", aDatabase.expected)) ??
    (Number.isInteger(maxBytes) && maxBytes >= 0 ? undefined : missing("keepAnswer.maxBytes", "a whole number from 0"))
  )
}

const missing = (name: string, expected: string): ConfigInvalid =>
  new ConfigInvalid({ database: "", setting: `idempotencyKey.${name}`, given: "another value", expected })

/** The answer to a request whose key does not let it run, in the form of RFC 9457. */
export interface KeyProblem {
  readonly type: "about:blank"
  readonly title: string
  readonly status: 400 | 409 | 422
}

const problem = (status: KeyProblem["status"], title: string): KeyProblem => ({ type: "about:blank", title, status })

/** The problem of a request that was stored before, and whose answer was not kept. */
export const storedBefore = problem(409, "A request with this idempotency key was stored before")

/** The problem of a request with the key of another one. */
export const otherContent = problem(422, "The idempotency key was used for a request with other content")

const defaultHeader = "idempotency-key"
const maxKeyLength = 255
// biome-ignore lint/suspicious/noControlCharactersInRegex: a key must not have any
const control = /[\u0000-\u001f\u007f-\u009f]/

/** The facts of a request that its key depends on. */
export interface KeyedFacts {
  readonly method: string
  readonly path: string
  readonly header: (name: string) => string | null | undefined
}

/**
 * Returns the key in the header of a request, the problem if it is not valid, or `undefined` if
 * the request runs without one. A method that must not change anything has none.
 */
export const keyIn = (
  { header, method }: KeyedFacts,
  { header: name = defaultHeader, required = false }: Pick<KeyOptions<never, never>, "header" | "required">
): string | KeyProblem | undefined => {
  if (isBodiless(method)) return undefined
  const key = header(name.toLowerCase()) ?? undefined
  if (key === undefined) return required ? problem(400, `The request needs the header ${name}`) : undefined
  if (key === "" || key.length > maxKeyLength || control.test(key))
    return problem(400, `The header ${name} must have 1 to ${maxKeyLength} printable characters`)
  return key
}

/**
 * Returns the id of a key in its scope as a UUID of version 8. Its first bit is set, so that it is
 * beyond all markers, which begin with the time.
 */
const idOf = (key: string, { method, path }: KeyedFacts, scope: string): string => {
  const hash = createHash("sha256")
    .update(JSON.stringify([key, method, path, scope]))
    .digest()
  hash[0] = (hash[0] ?? 0) | 0x80
  hash[6] = ((hash[6] ?? 0) & 0x0f) | 0x80
  hash[8] = ((hash[8] ?? 0) & 0x3f) | 0x80
  const digits = hash.toString("hex")
  return [0, 8, 12, 16, 20].map((start, i, all) => digits.slice(start, all[i + 1] ?? 32)).join("-")
}

const hashOf = (content: string | Uint8Array): string => createHash("sha256").update(content).digest("base64url")

/**
 * Returns the fingerprint of the content of a request: the hashes of its query and its body. That of
 * a body which is not known is empty.
 */
const fingerprintOf = (url: string, content: string | Uint8Array | undefined): string => {
  const start = url.indexOf("?")
  return `${hashOf(start < 0 ? "" : url.slice(start))}.${content === undefined ? "" : hashOf(content)}`
}

/** Checks if two fingerprints may be those of the same content. Bodies are compared if both are known. */
export const isSameContent = (one: string, other: string): boolean =>
  one === other || (one.startsWith(other) && other.endsWith(".")) || (other.startsWith(one) && one.endsWith("."))

/** Returns the key of a request as it is stored. */
export const requestKeyOf = (
  key: string,
  facts: KeyedFacts,
  scope: string,
  url: string,
  content: string | Uint8Array | undefined
): RequestKey => ({ id: idOf(key, facts, scope), fingerprint: fingerprintOf(url, content) })
