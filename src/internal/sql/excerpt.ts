/**
 * The excerpt of a statement in the message of an error: a part of the text without passwords, and
 * a mark at the position of the error.
 */

/** Statement of an error, with the position of the error in it. */
export interface FailedStatement {
  readonly sql?: string | undefined
  readonly position?: number | undefined
  readonly where?: string | undefined
  readonly location?: string | undefined
}

/** The length of the line above a mark, in characters. */
const maxLineWidth = 100

/** The length of an excerpt without a mark, in characters. */
const maxTextLength = 200

/**
 * Matches the value after the word `password`. It may be in quotes, in doubled quotes inside of a
 * text, or without quotes as in a connection string.
 */
const passwords = /(\bpassword\s*=?\s*(?:E|U&)?)(''[^']+''|'(?:''|\\.|[^'\\])*'|[^\s'$(),;][^\s'),;]*)/gi

const masked = (text: string): string => "*".repeat([...text].length)

/**
 * Returns the text of a statement with each character of its passwords replaced by a star, so that
 * the positions of the server, which counts characters, stay right.
 */
export const withoutPasswords = (sql: string): string =>
  sql.replace(passwords, (_, before: string, password: string) =>
    password.startsWith("'") ? `${before}'${masked(password.slice(1, -1))}'` : before + masked(password)
  )

/**
 * Converts a position to an index. The server counts characters from 1, JavaScript counts UTF-16
 * units from 0.
 */
const indexOf = (text: string, position: number): number => {
  let index = 0
  for (let n = 1; n < position && index < text.length; n++) index += (text.codePointAt(index) ?? 0) > 0xffff ? 2 : 1
  return index
}

const shortened = (text: string, from: number, to: number): string =>
  `${from > 0 ? "... " : ""}${text.slice(Math.max(0, from), to)}${to < text.length ? " ..." : ""}`

/** Returns the line of a statement with the position, and a second line with a mark below it. */
const markedLine = (sql: string, position: number): ReadonlyArray<string> => {
  const at = indexOf(sql, position)
  const start = sql.lastIndexOf("\n", at - 1) + 1
  const end = sql.indexOf("\n", at)
  const line = sql.slice(start, end < 0 ? undefined : end).replace(/\s/g, " ")
  const from = line.length <= maxLineWidth ? 0 : Math.max(0, at - start - maxLineWidth / 2)
  const label = `LINE ${sql.slice(0, start).split("\n").length}: `
  const before = label + (from > 0 ? "... " : "") + line.slice(from, at - start)
  return [label + shortened(line, from, from + maxLineWidth), `${" ".repeat([...before].length)}^`]
}

const oneLine = (sql: string): string => {
  const line = sql
    .slice(0, 2 * maxTextLength)
    .trim()
    .replace(/\s+/g, " ")
  return line.length > maxTextLength || sql.length > 2 * maxTextLength ? `${line.slice(0, maxTextLength)} ...` : line
}

/**
 * Returns the lines at the end of an error's message: its statement, the context on the server, and
 * the location in the program.
 */
export const statementLines = ({ location, position, sql, where }: FailedStatement): string => {
  const lines = sql === undefined ? [] : position === undefined ? [`in: ${oneLine(sql)}`] : markedLine(sql, position)
  return [
    ...lines,
    ...(where === undefined ? [] : [`where: ${where.replaceAll("\n", ", ")}`]),
    ...(location === undefined ? [] : [`at: ${location}`])
  ]
    .map((line) => `\n  ${line}`)
    .join("")
}

/**
 * The patterns of the lines of a context that are shown. Only the match is shown, because the text
 * after it and all other lines may contain values.
 */
const contexts: ReadonlyArray<RegExp> = [
  /^(?:PL\/\w+|SQL) function .+ (?:line \d+ at .+|statement \d+|during \w+)$/,
  /^while \w+ (?:index )?tuple \(\d+,\d+\) in relation .+$/,
  /^COPY .+, line \d+(?:, column \w+)?/,
  /^(?:unnamed )?portal (?:"\w+" )?parameter \$\d+/,
  /^JSON data, line \d+/
]

/**
 * Returns the context of an error on the server without values, the innermost line first. The full
 * context has values in the line of a COPY, in the statements of functions, and in parameters that
 * the server is configured to log.
 */
export const contextOf = (where: string | undefined): string | undefined => {
  const lines = (where ?? "")
    .split("\n")
    .flatMap((line) => contexts.flatMap((context) => context.exec(line)?.[0] ?? []))
  return lines.length === 0 ? undefined : lines.join("\n")
}
