/**
 * The messages of expectations about a recording.
 */

/** The fields of a recorded statement that a list of statements shows. */
interface Listed {
  readonly text: string
  readonly role: string
  readonly parameters: number
  readonly transaction: number | undefined
  readonly location: string | undefined
  readonly attempts: number
  readonly outcome: string
  readonly error: string | undefined
}

/** The longest text of a statement in a message, in characters. */
const maxTextLength = 200

const shorten = (text: string): string => {
  const line = text.replace(/\s+/g, " ").trim()
  return line.length <= maxTextLength ? line : `${line.slice(0, maxTextLength)}...`
}

const count = (number: number, noun: string): string => `${number} ${noun}${number === 1 ? "" : "s"}`

const at = (location: string | undefined): string => (location === undefined ? "" : `, at ${location}`)

/** Returns a statement as one line. */
export const listOf = (statement: Listed): string => {
  const { attempts, error, location, outcome, parameters, role, text, transaction } = statement
  const facts = [
    role,
    ...(parameters === 0 ? [] : [count(parameters, "parameter")]),
    ...(transaction === undefined ? [] : [`transaction ${transaction}`]),
    ...(attempts === 1 ? [] : [attempts === 0 ? "not sent" : count(attempts, "attempt")]),
    error === undefined ? outcome : `failed with ${error}`
  ]
  return `${shorten(text)} (${facts.join(", ")})${at(location)}`
}

const nouns = { statements: "statement", transactions: "transaction", roundTrips: "round trip" } as const

/** Returns the message of a figure above its limit. */
export const tooManyMessage = (self: {
  readonly database: string
  readonly what: keyof typeof nouns
  readonly most: number
  readonly count: number
  readonly ran: ReadonlyArray<string>
}): string => {
  const lines = self.ran.map((line, i) => `\n  ${i + 1}. ${line}`).join("")
  const found = count(self.count, nouns[self.what])
  return `database "${self.database}": ${found} where the test expects at most ${self.most}${lines === "" ? "" : `:${lines}`}`
}

/** Returns the message of repeated statements. */
export const nPlusOneMessage = (self: {
  readonly database: string
  readonly repeated: ReadonlyArray<{
    readonly text: string
    readonly location: string | undefined
    readonly times: number
  }>
}): string => {
  const lines = self.repeated.map(({ location, text, times }) => `\n  ${times} times: ${shorten(text)}${at(location)}`)
  return `database "${self.database}": N+1 queries: ask for all rows at once, by IN, a join or a batched SqlResolver:${lines.join("")}`
}
