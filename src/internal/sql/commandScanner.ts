/**
 * The commands in an SQL text, recognized by their first words.
 */

/**
 * Matches the beginning of a token; {@link tokenEnd} finds its end. Each quantifier has a bound,
 * because V8 puts an entry on its backtracking stack for each repetition.
 */
const token =
  /--|\/\*|[eE]?'|"|\$(?:[A-Za-z_\x80-\uffff][\w\x80-\uffff]{0,99})?\$|[A-Za-z_\x80-\uffff][\w$\x80-\uffff]{0,99}|[\s\S]/y

const isWord = /^[A-Za-z_\x80-\uffff]/

/** Returns the index after the next occurrence of `searched`, or the end of the text. */
const indexAfter = (text: string, from: number, searched: string): number => {
  const found = text.indexOf(searched, from)
  return found < 0 ? text.length : found + searched.length
}

/**
 * Returns the index after the string that contains the index `inside`. A backslash in the string
 * escapes the next character.
 */
const escapedEnd = (text: string, inside: number): number => {
  let at = inside
  while (at < text.length && text[at] !== "'") at += text[at] === "\\" ? 2 : 1
  return at + 1
}

/** Returns the index after the comment that contains the index `inside`. Comments nest. */
const commentEnd = (text: string, inside: number): number => {
  const mark = /\/\*|\*\//g
  mark.lastIndex = inside
  let depth = 1
  while (depth > 0) {
    const found = mark.exec(text)
    if (found === null) return text.length
    depth += found[0] === "/*" ? 1 : -1
  }
  return mark.lastIndex
}

/**
 * Returns the index after a token that begins with `piece` and continues at `next`. A doubled quote
 * counts as the end of one string and the beginning of another.
 */
const tokenEnd = (text: string, piece: string, next: number): number => {
  if (piece === "--") return indexAfter(text, next, "\n")
  if (piece === "/*") return commentEnd(text, next)
  if (piece === "e'" || piece === "E'") return escapedEnd(text, next)
  const isQuote = piece === "'" || piece === '"' || (piece.length > 1 && piece.startsWith("$"))
  return isQuote ? indexAfter(text, next, piece) : next
}

/**
 * Returns the beginning of the token at an index, and the index after the token: a whole word, the
 * mark that opens a string, a quoted name or a comment, or another character.
 */
export const pieceAt = (text: string, at: number): readonly [piece: string, end: number] => {
  token.lastIndex = at
  const piece = token.exec(text)?.[0] ?? ""
  return [piece, tokenEnd(text, piece, at + Math.max(1, piece.length))]
}

/** The number of words that identify a command. `ROLLBACK WORK TO SAVEPOINT` needs the most. */
const longestHead = 4

/** The commands that only read, unless the text contains one of the {@link writeWords}. */
const readCommand = /^(SELECT|WITH|VALUES|TABLE|SHOW)\b/
const writeWords = /\b(insert|update|delete|merge|into)\b/i

/**
 * Checks if a text only reads, apart from the effects of the functions that it calls. Returns false
 * if that is uncertain.
 */
export const isReadOnly = (text: string): boolean =>
  !writeWords.test(text) && commandsIn(text).every((command) => readCommand.test(command))

/**
 * Returns the first words of each command in capitals, such as `["COMMIT AND CHAIN", "BEGIN"]`. A
 * semicolon inside of a body without quotes (`BEGIN ATOMIC`) begins a command here, too. So the
 * list may have more commands than the text, but never fewer, up to the limit `most`.
 */
export const commandsIn = (text: string, most = Number.POSITIVE_INFINITY): ReadonlyArray<string> => {
  const commands: Array<string> = []
  let words: Array<string> = []
  let isHead = true
  const end = () => {
    if (words.length > 0) commands.push(words.join(" "))
    words = []
    isHead = true
  }
  for (let at = 0; at < text.length && (isHead || commands.length + 1 < most); ) {
    const [piece, next] = pieceAt(text, at)
    at = next
    if (piece === ";") end()
    else if (piece === "--" || piece === "/*" || piece.trim() === "") continue
    else if (isHead && words.length < longestHead && isWord.test(piece) && !piece.endsWith("'")) {
      words.push(piece.toUpperCase())
    } else isHead = false
  }
  end()
  return commands
}
