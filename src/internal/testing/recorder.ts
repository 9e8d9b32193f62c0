/**
 * The recorder of a database: the statements, transactions and exchanges of a program.
 */
import type { Recording } from "../../Recording.js"
import type { Connection, Exchange, Failure } from "../connection/connection.js"
import type { Level } from "../transaction/level.js"
import type { Transaction } from "../transaction/transaction.js"
import type { Instrument } from "./instrumentedExecutor.js"
import { recordingOf } from "./recordingOf.js"
import { callOf, StatementCall } from "./statementCall.js"

/** Position in a recording. */
export interface Mark {
  readonly calls: number
  readonly exchanges: number
}

const start: Mark = { calls: 0, exchanges: 0 }

/** Recorder of the work on one database. */
export class Recorder implements Instrument {
  private readonly calls: Array<StatementCall> = []
  private exchanges = 0
  private readonly transactions = new WeakMap<Level, Transaction>()
  /** The calls of the statements that are observed by their exchanges only. */
  private readonly answered = new WeakMap<object, StatementCall>()

  constructor(readonly database: string) {}

  readonly onCall = (call: StatementCall): void => {
    this.calls.push(call)
  }

  readonly onTransaction = (transaction: Transaction): void => {
    this.transactions.set(transaction.level, transaction)
  }

  readonly onExchange = (connection: Connection, exchange: Exchange, failure: Failure | undefined): void => {
    this.exchanges++
    const { statement } = exchange.request
    if (statement === undefined) return
    let call = callOf(statement) ?? this.answered.get(statement)
    if (call === undefined) {
      const parameters = "values" in statement && Array.isArray(statement.values) ? statement.values.length : 0
      const { kind = "writer", shown, site, text } = statement
      call = new StatementCall(kind, shown?.shown ?? text, parameters, site?.location)
      this.answered.set(statement, call)
      this.calls.push(call)
    }
    if (callOf(statement) === undefined) call.attempts++
    if (!call.isPlaced) call.place(this.transactionAt(connection))
    call.answered(connection, exchange, failure, this.database)
  }

  /** Returns the position that has been reached. */
  mark(): Mark {
    return { calls: this.calls.length, exchanges: this.exchanges }
  }

  /** Returns the recording from a position on. */
  since({ calls, exchanges }: Mark = start): Recording {
    return recordingOf(this.database, this.calls.slice(calls), this.exchanges - exchanges)
  }

  /** Returns the innermost recorded transaction in which a connection has executed its statement. */
  private transactionAt(connection: Connection): Transaction | undefined {
    // the cast: the transaction of a connection is a level, of which the connection knows the limit
    let level = connection.transaction as Level | undefined
    while (level !== undefined && !this.transactions.has(level)) level = level.parent
    return level === undefined ? undefined : this.transactions.get(level)
  }
}
