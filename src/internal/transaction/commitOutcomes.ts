/**
 * The outcomes of COMMITs whose answers were lost: the queries of the server until the outcome is
 * proved.
 */
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import {
  decodeId,
  idRequest,
  queryStatus,
  type TransactionId,
  type TransactionStatus
} from "../consistency/transactionStatus.js"
import type { ConnectionSource } from "../topology/connectionSource.js"

/** Outcome of a COMMIT, if it can be proved. */
export type ProvedOutcome = "committed" | "undone"

type OnOutcome = (outcome: ProvedOutcome | undefined) => void

/** The first pause between two queries, in ms. It doubles up to {@link maxPause}. */
const minPause = 2
const maxPause = 250
/** The timeout of one query, in ms: a connection may lead to a server that does not answer. */
const queryTimeout = 1000
/**
 * The time in which a server cannot have crashed twice and assigned the id of a transaction again in
 * between, in ms.
 */
const recentTime = 60_000

const none: ReadonlyArray<never> = []
const nothing = () => {}

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
    private readonly source: () => ConnectionSource
  ) {}

  /**
   * Queries an id on an idle connection, to find out if the server supports that. At the deadline
   * the connection is closed.
   */
  probe(connection: Connection, deadline: number, done: () => void): void {
    const stop = clock.later(deadline - clock.now(), () => connection.destroy("invalid"))
    connection.run(none, idRequest, none, (failure, exchange) => {
      if (failure === undefined) this.onAnswer(connection, exchange.result.rows[0])
      else if (failure._tag === "refused") this.isSupported = false
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
   * Queries the status of a transaction until it is decided, or until the timeout. `lostAt` is the
   * time of the loss. The returned function gives up, and calls back without an outcome.
   */
  resolve(id: TransactionId, lostAt: number, callback: OnOutcome): () => void {
    const resolution = new Resolution(this.source(), id, lostAt, clock.now() + this.timeout, callback)
    resolution.begin()
    return () => resolution.finish(undefined)
  }
}

/** The queries for the outcome of one COMMIT. */
class Resolution {
  private isOver = false
  private pause = minPause
  private cancel = nothing
  private stopTimer = nothing

  constructor(
    private readonly source: ConnectionSource,
    private readonly id: TransactionId,
    private readonly lostAt: number,
    private readonly deadline: number,
    private readonly callback: OnOutcome
  ) {}

  /** Begins to query. */
  begin(): void {
    this.stopTimer = clock.later(this.deadline - clock.now(), () => this.finish(undefined))
    this.tryOnce()
  }

  /** Ends the queries, and reports the outcome. */
  finish(outcome: ProvedOutcome | undefined): void {
    if (this.isOver) return
    this.isOver = true
    this.stopTimer()
    this.cancel()
    this.callback(outcome)
  }

  /** Queries the status once on a connection of the writer. */
  private tryOnce(): void {
    let isAnswered = false
    const cancel = this.source.checkout(this.deadline, [], (failure, connection) => {
      isAnswered = true
      this.cancel = nothing
      if (connection !== undefined) return this.query(connection)
      const isFinal = failure?._tag === "DatabaseClosed" || (failure?._tag === "ConnectFailed" && failure.permanent)
      if (isFinal) this.finish(undefined)
      else this.waitForNext()
    })
    if (!isAnswered) this.cancel = cancel
  }

  private query(connection: Connection): void {
    const stop = clock.later(queryTimeout, () => connection.abort("cancelled"))
    this.cancel = () => connection.abort("cancelled")
    const isRecent = clock.now() - this.lostAt < recentTime
    queryStatus(connection, this.id, isRecent, (status) => {
      stop()
      this.cancel = nothing
      this.source.checkin(connection)
      this.judge(status)
    })
  }

  private judge(status: TransactionStatus): void {
    if (status === "open") this.waitForNext()
    else this.finish(status === "unproved" ? undefined : status)
  }

  private waitForNext(): void {
    if (this.isOver) return
    const timer = clock.timer(this.pause, () => this.tryOnce())
    this.cancel = () => clock.clear(timer)
    this.pause = Math.min(2 * this.pause, maxPause)
  }
}
