/**
 * A statement in the words of an error: which part of its text, where the fault is in it, and nothing secret.
 */

/** What an error knows of its statement. */
export interface FailedStatement {
  readonly sql?: string | undefined
  readonly position?: number | undefined
  readonly where?: string | undefined
  readonly location?: string | undefined
}

/** How much of one line is shown, in characters. */
const maxLineWidth = 100

/** How much of a text without a mark is shown. */
const maxTextLength = 200

/** What is written behind the word `password`: in quotes, in the doubled ones of a text in a text, or in a connection string without any. */
const passwords = /(\bpassword\s*=?\s*(?:E|U&)?)(''[^']+''|'(?:''|\\.|[^'\\])*'|[^\s'$(),;][^\s'),;]*)/gi

const masked = (text: string): string => "*".repeat(text.length)

/**
 * Returns the text of a statement without the passwords that are written in it, each character of one a star: positions stay right.
 */
export const withoutPasswords = (sql: string): string =>
  sql.replace(passwords, (_, before: string, password: string) =>
    password.startsWith("'") ? `${before}'${masked(password.slice(1, -1))}'` : before + masked(password)
  )

/** The server counts characters, this language counts half of some as one. */
const indexOf = (text: string, position: number): number => {
  let index = 0
  for (let n = 1; n < position && index < text.length; n++) index += (text.codePointAt(index) ?? 0) > 0xffff ? 2 : 1
  return index
}

const shortened = (text: string, from: number, to: number): string =>
  `${from > 0 ? "... " : ""}${text.slice(Math.max(0, from), to)}${to < text.length ? " ..." : ""}`

/** The line of a text with a position in it, and a mark below. */
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

/** Returns the lines that an error's message ends with: its statement, what the server was doing, and the place in the program. */
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

/** Lines of a context that name what the server was doing; others, and what follows in these, may show values. */
const contexts: ReadonlyArray<RegExp> = [
  /^(?:PL\/\w+|SQL) function .+ (?:line \d+ at .+|statement \d+|during \w+)$/,
  /^while \w+ (?:index )?tuple \(\d+,\d+\) in relation .+$/,
  /^COPY .+, line \d+(?:, column \w+)?/,
  /^(?:unnamed )?portal (?:"\w+" )?parameter \$\d+/,
  /^JSON data, line \d+/
]

/**
 * Returns what the server was doing, the innermost first, without values: a context shows parameters where the server is told to log them,
 * the line of a COPY, and statements that a function has put together.
 */
export const contextOf = (where: string | undefined): string | undefined => {
  const lines = (where ?? "").split("\n").flatMap((line) => contexts.flatMap((known) => known.exec(line)?.[0] ?? []))
  return lines.length === 0 ? undefined : lines.join("\n")
}
