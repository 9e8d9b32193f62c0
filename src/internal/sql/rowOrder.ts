/**
 * The order of the rows of a statement: the text either defines it, or leaves it to the server.
 */
import { pieceAt } from "./commandScanner.js"

/** The words that end the list of tables of a query. */
const afterTables = new Set([
  ..."WHERE GROUP HAVING WINDOW UNION INTERSECT EXCEPT ORDER LIMIT OFFSET FETCH FOR".split(" ")
])
const writes = new Set(["INSERT", "UPDATE", "DELETE", "MERGE"])
const word = /^[A-Za-z_\x80-\uffff]/

/**
 * Returns the pieces of a text outside of parentheses and brackets, with words in capitals. A quoted
 * name is `"`, and a group in parentheses is `(`.
 */
const outermost = (text: string): ReadonlyArray<string> => {
  const pieces: Array<string> = []
  let depth = 0
  for (let at = 0; at < text.length; ) {
    const [piece, end] = pieceAt(text, at)
    at = end
    if (piece === "--" || piece === "/*" || piece.trim() === "") continue
    if (piece === ")" || piece === "]") depth--
    else {
      if (depth === 0) pieces.push(word.test(piece) && !piece.endsWith("'") ? piece.toUpperCase() : piece)
      if (piece === "(" || piece === "[") depth++
    }
  }
  while (pieces.at(-1) === ";") pieces.pop()
  return pieces
}

/** Returns the index of the verb of a statement that begins with WITH, or -1 if it has none. */
const verbAfterWith = (pieces: ReadonlyArray<string>): number =>
  pieces.findIndex((piece, at) => {
    if (piece === "SELECT" || piece === "VALUES") return true
    // these words may also name a query of the WITH list
    const next = pieces[at + 1]
    return (writes.has(piece) || piece === "TABLE") && next !== "AS" && next !== "("
  })

/**
 * Checks if a query reads a table, a view or a subquery. The rows of functions, such as
 * `generate_series`, have the order in which the function returns them.
 */
const readsTables = (pieces: ReadonlyArray<string>): boolean => {
  let isItem = false
  for (let at = 0; at < pieces.length; at++) {
    const piece = pieces[at] ?? ""
    if (piece === "FROM" && pieces[at - 1] !== "DISTINCT") isItem = true
    else if (afterTables.has(piece)) isItem = false
    else if (isItem) {
      if (piece === "LATERAL" || piece === "ONLY") continue
      if (piece === "(") return true
      // a name may have a schema before it
      while (pieces[at + 1] === ".") at += 2
      if (piece === "ROWS" && pieces[at + 1] === "FROM") at++
      if (pieces[at + 1] !== "(") return true
      // the next item follows a comma or JOIN
      let next = at + 2
      while (next < pieces.length && pieces[next] !== "," && pieces[next] !== "JOIN" && !isEnd(pieces[next])) next++
      if (next >= pieces.length || isEnd(pieces[next])) isItem = false
      at = next
    }
  }
  return false
}

const isEnd = (piece: string | undefined): boolean => piece !== undefined && afterTables.has(piece)

/**
 * Checks if a text is a query of tables whose rows have no defined order: it has no ORDER BY at its
 * outermost level. Returns false if that is uncertain, also for several commands in one text, and
 * for a query in parentheses.
 */
export const isUnordered = (text: string): boolean => {
  const pieces = outermost(text)
  const verb = pieces[0] === "WITH" ? verbAfterWith(pieces) : 0
  const command = pieces[verb]
  if (pieces.includes(";") || (command !== "SELECT" && command !== "TABLE")) return false
  const query = pieces.slice(verb)
  if (query.some((piece, at) => piece === "ORDER" && query[at + 1] === "BY")) return false
  return command === "TABLE" || readsTables(query)
}
