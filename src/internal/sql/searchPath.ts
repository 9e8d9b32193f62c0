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
const path = "'search_path'"
const before = "'effect_db.search_path'"

/** What was there before, behind a sign that tells it from nothing. */
const kept = `${get}(${before}, true)`
const isKept = `pg_catalog.starts_with(${kept}, '=')`

/** Keeps what is there, unless something is kept already. It is an argument of the other, so it comes first. */
const keep = `${set}(${before}, CASE WHEN ${isKept} THEN ${kept} ELSE pg_catalog.concat('=', ${get}(${path})) END, true)`

const giveBack = `${set}(${path}, CASE WHEN ${isKept} THEN pg_catalog.substr(${kept}, 2) ELSE ${get}(${path}) END, true)`

/** Gives back what was there before the first scope, and does nothing where there was none. */
export const leaveSearchPath: ReadonlyArray<Step> = [
  constantStep(`SELECT ${set}(${before}, pg_catalog.left(${giveBack}, 0), true)`)
]

/** The schemas of a scope. */
export class SearchPath {
  /** As the server has it. */
  readonly text: string
  /** Why it cannot be sent, if it cannot. */
  readonly fault: string | undefined
  private alone: Step | undefined
  private inside: ReadonlyArray<Step> | undefined

  constructor(schemas: string | ReadonlyArray<string>) {
    this.fault = faultOf(schemas)
    const names = typeof schemas === "string" ? [schemas] : schemas
    this.text = this.fault === undefined ? names.map(quoteIdentifier).join(", ") : ""
  }

  /** For a transaction that has nothing else in it. */
  get forOne(): Step {
    this.alone ??= step(`SET LOCAL search_path TO ${this.text}`)
    return this.alone
  }

  /** For a statement among others. */
  get amongOthers(): ReadonlyArray<Step> {
    this.inside ??= [step(`SELECT ${set}(${path}, ${quoteLiteral(this.text)}, ${keep} IS NOT NULL)`)]
    return this.inside
  }
}

/** A program without types may give anything, such as a header that is not there. */
const faultOf = (schemas: unknown): string | undefined => {
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
