/**
 * The commands that begin a transaction with its options.
 */
import type { Access, Isolation } from "../../Transaction.js"
import { setLocal } from "../sql/timeouts.js"
import { labelSql } from "../statement/workLabel.js"
import type { PlainOptions } from "./optionsInMillis.js"

const isolations: ReadonlyArray<Isolation> = ["read committed", "repeatable read", "serializable"]
const accesses: ReadonlyArray<Access> = ["read write", "read only"]

/**
 * Returns the SQL keywords of an option, and throws if its value is not in `all`. A program without
 * types may pass any value, which must neither become SQL nor be ignored.
 */
const keywords = <A extends string>(
  option: string,
  given: A | undefined,
  all: ReadonlyArray<A>,
  prefix = ""
): string => {
  if (given === undefined) return ""
  if (all.includes(given)) return `${prefix}${given.toUpperCase()}`
  throw new TypeError(`the ${option} of a transaction is one of ${all.join(", ")}`)
}

/** Returns the commands that begin a transaction. */
export const beginSql = (options: PlainOptions): ReadonlyArray<string> => {
  const begin = [
    "BEGIN",
    keywords("isolation", options.isolation, isolations, "ISOLATION LEVEL "),
    keywords("access", options.access, accesses),
    options.deferrable === undefined ? "" : options.deferrable ? "DEFERRABLE" : "NOT DEFERRABLE"
  ]
  return [begin.filter((part) => part !== "").join(" "), ...limitsSql(options)]
}

/** Returns the commands that set the timeouts and the application name of a transaction. */
export const limitsSql = ({ applicationName, lockTimeout, statementTimeout }: PlainOptions): ReadonlyArray<string> => {
  const limits = setLocal({ statementTimeout, lockTimeout })
  return applicationName === undefined ? limits : [...limits, labelSql(applicationName)]
}
