/**
 * One physical connection: the statements, portals and notifications of its session.
 */

import type { CloseReason } from "../../Observation.js"
import { isStalePlan } from "../../SqlState.js"
import * as clock from "../concurrency/clock.js"
import type { Copy } from "../protocol/copyData.js"
import { type Exchange, ExchangeRequest, type Failure, type OnExchange } from "../protocol/exchange.js"
import * as messages from "../protocol/frontendMessages.js"
import type { Notice } from "../protocol/pgDriver.js"
import { noColumns } from "../protocol/rowDecoder.js"
import { StatementCache } from "../protocol/statementCache.js"
import type { Position, ServerRun } from "../sql/lsn.js"
import { rollbackTimeout } from "../sql/timeouts.js"
import type { OpenedSession } from "./baseConnection.js"
import type { ConnectFailure } from "./connectFailure.js"
import { ExchangeConnection } from "./exchangeConnection.js"
import { type Request, sendableText } from "./statementRequest.js"
import type { RefusedWrites } from "./writerRoleCheck.js"

export type { ConnectFailure, Exchange, Failure, OnExchange, Request }

/** The commands after which prepared statements and types may have changed. */
const schemaCommands = new Set(["ALTER", "CREATE", "DROP", "DISCARD", "DEALLOCATE"])

const none: ReadonlyArray<never> = []

/** The callbacks of a connection for its pool. */
export interface Owner {
  /**
   * The connection is lost, in use or idle. Not called if the connection was already marked as
   * broken.
   */
  readonly lost: (connection: Connection, error: Error) => void
  /** The socket is closed. Called once, for any reason. */
  readonly closed: (connection: Connection, reason: CloseReason) => void
  /**
   * An exchange of the program has ended, after `millis` ms. Each exchange counts as one operation:
   * a statement with the BEGIN before it, a COMMIT, a batch of a stream. `error` is the SQLSTATE,
   * or the tag of the error if there is none.
   */
  readonly operated?:
    | ((millis: number, error: string | undefined, exchange: Exchange, failure: Failure | undefined) => void)
    | undefined
  /** The count of refused writes on the connections of the owner. */
  readonly refusedWrites?: RefusedWrites | undefined
  /** A connection cannot be used any more, or can be used again after an interruption. */
  readonly usabilityChanged?: (() => void) | undefined
  /** The server has sent a notice. */
  readonly noticed?: ((connection: Connection, notice: Notice) => void) | undefined
}

/**
 * Function that receives the exchanges of the program on a connection, each at its end and before
 * its caller.
 */
export type ExchangeObserver = (connection: Connection, exchange: Exchange, failure: Failure | undefined) => void

/** One physical connection. It has one caller at a time, which starts one exchange at a time. */
export class Connection extends ExchangeConnection {
  /** The time of the last checkout; 0 before the first. */
  checkedOutAt = 0
  /** The time after which the connection is not checked out any more. */
  retireAt = Number.POSITIVE_INFINITY
  /** The reason for the retirement at that time. */
  retireAs: CloseReason = "aged"
  /**
   * The position of the server at the last position query. While the connection is open, it is a
   * lower bound: the position of a server goes back only if its connections are lost.
   */
  position: Position | undefined = undefined
  /** The run of the server, which ends all its sessions, after the first query of it. */
  serverRun: ServerRun | undefined = undefined
  /** True if the session has the prepared statement by which the outcome of a COMMIT is proved. */
  hasProofStatement = false
  private readonly statements: StatementCache
  /** The number of portals so far. */
  private portalCount = 0

  /** @internal */
  constructor(
    opened: OpenedSession,
    private owner: Owner
  ) {
    super(opened)
    this.statements = new StatementCache(opened.session.preparedStatements)
    this.client.on("notice", (notice: Notice) => this.owner.noticed?.(this, notice))
    this.client.connection.on("parameterStatus", () => this.onParameter())
  }

  /** Checks if the session may keep statements prepared. */
  get preparesStatements(): boolean {
    return this.statements.isEnabled
  }

  /** Checks if the server must still prove that it takes writes. */
  get doubtsRole(): boolean {
    return this.role.isDoubted
  }

  /**
   * Checks if a failure means only that the server takes no writes, so that nothing has run. The
   * failure must be that of an autocommit statement or of the first statement of a transaction.
   */
  hasWrongRole(failure: Failure): boolean {
    return this.role.explains(failure)
  }

  /**
   * Sends a statement, with steps before and after it, in one write with one Sync. A `simple`
   * request is sent without the steps.
   */
  run(
    before: ReadonlyArray<messages.Step>,
    request: Request,
    after: ReadonlyArray<messages.Step>,
    callback: OnExchange
  ): void {
    if (this.needsProof) return this.prove(callback, () => this.run(before, request, after, callback))
    const { text, values } = request
    request.served?.(this.server)
    if (request.simple) return this.runSimple(request, callback)
    const path = request.path?.text
    const prepared = request.prepare ? this.statements.getOrAdd(text, path) : undefined
    const needsParse = prepared === undefined || !prepared.parsed
    const decoder = prepared?.decoder
    const exchangeRequest = new ExchangeRequest(
      () =>
        messages.encodeExchange(
          before,
          {
            text: needsParse ? sendableText(text) : text,
            values,
            name: prepared?.name ?? "",
            needsParse,
            needsDescribe: decoder === undefined,
            drainToClose: () => this.statements.drainToClose()
          },
          after
        ),
      (failure, exchange) => {
        if (prepared !== undefined && !prepared.parsed) {
          if (exchange.parsed > messages.parseCount(before)) prepared.parsed = true
          else this.statements.remove(text, path)
        }
        if (failure === undefined) {
          // a statement without rows has no columns, so the server need not describe it again
          if (prepared !== undefined) prepared.decoder ??= noColumns
          if (schemaCommands.has(exchange.result.command ?? "")) {
            this.statements.removeAll()
            this.hasProofStatement = false
            this.types?.clear()
          }
        } else if (failure._tag === "refused" && isStalePlan(failure.error.code ?? "", failure.error.message)) {
          // the statement has not run if its bind was not completed, and the other statements may
          // be stale, too
          if (exchange.bound === before.length) this.statements.removeAll()
          else this.statements.remove(text, path)
          // outside of a transaction the statement can be prepared again at once
          if (exchange.bound === 0 && this.status === "I" && !needsParse && !exchange.isStopped)
            return this.run(before, request, after, callback)
        }
        callback(failure, exchange)
      }
    )
    exchangeRequest.statement = request
    exchangeRequest.before = before.length
    exchangeRequest.after = after.length
    exchangeRequest.asArrays = request.rows === "array"
    exchangeRequest.isRaw = request.rows === "raw"
    exchangeRequest.isMaintenance = exchangeRequest.isRaw && (before.length === 0 || request.isMaintenance === true)
    exchangeRequest.prepared = prepared
    exchangeRequest.decoder = decoder
    this.send(exchangeRequest)
  }

  /** Sends a text with several commands by the simple protocol. */
  private runSimple(request: Request, callback: OnExchange): void {
    // the text may drop all prepared statements
    this.hasProofStatement = false
    const exchangeRequest = new ExchangeRequest(() => messages.encodeSimple(sendableText(request.text)), callback)
    exchangeRequest.asArrays = request.rows === "array"
    exchangeRequest.isRaw = request.rows === "raw"
    exchangeRequest.isSimple = true
    exchangeRequest.statement = request
    this.send(exchangeRequest)
  }

  /**
   * Sends a COPY, with steps before it unless the request is `simple`. The data of the COPY passes
   * through `copy`.
   */
  copy(before: ReadonlyArray<messages.Step>, request: Request, copy: Copy, callback: OnExchange): void {
    if (this.needsProof) return this.prove(callback, () => this.copy(before, request, copy, callback))
    const exchangeRequest = new ExchangeRequest(
      () => {
        const text = sendableText(request.text)
        if (request.simple) return messages.encodeSimple(text)
        return messages.encodeExchange(
          before,
          { text, values: none, name: "", needsParse: true, needsDescribe: false, drainToClose: () => none },
          none
        )
      },
      (failure, exchange) => {
        if (copy._tag === "in") copy.end()
        else copy.onAnswered()
        callback(failure, exchange)
      }
    )
    exchangeRequest.statement = request
    exchangeRequest.before = before.length
    exchangeRequest.copy = copy
    copy.send({
      stream: this.client.connection.stream,
      awaitServer: () => this.awaitServer(),
      awaitProgram: () => this.watchdog.onAnswered()
    })
    this.send(exchangeRequest)
  }

  /** Sends steps without a statement. */
  steps(all: ReadonlyArray<messages.Step>, callback: OnExchange): void {
    this.sendSteps(all, false, callback)
  }

  /**
   * Sends steps that undo a failed statement. The caller of the statement waits for them, so the
   * connection is closed if the server does not answer in time.
   */
  undo(all: ReadonlyArray<messages.Step>, callback: OnExchange): void {
    const cancelTimeout = clock.later(rollbackTimeout.default, () => this.destroy("broken"))
    this.sendSteps(all, true, (failure, exchange) => {
      cancelTimeout()
      callback(failure, exchange)
    })
  }

  private sendSteps(all: ReadonlyArray<messages.Step>, isUndo: boolean, callback: OnExchange): void {
    if (this.needsProof) return this.prove(callback, () => this.sendSteps(all, isUndo, callback))
    const exchangeRequest = new ExchangeRequest(() => messages.encodeSteps(all), callback)
    exchangeRequest.before = all.length - 1
    exchangeRequest.isDescribed = false
    exchangeRequest.isUndo = isUndo
    this.send(exchangeRequest)
  }

  /** Calls `listener` with each NOTIFY on the channels that the session listens to. */
  onNotification(listener: (channel: string, payload: string, processId: number) => void): void {
    this.client.on(
      "notification",
      (message: { readonly channel: string; readonly payload?: string; readonly processId: number }) =>
        listener(message.channel, message.payload ?? "", message.processId)
    )
  }

  /**
   * Passes the exchanges of the program to `observer`, until the returned function is called. There
   * is one observer at a time. It replaces the callback of the owner, so a connection without an
   * observer does not check for one.
   */
  observeExchanges(observer: ExchangeObserver): () => void {
    const { owner } = this
    this.owner = {
      ...owner,
      operated: (millis, error, exchange, failure) => {
        owner.operated?.(millis, error, exchange, failure)
        observer(this, exchange, failure)
      }
    }
    return () => {
      this.owner = owner
    }
  }

  /** Returns a new name for a portal of this connection. */
  nextPortal(): string {
    return `p${++this.portalCount}`
  }

  /**
   * Opens a portal and fetches its first rows. The end of the transaction closes the portal at the
   * latest.
   */
  openPortal(
    before: ReadonlyArray<messages.Step>,
    portal: string,
    request: Request,
    size: number,
    callback: OnExchange
  ): void {
    if (this.needsProof) {
      return this.prove(callback, () => this.openPortal(before, portal, request, size, callback))
    }
    request.served?.(this.server)
    const exchangeRequest = new ExchangeRequest(
      () => messages.encodeOpenPortal(before, portal, sendableText(request.text), request.values, size),
      callback
    )
    exchangeRequest.statement = request
    exchangeRequest.before = before.length
    this.send(exchangeRequest)
  }

  /** Fetches more rows of the portal that the exchange `opened` has opened. */
  fetchPortal(
    before: ReadonlyArray<messages.Step>,
    portal: string,
    opened: Exchange,
    size: number,
    callback: OnExchange
  ): void {
    const exchangeRequest = new ExchangeRequest(() => messages.encodeFetchPortal(before, portal, size), callback)
    exchangeRequest.statement = opened.request.statement
    exchangeRequest.before = before.length
    exchangeRequest.decoder = opened.decoder
    this.send(exchangeRequest)
  }

  /** Closes a portal. */
  closePortal(portal: string, callback: OnExchange): void {
    const exchangeRequest = new ExchangeRequest(() => messages.encodeClosePortal(portal), callback)
    exchangeRequest.main = 0
    this.send(exchangeRequest)
  }

  /** @internal */
  override reportUsability(): void {
    this.owner.usabilityChanged?.()
  }

  protected override reportLoss(error: Error): void {
    this.owner.lost(this, error)
  }

  protected override reportClose(reason: CloseReason): void {
    this.owner.closed(this, reason)
  }

  protected override reportOperation(
    millis: number,
    error: string | undefined,
    exchange: Exchange,
    failure: Failure | undefined
  ): void {
    this.owner.operated?.(millis, error, exchange, failure)
  }

  /**
   * Checks if a proof of the server's role must be sent before the next exchange. Inside of a
   * transaction a proof would be too late.
   */
  private get needsProof(): boolean {
    return this.role.isDoubted && this.status === "I"
  }

  private prove(callback: OnExchange, proceed: () => void): void {
    this.send(this.role.makeProof(callback, proceed))
  }

  /**
   * Retires a connection for writes if its server or its session has become read-only. The
   * statement in progress is not interrupted.
   */
  private onParameter(): void {
    if (!this.role.isForWrites || this.isPooled || !this.takesNoWrites) return
    this.retireAt = Number.NEGATIVE_INFINITY
    this.retireAs = "wrongRole"
  }
}
