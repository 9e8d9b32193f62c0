/**
 * The text of COPY commands. The options and the values of the query are written into the text,
 * because COPY takes no parameters.
 */

import type { LineFormat } from "../protocol/copyRowWriter.js"
import { Inlined, plain } from "../protocol/inlinedText.js"
import { encodeParameter } from "../protocol/parameterEncoder.js"
import { commandsIn } from "./commandScanner.js"
import { quoteIdentifier, quoteLiteral } from "./quote.js"

/** Format of the data of a COPY. */
export interface Format extends LineFormat {
  readonly header?: boolean | "match" | undefined
}

const headers = new Map<unknown, string>([
  [true, "true"],
  [false, "false"],
  ["match", "MATCH"]
])

/**
 * Returns the keyword of an option. Throws for an unknown value, which a program without types may
 * pass.
 */
const keyword = (option: string, given: unknown, known: ReadonlyMap<unknown, string>): string => {
  const found = known.get(given)
  if (found !== undefined) return found
  throw new Error(`the ${option} of a COPY is one of ${[...known.keys()].join(", ")}`)
}

const textOption = (option: string, given: unknown): string => {
  if (typeof given === "string") return quoteLiteral(given)
  throw new Error(`the ${option} of a COPY is a text`)
}

const formats = new Map<unknown, string>([
  ["text", "text"],
  ["csv", "csv"]
])

const withOptions = ({
  delimiter,
  encoding = "UTF8",
  escape,
  format = "text",
  header,
  null: nullText,
  quote
}: Format) => {
  const options = [`FORMAT ${keyword("format", format, formats)}`, `ENCODING ${textOption("encoding", encoding)}`]
  if (delimiter !== undefined) options.push(`DELIMITER ${textOption("delimiter", delimiter)}`)
  if (nullText !== undefined) options.push(`NULL ${textOption("null", nullText)}`)
  if (header !== undefined) options.push(`HEADER ${keyword("header", header, headers)}`)
  if (quote !== undefined) options.push(`QUOTE ${textOption("quote", quote)}`)
  if (escape !== undefined) options.push(`ESCAPE ${textOption("escape", escape)}`)
  return `WITH (${options.join(", ")})`
}

/** Returns the command that stores rows. `table` must be quoted already. */
export const copyFromSql = (table: string, columns: ReadonlyArray<string>, format: Format): string => {
  const list = columns.length === 0 ? "" : ` (${columns.map(quoteIdentifier).join(", ")})`
  return `COPY ${table}${list} FROM STDIN ${withOptions(format)}`
}

/** Returns the command that reads the rows of a query. */
export const copyToSql = (query: Inlined, format: Format): Inlined =>
  new Inlined([plain("COPY ("), ...query.parts, plain(`\n) TO STDOUT ${withOptions(format)}`)])

/** Returns a value as a literal. Its text is the same as that of a parameter with the value. */
export const inlined = (value: unknown): string => {
  const encoded = encodeParameter(value)
  if (encoded === null || encoded === undefined) return "NULL"
  return quoteLiteral(Buffer.isBuffer(encoded) ? `\\x${encoded.toString("hex")}` : String(encoded))
}

/** Checks if one of the commands of a statement is a COPY. */
export const isCopy = (statement: string): boolean =>
  /\bcopy\b/i.test(statement) && commandsIn(statement).some((command) => /^COPY\b/.test(command))

/** Line and column of the data at which a COPY has failed. */
export interface ErrorPosition {
  readonly line: number
  readonly column: string | undefined
}

/**
 * Returns the position in the data at which a COPY has failed. The context of the error has the
 * position in one line, in the language of the server: `COPY item, line 3, column amount: "x"`.
 */
export const errorPositionIn = (
  context: string,
  table: string,
  columns: ReadonlyArray<string>
): ErrorPosition | undefined => {
  const start = `COPY ${table}, `
  for (const entry of context.split("\n")) {
    if (!entry.startsWith(start)) continue
    const [all, line, rest = ""] = /^\D*(\d+)(?:, \S+ (.*)|:.*|$)/s.exec(entry.slice(start.length)) ?? []
    if (all === undefined) continue
    const isNamed = (column: string) => rest === column || rest.startsWith(`${column}:`)
    return { line: Number(line), column: columns.find(isNamed) ?? (/^[^:]+/.exec(rest)?.[0] || undefined) }
  }
  return undefined
}
