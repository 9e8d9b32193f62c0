/**
 * The outcomes of COMMITs whose answers were lost, by the status that the server has for the id of
 * the transaction.
 */
import * as clock from "../concurrency/clock.js"
import type { Connection, Failure } from "../connection/connection.js"
import { decodeId, idRequest, queryStatus, type TransactionId } from "../outcome/transactionStatus.js"
import type { Proof } from "../topology/outcomeConnections.js"
import { type OnOutcome, proveOutcome } from "./resolution.js"

const none: ReadonlyArray<never> = []

/** Checks if a server has refused the query of an id for good: it lacks a function, or forbids it. */
export const isUnsupported = (failure: Failure): boolean =>
  failure._tag === "refused" && /^(?:42|0A)/.test(failure.error.code ?? "")

/** The COMMITs of one database without an answer. */
export class CommitOutcomes {
  /**
   * True if the server answers the query of an id; `undefined` before the first query. A service
   * that is only similar to PostgreSQL may refuse it, which would abort a transaction.
   */
  isSupported: boolean | undefined = undefined

  constructor(
    /** The longest time to prove an outcome, in ms. */
    readonly timeout: number,
    private readonly beginProof: () => Proof
  ) {}

  /**
   * Queries an id on an idle connection, to find out if the server supports that. At the deadline
   * the connection is closed.
   */
  probe(connection: Connection, deadline: number, done: () => void): void {
    const stop = clock.later(deadline - clock.now(), () => connection.destroy("invalid"))
    connection.run(none, idRequest, none, (failure, exchange) => {
      if (failure === undefined) this.onAnswer(connection, exchange.result.rows[0])
      else if (isUnsupported(failure)) this.isSupported = false
      stop()
      done()
    })
  }

  /** Records that a server has answered the query of an id, and returns the id. */
  onAnswer(connection: Connection, row: unknown): TransactionId | undefined {
    this.isSupported = true
    return Array.isArray(row) ? decodeId(connection, row) : undefined
  }

  /**
   * Queries the status of a transaction until it is decided, or until the timeout. The returned
   * function gives up, and calls back without an outcome.
   */
  resolve(id: TransactionId, callback: OnOutcome): () => void {
    return proveOutcome(
      this.beginProof(),
      this.timeout,
      (connection, done) => queryStatus(connection, id, done),
      callback
    )
  }
}
