/**
 * The exchanges of a physical connection, one at a time: their begin, end, loss and cancellation.
 * This code uses callbacks, not fibers, because it runs for every statement.
 */

import type { CloseReason } from "../../Observation.js"
import * as clock from "../concurrency/clock.js"
import { Exchange, ExchangeRequest, type Failure, type OnExchange } from "../protocol/exchange.js"
import * as messages from "../protocol/frontendMessages.js"
import { isByName, type TypeNames, typeNamesOf } from "../protocol/parsersByName.js"
import { ProtocolViolation } from "../protocol/protocolViolation.js"
import { queryActivity } from "./backendActivity.js"
import { BaseConnection, type OpenedSession } from "./baseConnection.js"
import { type CancellableConnection, Cancellation } from "./cancellation.js"
import { errorType, failureOnClosing, isWriteRefused, lostError } from "./exchangeFailure.js"
import { checkAlive } from "./secondSocket.js"
import { typeLookupRequest } from "./typeLookup.js"
import { Watchdog } from "./watchdog.js"
import { type CheckedConnection, RoleCheck } from "./writerRoleCheck.js"

/** Physical connection that runs exchanges; `Connection` adds the statements. */
export abstract class ExchangeConnection extends BaseConnection implements CancellableConnection, CheckedConnection {
  /** Called with the error if the connection is lost while no exchange is in progress. */
  onLost: ((error: Error) => void) | undefined = undefined
  /**
   * Called when the connection is idle again after an interruption. It is set only while {@link
   * isStopping} is true.
   */
  onStopped: (() => void) | undefined = undefined
  /** @internal The exchange in progress. */
  exchange: Exchange | undefined = undefined
  /** The time of the last answer. */
  lastAnswer = this.createdAt
  /**
   * The open transaction, with the limit of its statements in ms: 0 for no limit, `undefined` for
   * the limit of the session.
   */
  transaction: { readonly limit: number | undefined } | undefined = undefined
  protected readonly role: RoleCheck
  protected readonly watchdog: Watchdog
  /** The types of the server, if the program has set parsers by the names of types. */
  protected readonly types: TypeNames | undefined
  private readonly cancellation = new Cancellation(this)
  private readonly refusesWrites: boolean
  /** The server's limit for a statement, in ms. */
  private readonly statementTimeout: number | undefined

  constructor(opened: OpenedSession) {
    super(opened)
    const { client, login, refusesWrites, role, server, session } = opened
    this.refusesWrites = refusesWrites
    this.role = new RoleCheck(this, role)
    this.statementTimeout = session.statementTimeout
    this.types = isByName(session.types) ? typeNamesOf(session.types, `${server.name}/${server.database}`) : undefined
    this.watchdog = new Watchdog({
      progress: () => this.progress,
      checkAlive: (timeout, callback) => checkAlive(server, this.secondSocket, timeout, callback),
      queryActivity: (callback) => queryActivity(server, session, login, this.processId, callback),
      onDead: (error) => this.lose(error)
    })
    client.connection.on("parseComplete", () => {
      if (this.exchange !== undefined) this.exchange.parsed++
    })
    client.connection.on("bindComplete", () => {
      if (this.exchange !== undefined) this.exchange.bound++
    })
    client.connection.on("copyOutResponse", () => this.exchange?.handleCopyOutResponse())
    client.connection.on("readyForQuery", () => this.onReady())
  }

  /** Reports the loss of a connection that was not marked as broken before. */
  protected abstract reportLoss(error: Error): void

  /** Reports the duration of an exchange of the program, in ms, and the name of its error. */
  protected abstract reportOperation(
    millis: number,
    error: string | undefined,
    exchange: Exchange,
    failure: Failure | undefined
  ): void

  override get busy(): boolean {
    return this.exchange !== undefined
  }

  /**
   * Checks if the statement was interrupted or is being undone, so that the connection may be
   * usable again later.
   */
  get isStopping(): boolean {
    return this.broken === undefined && (this.cancellation.isActive || this.exchange?.request.isUndo === true)
  }

  /**
   * Checks if the connection can be used, now or after its statement. The result is false if the
   * connection is closing or its statement was interrupted.
   */
  get isUsable(): boolean {
    return this.broken === undefined && !this.cancellation.isActive
  }

  /** Returns the time at which the exchange in progress was sent, if there is one. */
  get waitsSince(): number | undefined {
    return this.exchange?.startedAt
  }

  /** Returns a number that grows when bytes arrive, or leave the process. */
  get progress(): number {
    const { stream } = this.client.connection
    return stream.bytesRead - stream.writableLength
  }

  /** Sends a Sync alone. The answer proves that the server is alive. */
  ping(callback: OnExchange): void {
    const request = new ExchangeRequest(() => messages.syncOnly, callback)
    request.main = 0
    request.isMaintenance = true
    this.send(request)
  }

  /**
   * Cancels the statement in progress, for a caller that was interrupted. The exchange ends when
   * the server has answered and no cancel request can hit a later statement. Then the connection
   * can be used again. If that takes longer than a second, the connection is closed. Behind a
   * pooler it is always closed, because the pooler may pass the request on to the statement of
   * another client.
   */
  cancel(): void {
    // an undo is not cancelled: the connection needs it, and it has a timeout of its own
    if (this.exchange === undefined || this.exchange.request.isUndo || this.cancellation.isHeldBack) return
    if (this.isPooled) this.abort("cancelled")
    else this.cancellation.start("cancelled")
  }

  /**
   * Cancels the statement in progress, and closes the connection when the server has answered, or
   * after a second. Without a statement in progress the connection is closed at once.
   */
  abort(reason: CloseReason): void {
    if (this.isClosed) return
    this.markBroken(reason)
    if (this.exchange === undefined) return this.destroy(reason)
    if (this.cancellation.isHeldBack) return this.finish(this.exchange, this.exchange.failure())
    this.cancellation.start(reason)
  }

  /**
   * @internal Ends an exchange that was answered. If types of its columns are unknown, they are
   * looked up first.
   */
  finish(exchange: Exchange, failed: Failure | undefined): void {
    this.exchange = undefined
    this.cancellation.isHeldBack = false
    const failure = this.role.record(exchange, this.failureOf(failed))
    if (this.refusesWrites && this.parameters.get("default_transaction_read_only") === "off") {
      this.markBroken("writable")
    }
    if (failure === undefined && this.broken === undefined && this.types !== undefined) {
      const unknown = exchange.unknownTypes
      if (unknown.length > 0) return this.lookUpTypes(unknown, this.types, exchange)
    }
    if (this.broken !== undefined) this.end(this.broken)
    this.settle(exchange, failure)
  }

  /** Begins an exchange, or fails it if it cannot begin. */
  protected send(request: ExchangeRequest): void {
    const exchange = new Exchange(this.client, request, this.onExchangeLost, this.types)
    const failure = this.refusalOf(exchange)
    // in a microtask, to avoid recursion: the callback may assign the connection to the next
    // waiter, whose exchange may fail in the same way
    if (failure !== undefined) return queueMicrotask(() => request.onDone(failure, exchange))
    this.exchange = exchange
    this.awaitServer()
    this.client.query(exchange)
  }

  /** Starts the watchdog if the server has a limit for the statement. */
  protected awaitServer(): void {
    const limit = this.transaction?.limit ?? this.statementTimeout
    // in the queue of a pooler a statement may wait for longer than its limit
    if (!this.isPooled && limit !== undefined && limit > 0) this.watchdog.onSent(limit)
  }

  protected override get isPassingPooler(): boolean {
    return this.cancellation.isPassingPooler
  }

  protected override onLoss(error: Error, isFirst: boolean): void {
    const { exchange } = this
    this.exchange = undefined
    this.watchdog.onAnswered()
    if (isFirst) {
      // the next connection may lead to another server
      this.types?.clear()
      this.reportLoss(error)
    }
    this.client.connection.stream.destroy()
    if (exchange === undefined) return this.onLost?.(error)
    const { acknowledged, statement } = exchange
    const failure: Failure = { _tag: "lost", error, sent: true, acknowledged, statement }
    this.report(exchange, clock.now(), failure)
    exchange.request.onDone(failure, exchange)
  }

  /** Returns the failure of an exchange that cannot begin. */
  private refusalOf(exchange: Exchange): Failure | undefined {
    if (this.broken !== undefined || this.isClosed) {
      const error = this.lossError ?? lostError()
      return { _tag: "lost", error, sent: false, acknowledged: 0, statement: exchange.statement }
    }
    const error =
      this.exchange === undefined ? exchange.prepare() : new Error("the connection is in use by another caller")
    return error === undefined
      ? undefined
      : { _tag: "unsendable", error, acknowledged: 0, statement: exchange.request.statement }
  }

  private readonly onExchangeLost = (exchange: Exchange, error: Error): void => {
    if (this.exchange === exchange) this.lose(error)
  }

  private onReady(): void {
    const { exchange } = this
    const failure = exchange?.failure()
    if (exchange === undefined || (failure === undefined && !exchange.isAnswered)) {
      return this.lose(new ProtocolViolation("was ready before it had answered"))
    }
    this.watchdog.onAnswered()
    this.lastAnswer = clock.now()
    if (this.cancellation.isActive && this.broken === undefined) this.cancellation.holdBack()
    else this.finish(exchange, failure)
  }

  private failureOf(failure: Failure | undefined): Failure | undefined {
    if (failure === undefined) return undefined
    if (this.broken !== undefined) return failureOnClosing(failure, this.broken)
    return isWriteRefused(failure) ? { ...failure, takesNoWrites: this.takesNoWrites } : failure
  }

  private settle(exchange: Exchange, failure: Failure | undefined): void {
    this.report(exchange, this.lastAnswer, failure)
    exchange.request.onDone(failure, exchange)
    const { onStopped } = this
    // if the callback has begun an exchange that undoes the statement, the end of that exchange
    // calls `onStopped`; a lost connection is checked in by its owner
    if (onStopped === undefined || this.exchange !== undefined) return
    this.onStopped = undefined
    onStopped()
  }

  /**
   * Looks up the names of types before the rows of an exchange are decoded. The caller of the
   * exchange waits for the lookup, too.
   */
  private lookUpTypes(oids: ReadonlyArray<number>, types: TypeNames, exchange: Exchange): void {
    // the effects of an autocommit statement remain stored even if the lookup fails
    const isStored = this.status === "I" && exchange.request.statement?.kind !== "reader"
    this.send(typeLookupRequest(oids, types, exchange, isStored, (failure) => this.settle(exchange, failure)))
  }

  private report(exchange: Exchange, now: number, failure: Failure | undefined): void {
    if (exchange.request.isMaintenance) return
    const error = failure === undefined ? undefined : errorType(failure)
    this.reportOperation(now - exchange.startedAt, error, exchange, failure)
  }
}
