/**
 * The `search_path` of a schema scope, as commands for the server.
 *
 * An autocommit statement has its own transaction, whose end resets a `SET LOCAL`. In a transaction
 * of several statements, a statement outside of the scope may follow, so the earlier path must be
 * restored before the end.
 *
 * The earlier path may be a setting of the session, or the program may have set it by a command. So
 * the server stores it: the command that sets the path of a scope saves the current path in the
 * variable `effect_db.search_path`, if that is empty. Before a statement outside of scopes, the
 * saved path is restored. The rollback of a savepoint undoes the setting and the variable together,
 * so this library need not know the earlier path.
 */

import { constantStep, type Step, step } from "../protocol/frontendMessages.js"
import { invalidNameReason } from "./invalidText.js"
import { quoteIdentifier, quoteLiteral } from "./quote.js"

/**
 * The longest name, in bytes. The server truncates a longer name, and the truncated name may be
 * that of another schema.
 */
const longestName = 63

/**
 * Names that are no schema of the program, even if they are quoted. PostgreSQL replaces `$user` by
 * the name of the user and `pg_temp` by the temporary schema of the session; `pg_temp_3` is the
 * temporary schema of one of the sessions.
 */
const substituted = /^(\$user|pg_temp(_\d+)?)$/

// qualified, because a schema may have functions of these names and come before `pg_catalog` in the
// path
const get = "pg_catalog.current_setting"
const set = "pg_catalog.set_config"
const searchPath = "'search_path'"
const savedPath = "'effect_db.search_path'"

/** The saved path, with the prefix `=` that distinguishes an empty path from a missing one. */
const saved = `${get}(${savedPath}, true)`
const isSaved = `pg_catalog.starts_with(${saved}, '=')`

/**
 * Saves the current path unless a path is saved already. The call is an argument of the call that
 * sets the new path, so it runs first.
 */
const saveCurrent = `${set}(${savedPath}, CASE WHEN ${isSaved} THEN ${saved} ELSE pg_catalog.concat('=', ${get}(${searchPath})) END, true)`

const restoreSaved = `${set}(${searchPath}, CASE WHEN ${isSaved} THEN pg_catalog.substr(${saved}, 2) ELSE ${get}(${searchPath}) END, true)`

/** Restores the path from before the first scope. Has no effect if there was no scope. */
export const restoreSearchPath: ReadonlyArray<Step> = [
  constantStep(`SELECT ${set}(${savedPath}, pg_catalog.left(${restoreSaved}, 0), true)`)
]

/** Search path of a scope. */
export class SearchPath {
  /** The value of the setting `search_path`; empty if the search path is rejected. */
  readonly text: string
  /** The reason why the search path cannot be sent, if there is one. */
  readonly rejectionReason: string | undefined
  /** A description of valid arguments. */
  readonly expected: string
  private autocommitStep: Step | undefined
  private transactionSteps: ReadonlyArray<Step> | undefined

  /** `fault` is the reason for a rejection because of invalid options instead of names. */
  constructor(schemas: string | ReadonlyArray<string>, fault?: string) {
    this.rejectionReason = fault ?? rejectionReasonOf(schemas)
    this.expected =
      fault === undefined ? "one or more names of 1 to 63 bytes" : "only `databases`, a list of classes of databases"
    const names = typeof schemas === "string" ? [schemas] : schemas
    this.text = this.rejectionReason === undefined ? names.map(quoteIdentifier).join(", ") : ""
  }

  /** The step before an autocommit statement. */
  get forAutocommit(): Step {
    this.autocommitStep ??= step(`SET LOCAL search_path TO ${this.text}`)
    return this.autocommitStep
  }

  /** The steps before a statement in a transaction. */
  get forTransaction(): ReadonlyArray<Step> {
    this.transactionSteps ??= [
      step(`SELECT ${set}(${searchPath}, ${quoteLiteral(this.text)}, ${saveCurrent} IS NOT NULL)`)
    ]
    return this.transactionSteps
  }
}

/**
 * Returns the reason to reject schemas, if there is one. A program without types may pass any
 * value, such as the `undefined` of a missing header.
 */
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
