/**
 * The life of the listening connection: connect, proof of delivery, handover, loss and outage.
 */

import type { DatabaseConfig } from "../../DatabaseConfig.js"
import type { CloseReason, Observer } from "../../Observation.js"
import * as clock from "../concurrency/clock.js"
import type { HostLocator } from "../connection/connect.js"
import type { Connection } from "../connection/connection.js"
import type { CredentialSource } from "../connection/credentials.js"
import { ListenConnection } from "./connection.js"
import { ListenConnector } from "./connector.js"
import { probeDelivery } from "./deliveryProbe.js"
import { type ConnectionFailure, isPermanent } from "./failure.js"
import { Handover } from "./handover.js"
import { Listeners } from "./listeners.js"
import { beginOutage, type ListenEdge, type Outage } from "./outage.js"
import { ListenReports } from "./reports.js"
import { connectionOf, idle, outageOf, type State } from "./state.js"

/** Listening connection of a database, with its state. */
export abstract class ListenLifecycle {
  protected state: State = idle
  protected readonly listeners = new Listeners()
  protected readonly connector: ListenConnector
  protected readonly reports: ListenReports
  /** Cancels the delay before the next handover. The delay may outlive the connection. */
  protected cancelHandoverDelay: (() => void) | undefined

  constructor(
    private readonly config: DatabaseConfig,
    credentials: CredentialSource,
    locator: HostLocator | undefined,
    observer: Observer,
    private readonly edge: ListenEdge
  ) {
    this.reports = new ListenReports(observer, { database: config.name, server: config.writer.name }, edge.messageOf)
    this.connector = new ListenConnector(config, credentials, locator, (connection, error) => {
      const listening = connectionOf(this.state)
      if (listening?.connection === connection) this.onLost(listening, error)
    })
  }

  /**
   * Brings the connection up to date with the listeners by the next command, if it is free, or
   * closes it if there are no listeners.
   */
  protected abstract synchronize(): void

  /** Delivers a message to the listeners of its channel. */
  protected abstract onMessage(listening: ListenConnection, channel: string, payload: string, processId: number): void

  protected startConnect(outage: Outage | undefined): void {
    if (outage !== undefined) outage.attempts++
    let cancel = () => {}
    this.state = { _tag: "Connecting", outage, cancel: () => cancel() }
    cancel = this.connector.connect((failure, connection) => {
      if (connection !== undefined) return this.onConnected(connection, outage)
      this.state = idle
      if (failure !== undefined) this.onFailure({ _tag: "Connect", failure }, outage)
    })
  }

  private makeListening(connection: Connection): ListenConnection {
    const { listenHeartbeat, pool } = this.config
    const listening = new ListenConnection(connection, pool.connectTimeout, listenHeartbeat, {
      onLost: (listening, error) => this.onLost(listening, error),
      onIdle: () => this.synchronize()
    })
    connection.onNotification((channel, payload, processId) => this.onMessage(listening, channel, payload, processId))
    return listening
  }

  private onConnected(connection: Connection, outage: Outage | undefined): void {
    const listening = this.makeListening(connection)
    let cancel = () => {}
    this.state = { _tag: "Verifying", outage, listening, cancel: () => cancel() }
    cancel = probeDelivery(listening, this.connector.connect, this.config.pool.connectTimeout, (result) => {
      if (connectionOf(this.state) !== listening) return
      switch (result._tag) {
        case "delivered":
          this.state = { _tag: "Listening", outage, listening }
          return this.synchronize()
        // a pooler in transaction mode gives each transaction another session, so no message
        // arrives
        case "undelivered":
          this.disconnect("invalid")
          return this.listeners.failAll({ _tag: "Undelivered" })
        case "unreachable":
          return this.closeAfterFailure(listening, { _tag: "Connect", failure: result.failure })
        case "failed":
          return this.closeAfterFailure(listening, { _tag: "Command", failure: result.failure })
      }
    })
  }

  /** Makes another connection and begins the handover to it. */
  protected startHandover(listening: ListenConnection): void {
    const onEnd = () => {
      this.state = { _tag: "Listening", outage: undefined, listening }
      this.delayHandover()
    }
    const handover = new Handover(listening, {
      connect: this.connector.connect,
      makeListening: (connection) => this.makeListening(connection),
      timeout: this.config.pool.connectTimeout,
      channels: () => this.listeners.channels(),
      onReady: () => this.synchronize(),
      onSucceeded: (next, buffered) => {
        onEnd()
        this.closeListening(listening.connection.retireAs === "invalidated" ? "invalidated" : "oldCredentials")
        this.state = { _tag: "Listening", outage: undefined, listening: next }
        for (const { channel, payload, processId } of buffered) this.onMessage(next, channel, payload, processId)
        this.synchronize()
      },
      onFailed: () => {
        onEnd()
        this.synchronize()
      },
      onMissed: (error) => {
        onEnd()
        this.onLost(listening, error)
      }
    })
    this.state = { _tag: "HandingOver", listening, handover }
  }

  /**
   * Delays the next handover, also after a success: a source of credentials may return new ones for
   * each connection, and handovers would never end.
   */
  private delayHandover(): void {
    this.cancelHandoverDelay = clock.later(this.config.pool.connectTimeout, () => {
      this.cancelHandoverDelay = undefined
      this.synchronize()
    })
  }

  /** Closes the connection after a failed command or probe, and begins or continues an outage. */
  protected closeAfterFailure(listening: ListenConnection, failure: ConnectionFailure): void {
    if (connectionOf(this.state) !== listening) return
    const outage = outageOf(this.state)
    this.closeListening("invalid")
    this.onFailure(failure, outage)
  }

  protected onLost(listening: ListenConnection, error: Error, reason: "broken" | "invalidated" = "broken"): void {
    const { state } = this
    if (state._tag === "HandingOver" && state.handover.isNext(listening)) return state.handover.fail(error)
    if (connectionOf(state) !== listening) return
    this.closeListening(reason)
    this.reports.lost(listening.connection.processId, error)
    this.onFailure({ _tag: "Lost", error }, outageOf(state))
  }

  /**
   * Begins or continues an outage: fails the listeners that the loss ends. If others remain,
   * schedules a retry, or fails them after a permanent failure.
   */
  private onFailure(failure: ConnectionFailure, current: Outage | undefined): void {
    this.listeners.onDisconnected(failure)
    if (this.listeners.isEmpty) return
    const outage = current ?? beginOutage(failure, this.edge, (outage, pause) => this.reports.retried(outage, pause))
    outage.lastFailure = failure
    // a failure that only a change of the configuration can mend is not retried
    if (isPermanent(failure)) return this.failDisconnected(failure)
    this.state = {
      _tag: "Pausing",
      outage,
      cancel: outage.pauses.next(failure, (isRetried) => {
        this.state = idle
        if (isRetried) this.startConnect(outage)
        else this.failDisconnected(failure)
      })
    }
  }

  private failDisconnected(cause: ConnectionFailure): void {
    this.listeners.failAll({ _tag: "Missed", reason: "disconnected", cause })
  }

  /** Closes the connection, or cancels the pause or connect before it. */
  protected disconnect(reason: CloseReason): void {
    const { state } = this
    if (state._tag === "Closed") return
    if (state._tag === "Connecting" || state._tag === "Pausing") state.cancel()
    if (connectionOf(state) !== undefined) this.closeListening(reason)
    this.state = idle
  }

  private closeListening(reason: CloseReason): void {
    const { state } = this
    const listening = connectionOf(state)
    if (listening === undefined) return
    this.state = idle
    if (state._tag === "Verifying") state.cancel()
    else if (state._tag === "HandingOver") state.handover.cancel()
    listening.stopHeartbeat()
    if (reason === "broken") listening.connection.destroy(reason)
    else listening.connection.end(reason)
  }
}
