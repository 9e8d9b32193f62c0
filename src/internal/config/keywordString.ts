/**
 * Keyword strings, as libpq reads them: `host=a dbname=app password='it\'s'`.
 */
import type { Pair } from "./connectionUri.js"
import { Invalid } from "./optionParsers.js"

// the characters that libpq treats as white space
const space = /[ \t\n\v\f\r]*/y
const keyword = /[^= \t\n\v\f\r]*/y
const bare = /(?:\\[\s\S]?|[^ \t\n\v\f\r\\])*/y
const quoted = /'((?:\\[\s\S]|[^'\\])*)'/y

/**
 * Reads a keyword string. An error does not show its text, because after a mistake a part of a
 * password may be read as a keyword.
 */
export const parseKeywords = (setting: string, text: string): ReadonlyArray<Pair> => {
  const pairs: Array<Pair> = []
  let at = 0
  const take = (pattern: RegExp): RegExpExecArray | undefined => {
    pattern.lastIndex = at
    const taken = pattern.exec(text) ?? undefined
    at += taken?.[0].length ?? 0
    return taken
  }
  for (take(space); at < text.length; take(space)) {
    const name = take(keyword)?.[0] ?? ""
    take(space)
    if (text[at] !== "=") {
      throw new Invalid(
        setting,
        "a keyword string with a keyword that has no value",
        "keyword=value or keyword='value'"
      )
    }
    at++
    take(space)
    const isQuoted = text[at] === "'"
    const value = isQuoted ? take(quoted)?.[1] : take(bare)?.[0]
    if (value === undefined) {
      throw new Invalid(
        setting,
        "a keyword string with a quote that does not end",
        "keyword='value', with \\' for a quote"
      )
    }
    pairs.push([name, value.replace(/\\([\s\S]?)/g, "$1")])
  }
  return pairs
}

/** Returns a keyword string with the given parameters. */
export const formatKeywords = (parameters: Iterable<Pair>): string =>
  Array.from(parameters, ([name, value]) => `${name}='${value.replace(/[\\']/g, "\\$&")}'`).join(" ")
