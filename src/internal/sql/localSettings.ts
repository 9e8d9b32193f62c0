/**
 * The settings that a statement sets until the end of its transaction (SET LOCAL), and the commands
 * that end them before that.
 *
 * In a sandbox a transaction of the program ends with RELEASE SAVEPOINT, which keeps such settings. So
 * the server saves the value from before the first of them in a variable, and the emulated COMMIT
 * restores it. The rollback of a savepoint undoes the setting and the variable together.
 */
import { type Step, step } from "../protocol/frontendMessages.js"
import { quoteLiteral } from "./quote.js"

const mayBeLocal = /\blocal\b|\bset_config\b/i
const setLocal = /\bSET\s+LOCAL\s+("(?:[^"]|"")+"|[A-Za-z_\x80-\uffff][\w$.\x80-\uffff]*)(\s+\w+)?/gi
const setConfig =
  /\bset_config\s*\(\s*(?:'((?:[^']|'')+)'|\$(\d+))(?:\s*::\s*\w+)?\s*,[\s\S]*?,\s*(?:(true|on|'t(?:rue)?')|\$(\d+))(?:\s*::\s*\w+)?\s*\)/gi

/** The settings whose command has words of its own in place of a name. */
const named: Readonly<Record<string, string>> = {
  time: "timezone",
  schema: "search_path",
  names: "client_encoding",
  xml: "xmloption",
  session: "session_authorization"
}

const isTrue = (value: unknown): boolean => value === true || /^(?:t|true|on|1)$/i.test(String(value))

/** Returns the name of a setting, without its quotes. The server compares names without case. */
const nameOf = (identifier: string): string => {
  const bare = identifier.startsWith('"') ? identifier.slice(1, -1).replaceAll('""', '"') : identifier
  return bare.toLowerCase()
}

/**
 * Returns the names of the settings that a statement sets until the end of its transaction. They are
 * found by the text: a function that sets one is not seen.
 */
export const localSettingsIn = (text: string, values: ReadonlyArray<unknown>): ReadonlySet<string> => {
  const names = new Set<string>()
  if (!mayBeLocal.test(text)) return names
  for (const [, identifier = "", next] of text.matchAll(setLocal)) {
    const name = nameOf(identifier)
    const isCommand = next !== undefined && !/^\s+to$/i.test(next)
    names.add(isCommand ? (named[name] ?? name) : name)
  }
  for (const [, literal, position, isLocal, flag] of text.matchAll(setConfig)) {
    const name = literal?.replaceAll("''", "'") ?? values[Number(position) - 1]
    if (typeof name !== "string" || name === "") continue
    if (isLocal !== undefined || isTrue(values[Number(flag) - 1])) names.add(name.toLowerCase())
  }
  // the characteristics of a transaction end with its savepoint
  for (const name of names) if (/^transaction(?:_|$)/.test(name)) names.delete(name)
  return names
}

const get = "pg_catalog.current_setting"
const set = "pg_catalog.set_config"

/** Returns the text of a setting, empty if there is none. */
const current = (name: string): string => `coalesce(${get}(${quoteLiteral(name)}, true), '')`

/** Returns the variable of the saved value. The value has a prefix, because it may be empty. */
const variable = (name: string): string => `effect_db.saved_${Buffer.from(name).toString("hex")}`

/** Returns the step that saves the value of a setting, unless one is saved already. */
export const saveSetting = (name: string): Step => {
  const saved = current(variable(name))
  return step(
    `SELECT ${set}(${quoteLiteral(variable(name))}, pg_catalog.concat('=', ${current(name)}), true) WHERE ${saved} = ''`
  )
}

/**
 * Returns the step that restores the saved value of a setting, if there is one. A value that is the
 * same is not set: the name may be none of the server's.
 */
export const restoreSetting = (name: string): Step => {
  const saved = current(variable(name))
  const restored = `CASE WHEN ${current(name)} <> pg_catalog.substr(${saved}, 2) THEN ${set}(${quoteLiteral(name)}, pg_catalog.substr(${saved}, 2), true) END`
  // the value is restored first, because it is an argument of the call that clears the variable
  return step(
    `SELECT ${set}(${quoteLiteral(variable(name))}, pg_catalog.left(${restored}, 0), true) WHERE ${saved} <> ''`
  )
}
