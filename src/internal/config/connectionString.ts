/**
 * Connection strings, in both forms: URIs and keyword strings.
 */
import { isUri, parseUri } from "./connectionUri.js"
import { parseKeywords } from "./keywordString.js"
import { Invalid } from "./optionParsers.js"
import { collect, type Parameters } from "./parameterNames.js"

const forms =
  "a URL like postgres://user:password@host:5432/database, or a keyword string like host=a dbname=app user=me"

/**
 * Reads a connection string as libpq does, but ignores white space around a URL, and refuses some
 * texts that libpq accepts, such as an empty one.
 */
export const parseConnectionString = (setting: string, text: string): Parameters => {
  // an error does not show the text, because any part of it may be a secret
  if (text === "") throw new Invalid(setting, "empty", forms)
  if (text.includes("\0")) throw new Invalid(setting, "text with a NUL character", "text without NUL")
  // a file or variable often ends in a line break, which libpq reads as a part of the last value
  const trimmed = text.trim()
  if (isUri(trimmed)) {
    if (/[\r\n]/.test(trimmed)) throw new Invalid(setting, "a URL with a line break", "a URL on one line")
    return collect(setting, parseUri(setting, trimmed))
  }
  if (/^[a-z][a-z0-9+.-]*:/i.test(text) || !text.includes("=")) {
    throw new Invalid(setting, "neither a postgres:// URL nor a keyword string", forms)
  }
  return collect(setting, parseKeywords(setting, text))
}
