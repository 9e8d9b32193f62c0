/**
 * The recording as a value: the statements of a program with their transactions and outcomes.
 */
import type { Outcome, RecordedStatement, RecordedTransaction, Recording } from "../../Recording.js"
import type { Transaction } from "../transaction/transaction.js"
import { repeatedIn } from "./repeatedStatements.js"
import type { StatementCall } from "./statementCall.js"

/** Transactions with their numbers, in the order of their first statements. */
type Numbers = ReadonlyMap<Transaction, number>

/**
 * Returns the outcome of the work in a transaction: that of the innermost level that was not kept,
 * or else that of the outermost one.
 */
const outcomeIn = (transaction: Transaction): Outcome => {
  const { state } = transaction.level
  return state !== "committed" || transaction.outer === undefined ? state : outcomeIn(transaction.outer)
}

/** Numbers the transactions of calls, and those around them, which have the lower numbers. */
const numberAll = (calls: ReadonlyArray<StatementCall>): Numbers => {
  const numbers = new Map<Transaction, number>()
  const add = (transaction: Transaction | undefined): void => {
    if (transaction === undefined || numbers.has(transaction)) return
    add(transaction.outer)
    numbers.set(transaction, numbers.size + 1)
  }
  for (const { transaction } of calls) add(transaction)
  return numbers
}

const outcomeOf = ({ endedAt, error, transaction }: StatementCall): Outcome => {
  if (error !== undefined) return "failed"
  if (endedAt === undefined) return "open"
  return transaction === undefined ? "committed" : outcomeIn(transaction)
}

const numberIn = (numbers: Numbers, transaction: Transaction | undefined): number | undefined =>
  transaction === undefined ? undefined : numbers.get(transaction)

/** Makes the recording of some calls, which have taken a number of exchanges. */
export const recordingOf = (database: string, calls: ReadonlyArray<StatementCall>, roundTrips: number): Recording => {
  const numbers = numberAll(calls)
  const statements = calls.map((call): RecordedStatement => {
    const { attempts, error, location, parameters, role, roundTrips, rows, server, text, transaction } = call
    const number = numberIn(numbers, transaction)
    const outcome = outcomeOf(call)
    return {
      database,
      role,
      server,
      text,
      parameters,
      transaction: number,
      location,
      attempts,
      roundTrips,
      rows,
      outcome,
      error
    }
  })
  const transactions = [...numbers].map(
    ([transaction, number]): RecordedTransaction => ({
      number,
      database,
      role: transaction.kind,
      label: transaction.options.label,
      around: numberIn(numbers, transaction.outer),
      statements: statements.filter((statement) => statement.transaction === number).length,
      outcome: outcomeIn(transaction)
    })
  )
  return { database, statements, transactions, roundTrips, repeated: repeatedIn(calls) }
}
