/**
 * The part of a physical connection below its exchanges: the socket, the settings that the server
 * has reported, and the end of the connection.
 */

import type { SessionConfig } from "../../DatabaseConfig.js"
import type { CloseReason } from "../../Observation.js"
import * as clock from "../concurrency/clock.js"
import * as messages from "../protocol/frontendMessages.js"
import type { Client } from "../protocol/pgDriver.js"
import type { SearchPath } from "../sql/searchPath.js"
import type { Login } from "./credentials.js"
import type { Destination } from "./destination.js"
import { lostError } from "./exchangeFailure.js"
import { type SecondSocket, secondSocket, sendCancel } from "./secondSocket.js"
import type { RoleSettings } from "./writerRoleCheck.js"

/** A session that has logged in, and its settings. */
export interface OpenedSession {
  readonly client: Client
  readonly server: Destination
  readonly session: SessionConfig
  /** The settings that the server has reported. */
  readonly parameters: Map<string, string>
  /** True if the login has made the session refuse writes. */
  readonly refusesWrites: boolean
  readonly role: RoleSettings
  /** The credentials of the login. */
  readonly login: Login
}

/** Socket and session of a physical connection; `ExchangeConnection` adds the exchanges. */
export abstract class BaseConnection {
  readonly server: Destination
  /** The generation of the credentials of the login. */
  readonly generation: number
  readonly createdAt = clock.now()
  /**
   * The number of the server process. A pooler reports a number of its own, which only a cancel
   * request can use.
   */
  readonly processId: number
  /**
   * True if the connection leads to a transaction pooler, whose clients share the sessions of the
   * server.
   */
  readonly isPooled: boolean
  /** @internal The address of the same server, for another socket. */
  readonly secondSocket: SecondSocket
  protected readonly client: Client
  protected readonly parameters: Map<string, string>
  /** The error of the loss of the connection. */
  protected lossError: Error | undefined = undefined
  private brokenReason: CloseReason | undefined = undefined
  private isEnding = false
  protected isClosed = false

  constructor({ client, login, parameters, server, session }: OpenedSession) {
    this.client = client
    this.server = server
    this.parameters = parameters
    this.generation = login.generation
    this.processId = client.processID ?? 0
    this.isPooled = session.mode === "transactionPooler"
    const { stream } = client.connection
    this.secondSocket = secondSocket(server, stream)
    client.on("error", (error: Error) => this.lose(error))
    client.on("end", () => this.lose(lostError()))
    stream.once("close", () => this.onClose())
  }

  /** Checks if an exchange is in progress. */
  abstract get busy(): boolean

  /**
   * Checks if the socket must stay open for a cancel request that is on its way through a pooler.
   */
  protected abstract get isPassingPooler(): boolean

  /**
   * Handles the loss of the connection, and fails the exchange in progress. `isFirst` is false if
   * the connection was marked as broken before.
   */
  protected abstract onLoss(error: Error, isFirst: boolean): void

  /** Reports that the connection may have become usable or unusable. */
  abstract reportUsability(): void

  /** Reports, once, that the socket is closed. */
  protected abstract reportClose(reason: CloseReason): void

  /**
   * Returns the reason why the connection must not be used again; `undefined` if it may be used.
   */
  get broken(): CloseReason | undefined {
    return this.brokenReason
  }

  /**
   * Returns the status of the session: `I` idle, `T` in a transaction, `E` in a failed transaction.
   */
  get status(): "I" | "T" | "E" | null {
    return this.client.getTransactionStatus()
  }

  /**
   * Returns a setting that the server has reported, such as `in_hot_standby` or `server_version`. A
   * pooler reports settings from its memory.
   */
  parameter(name: string): string | undefined {
    return this.parameters.get(name)
  }

  /**
   * Checks if the server has reported this search path for the session. PostgreSQL reports search
   * paths since version 18. The report of a pooler is not used.
   */
  hasSearchPath(path: SearchPath): boolean {
    return !this.isPooled && this.parameters.get("search_path") === path.text
  }

  /** Checks if the server has reported that it is a standby, or that the session is read-only. */
  get takesNoWrites(): boolean {
    return (
      this.parameters.get("in_hot_standby") === "on" || this.parameters.get("default_transaction_read_only") === "on"
    )
  }

  /** @internal */
  get isClosing(): boolean {
    return this.isClosed || this.isEnding
  }

  /** Keeps the process alive while the connection is open, or lets the process end. */
  keepProcess(isKept: boolean): void {
    // TLS over a stream of the program does not pass `ref` and `unref` on to the stream
    const { transport } = this.client
    if (isKept) transport.ref()
    else transport.unref()
  }

  /**
   * Closes an idle connection with a Terminate message, and a busy connection without one, at once.
   * Does nothing while a cancel request is on its way through a pooler.
   */
  end(reason: CloseReason): void {
    if (this.isClosing || this.isPassingPooler) return
    if (this.busy) return this.destroy(reason)
    this.isEnding = true
    this.markBroken(reason)
    const stream = this.client.connection.stream
    // the socket is closed within a second, even if the server does not read the message
    stream.once(
      "close",
      clock.later(1000, () => stream.destroy())
    )
    this.client.end().catch(() => stream.destroy())
  }

  /**
   * Marks the connection as broken and closes its socket. A cancel request that is on its way
   * through a pooler delays the close.
   */
  destroy(reason: CloseReason): void {
    this.markBroken(reason)
    if (!this.isPassingPooler) this.client.connection.stream.destroy()
  }

  /**
   * @internal Marks the connection as broken, so that it is not used again. The first reason is
   * kept.
   */
  markBroken(reason: CloseReason): void {
    if (this.brokenReason !== undefined) return
    this.brokenReason = reason
    this.reportUsability()
  }

  /** @internal */
  resume(): void {
    this.client.connection.stream.resume()
  }

  /** @internal */
  sendCancelRequest(timeout: number, callback: (isReceived: boolean) => void): void {
    const { processID, secretKey } = this.client
    if (processID === null || secretKey === null) return
    sendCancel(this.server, this.secondSocket, timeout, messages.encodeCancel(processID, secretKey), callback)
  }

  /** Gives the connection up as lost, because its server is dead or was replaced. */
  giveUp(error: Error): void {
    this.lose(error)
  }

  protected lose(error: Error): void {
    const isFirst = this.broken === undefined
    this.markBroken("broken")
    this.lossError ??= error
    this.onLoss(error, isFirst)
  }

  private onClose(): void {
    if (this.isClosed) return
    this.isClosed = true
    this.lose(lostError())
    this.reportClose(this.broken ?? "broken")
  }
}
