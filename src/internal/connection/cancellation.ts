/**
 * The cancellation of the exchange in progress. The connection is kept if no cancel request can hit
 * a later statement. Otherwise it is closed.
 */
import type { CloseReason } from "../../Observation.js"
import { isCancelled } from "../../SqlState.js"
import * as clock from "../concurrency/clock.js"
import type { Exchange, Failure, OnExchange } from "../protocol/exchange.js"
import { CancelRequests } from "./cancelRequests.js"

/** The time that a pooler has to pass on a cancel request, in ms: PgBouncer gives up after 10 s. */
const pooledCancelTimeout = 15_000

/** The time that a server has to answer a statement after a cancel request, in ms. */
const cancelTimeout = 1000

/**
 * The pause before the second cancel request, in ms. If the socket of the first request is still
 * open after the pause, the second request waits for another pause.
 */
const repeatDelay = 250

/** The largest process number on Linux; those of macOS and Windows are smaller. */
const maxProcessId = 4_194_304

/** Members of a connection that a cancellation uses. */
export interface CancellableConnection {
  readonly broken: CloseReason | undefined
  /** The exchange in progress. */
  exchange: Exchange | undefined
  readonly processId: number
  readonly isPooled: boolean
  readonly isClosing: boolean
  /**
   * Sends a cancel request; calls back when its socket is closed, with true if the server has
   * closed it.
   */
  readonly sendCancelRequest: (timeout: number, callback: (isReceived: boolean) => void) => void
  /** Resumes reading from the socket, which a COPY may have paused. */
  readonly resume: () => void
  readonly ping: (callback: OnExchange) => void
  readonly finish: (exchange: Exchange, failure: Failure | undefined) => void
  readonly destroy: (reason: CloseReason) => void
  readonly markBroken: (reason: CloseReason) => void
  /** Reports that the connection cannot be used, or can be used again. */
  readonly reportUsability: () => void
}

/** Cancellation of the exchanges of one connection, one at a time. */
export class Cancellation {
  /**
   * The cancel requests of the exchange in progress. They remain set after the exchange if the
   * connection is to be closed.
   */
  private attempts: CancelRequests | undefined = undefined
  /**
   * True if the exchange in progress is answered, but its end is held back until no cancel request
   * is pending.
   */
  isHeldBack = false
  /**
   * True while a cancel request is on its way through a pooler. The connection must stay open
   * meanwhile, because PgBouncer 1.18 exits if the socket of a cancel request or the cancelled
   * session is closed too early.
   */
  isPassingPooler = false

  constructor(private readonly connection: CancellableConnection) {}

  /** Checks if an exchange was cancelled, and the connection is not usable again yet. */
  get isActive(): boolean {
    return this.attempts !== undefined
  }

  /**
   * Sends a cancel request, and a second one if the first has no effect. Does nothing if the
   * exchange was cancelled before. The connection is closed if it is not usable again within a
   * second.
   */
  start(reason: CloseReason): void {
    if (this.attempts !== undefined) return
    const { connection } = this
    connection.resume()
    const attempts = new CancelRequests(
      (timeout, callback) => connection.sendCancelRequest(timeout, callback),
      () => this.settle()
    )
    this.attempts = attempts
    connection.reportUsability()
    if (connection.isPooled) this.sendThroughPooler(reason, false)
    else {
      attempts.request(cancelTimeout)
      // on a busy server a request can overtake its statement and cancel nothing, or it may be lost
      const repeat = (isLast: boolean) =>
        clock.later(repeatDelay, () => {
          if (this.attempts !== attempts || connection.exchange === undefined || this.isHeldBack) return
          if (attempts.isProbing) return
          if (attempts.isPending && !isLast) repeat(true)
          else attempts.request(cancelTimeout - repeatDelay)
        })
      repeat(false)
    }
    clock.later(cancelTimeout, () => {
      if (this.attempts !== attempts) return
      this.isPassingPooler = false
      connection.destroy(reason)
    })
  }

  /**
   * Holds back the end of a cancelled exchange, because a pending request could hit the next
   * exchange.
   */
  holdBack(): void {
    this.isHeldBack = true
    this.settle()
  }

  /**
   * Ends the cancelled exchange, or first probes the session, if the exchange is answered and no
   * request is pending.
   */
  private settle(): void {
    const { attempts, connection } = this
    const { exchange } = connection
    if (attempts === undefined || exchange === undefined || !this.isHeldBack || attempts.isPending) return
    const failure = exchange.failure()
    const isConfirmed =
      attempts.isProbing ||
      (failure?._tag === "refused" && isCancelled(failure.error.code ?? "", failure.error.message))
    if (!attempts.isOver) connection.markBroken("cancelled")
    else if (isConfirmed) {
      this.attempts = undefined
      connection.reportUsability()
    } else if (this.isOnServer) return this.probe(attempts, exchange, failure)
    else connection.markBroken("cancelled")
    connection.finish(exchange, failure)
  }

  /**
   * Checks if the process number of the session can be that of a server process. A pooler, even in
   * session mode, reports a random number instead. The pooler may pass a cancel request on after it
   * has closed the socket of the request, and the request would then hit the next statement.
   */
  private get isOnServer(): boolean {
    const { processId } = this.connection
    return processId > 0 && processId <= maxProcessId
  }

  /**
   * Sends a Sync after a request that may have cancelled nothing: the statement had ended before,
   * or the server reports the reason in another language. Before the session answers the Sync, it
   * receives the signal of the request and ignores the signal, because no command is running. So
   * the signal cannot hit a statement after the Sync.
   */
  private probe(attempts: CancelRequests, exchange: Exchange, failure: Failure | undefined): void {
    const { connection } = this
    attempts.isProbing = true
    exchange.isStopped = true
    connection.exchange = undefined
    this.isHeldBack = false
    connection.ping((pingFailure) => {
      if (pingFailure !== undefined) connection.markBroken("cancelled")
      connection.finish(exchange, failure)
    })
  }

  /**
   * Sends up to two cancel requests through a pooler, then closes the connection. If the connection
   * stayed open, a statement that the pooler has not passed to a server yet would run later.
   */
  private sendThroughPooler(reason: CloseReason, isLast: boolean): void {
    const { connection } = this
    this.isPassingPooler = true
    connection.sendCancelRequest(pooledCancelTimeout, () => {
      this.isPassingPooler = false
      if (connection.exchange === undefined) return connection.destroy(reason)
      // the answer may be on its way, or the request has overtaken its statement
      clock.later(repeatDelay, () => {
        if (connection.isClosing) return
        if (isLast || connection.exchange === undefined) connection.destroy(reason)
        else this.sendThroughPooler(reason, true)
      })
    })
  }
}
