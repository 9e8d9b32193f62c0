/**
 * Where unqualified names are looked up: the schemas of a scope as commands of the server.
 *
 * A single statement has a transaction of its own, whose end forgets a `SET LOCAL`. In a transaction of several nothing forgets it but the
 * end or a savepoint's rollback, and what was there before may be a setting of the session, or one that the program has made by hand. So
 * the server keeps that itself: whatever sets a path for a scope puts the one before into a variable of our own, if there is none in it,
 * and who is in no scope gets it back from there. Both are undone together by whatever is undone, so nobody has to know what was.
 */

import { constantStep, type Step, step } from "../protocol/messages.js"
import { invalidNameReason } from "./nameLimits.js"
import { quoteIdentifier, quoteLiteral } from "./quote.js"

/** In bytes. The server would cut off the rest, and what is left may be the name of another schema. */
const longestName = 63

/** In a search path these stand for something else, however they are quoted: the user's schema, what is the session's own. */
const substituted = /^(\$user|pg_temp(_\d+)?)$/

// what a schema has of its own must not be taken for these, even where its path has `pg_catalog` behind it
const get = "pg_catalog.current_setting"
const set = "pg_catalog.set_config"
const searchPath = "'search_path'"
const savedPath = "'effect_db.search_path'"

/** What was there before, behind a sign that tells it from nothing. */
const saved = `${get}(${savedPath}, true)`
const isSaved = `pg_catalog.starts_with(${saved}, '=')`

/** Keeps what is there, unless something is kept already. It is an argument of the other, so it comes first. */
const saveCurrent = `${set}(${savedPath}, CASE WHEN ${isSaved} THEN ${saved} ELSE pg_catalog.concat('=', ${get}(${searchPath})) END, true)`

const restoreSaved = `${set}(${searchPath}, CASE WHEN ${isSaved} THEN pg_catalog.substr(${saved}, 2) ELSE ${get}(${searchPath}) END, true)`

/** Gives back what was there before the first scope, and does nothing where there was none. */
export const restoreSearchPath: ReadonlyArray<Step> = [
  constantStep(`SELECT ${set}(${savedPath}, pg_catalog.left(${restoreSaved}, 0), true)`)
]

/** The schemas of a scope. */
export class SearchPath {
  /** As the server has it. */
  readonly text: string
  /** Why it cannot be sent, if it cannot. */
  readonly rejectionReason: string | undefined
  private autocommitStep: Step | undefined
  private transactionSteps: ReadonlyArray<Step> | undefined

  constructor(schemas: string | ReadonlyArray<string>) {
    this.rejectionReason = rejectionReasonOf(schemas)
    const names = typeof schemas === "string" ? [schemas] : schemas
    this.text = this.rejectionReason === undefined ? names.map(quoteIdentifier).join(", ") : ""
  }

  /** For a transaction that has nothing else in it. */
  get forAutocommit(): Step {
    this.autocommitStep ??= step(`SET LOCAL search_path TO ${this.text}`)
    return this.autocommitStep
  }

  /** For a statement among others. */
  get forTransaction(): ReadonlyArray<Step> {
    this.transactionSteps ??= [
      step(`SELECT ${set}(${searchPath}, ${quoteLiteral(this.text)}, ${saveCurrent} IS NOT NULL)`)
    ]
    return this.transactionSteps
  }
}

/** A program without types may give anything, such as a header that is not there. */
const rejectionReasonOf = (schemas: unknown): string | undefined => {
  const names: ReadonlyArray<unknown> = Array.isArray(schemas) ? schemas : [schemas]
  if (names.length === 0) return "an empty list"
  for (const name of names) {
    if (typeof name !== "string") return "no text"
    const fault = substituted.test(name)
      ? `"${name}", which stands for another`
      : invalidNameReason(name, 1, longestName)
    if (fault !== undefined) return fault
  }
  return undefined
}
