/**
 * A statement of the program as a test observes it, from its call to its end, over all attempts.
 */
import type { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import { fromSqlError } from "../../DatabaseError.js"
import type { Role } from "../../Topology.js"
import type { Connection, Exchange, Failure, Request } from "../connection/connection.js"
import { statementFailure } from "../connection/statementFailure.js"
import type { RequestedStatement } from "../protocol/exchange.js"
import type { Transaction } from "../transaction/transaction.js"

/**
 * The moment of the last event. Moments are counted and not measured, because the order of two
 * events must be known if the clock does not distinguish them.
 */
let moment = 0

/** Observed statement of the program. */
export class StatementCall {
  readonly begunAt = ++moment
  /** The moment of its end, or `undefined` while it runs. */
  endedAt: number | undefined = undefined
  server: string | undefined = undefined
  attempts = 0
  roundTrips = 0
  rows = 0
  error: string | undefined = undefined
  /** The transaction that it runs in, or `undefined` if it runs in none. */
  transaction: Transaction | undefined = undefined
  /** True if the transaction is known, or known to be none. */
  isPlaced = false
  private last: Exchange | undefined = undefined
  private isInterrupted = false

  constructor(
    readonly role: Role,
    readonly text: string,
    readonly parameters: number,
    readonly location: string | undefined
  ) {}

  /** Sets the transaction, or `undefined` if the statement runs in none. */
  place(transaction: Transaction | undefined): void {
    this.isPlaced = true
    this.transaction = transaction
  }

  /**
   * Records that an exchange of the statement has ended. Several observers report the same exchange.
   */
  answered({ server }: Connection, exchange: Exchange, failure: Failure | undefined, database: string): void {
    if (this.last === exchange) return
    this.last = exchange
    this.roundTrips++
    this.endedAt = ++moment
    this.server = server.name
    const { result, results } = exchange
    for (const { rows } of results.length === 0 ? [result] : results) this.rows += rows.length
    if (this.isInterrupted) return
    const location = { database, server: server.name }
    this.error = failure === undefined ? undefined : statementFailure(location, failure, "inDoubt")._tag
  }

  /** Records the end of the statement. */
  end(exit: Exit.Exit<unknown, SqlError>): void {
    this.endedAt = ++moment
    if (Exit.isSuccess(exit)) return
    const failure = Option.getOrUndefined(Cause.failureOption(exit.cause))
    this.isInterrupted = Cause.isInterrupted(exit.cause)
    if (failure !== undefined) this.error = fromSqlError(failure)._tag
    else if (this.isInterrupted) this.error = "Interrupted"
  }
}

/** Request of an observed statement. */
export class ObservedRequest implements Request {
  readonly text: string
  readonly values: ReadonlyArray<unknown>
  readonly rows: Request["rows"]
  readonly prepare: boolean
  readonly simple: boolean
  readonly kind: Request["kind"]
  readonly site: Request["site"]
  readonly served: NonNullable<Request["served"]>

  constructor(
    plain: Request,
    readonly call: StatementCall
  ) {
    this.text = plain.text
    this.values = plain.values
    this.rows = plain.rows
    this.prepare = plain.prepare
    this.simple = plain.simple
    this.kind = plain.kind
    this.site = plain.site
    // called for each attempt, when it is sent
    this.served = (server) => {
      call.attempts++
      call.server = server.name
      plain.served?.(server)
    }
  }
}

/** Returns the call that a sent statement belongs to, if it was observed from its beginning. */
export const callOf = (statement: RequestedStatement): StatementCall | undefined => {
  const call: unknown = "call" in statement ? statement.call : undefined
  return call instanceof StatementCall ? call : undefined
}
