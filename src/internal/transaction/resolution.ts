/**
 * The queries for the outcome of one COMMIT whose answer was lost, until the outcome is proved.
 */
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import type { TransactionStatus } from "../outcome/transactionStatus.js"
import type { ConnectionSource } from "../topology/connectionSource.js"
import type { Proof } from "../topology/outcomeConnections.js"

/** Outcome of a COMMIT, if it can be proved. */
export type ProvedOutcome = "committed" | "undone"

/** Callback for the outcome, or for `undefined` if it cannot be proved in time. */
export type OnOutcome = (outcome: ProvedOutcome | undefined) => void

/** Function that proves an outcome. It returns a function that gives up. */
export type Prove = (callback: OnOutcome) => () => void

/** Function that queries the status of the transaction once. */
export type Query = (connection: Connection, callback: (status: TransactionStatus) => void) => void

/** The first pause between two queries, in ms. It doubles up to {@link maxPause}. */
const minPause = 2
const maxPause = 250
/** The timeout of one query, in ms: a connection may lead to a server that does not answer. */
const queryTimeout = 1000

const nothing = () => {}

/**
 * Queries the status of a transaction until it is decided, or for `timeout` ms. The returned
 * function gives up, and calls back without an outcome.
 */
export const resolveOutcome = (
  source: ConnectionSource,
  timeout: number,
  query: Query,
  callback: OnOutcome
): (() => void) => {
  const resolution = new Resolution(source, query, clock.now() + timeout, callback)
  resolution.begin()
  return () => resolution.finish(undefined)
}

/**
 * Proves the outcome of a transaction that a caller waits for, for `timeout` ms. A pause of the database
 * does not hold the proof back. The returned function gives up, and calls back without an outcome.
 */
export const proveOutcome = (proof: Proof, timeout: number, query: Query, callback: OnOutcome): (() => void) =>
  resolveOutcome(proof, timeout, query, (outcome) => {
    proof.end()
    callback(outcome)
  })

/** The queries for the outcome of one COMMIT. */
class Resolution {
  private isOver = false
  private pause = minPause
  private cancel = nothing
  private stopTimer = nothing

  constructor(
    private readonly source: ConnectionSource,
    private readonly ask: Query,
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
    let isTimedOut = false
    const stop = clock.later(queryTimeout, () => {
      isTimedOut = true
      connection.abort("cancelled")
    })
    this.cancel = () => connection.abort("cancelled")
    this.ask(connection, (status) => {
      stop()
      this.cancel = nothing
      this.source.checkin(connection)
      // a server that waits for its standbys ends a cancelled COMMIT without them
      this.judge(isTimedOut && status === "undone" ? "open" : status)
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
