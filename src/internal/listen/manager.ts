/**
 * The listening connection of a database: one for all channels, opened with the first listener,
 * closed with the last, and replaced when it is lost.
 *
 * Listeners are added and removed at once; the connection is brought up to date with them when it
 * is free. So no listener waits for another one, and the removal of a listener does not wait for
 * the network.
 */

import type { DatabaseConfig } from "../../DatabaseConfig.js"
import type { CloseReason, Observer } from "../../Observation.js"
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import type { CredentialSource } from "../connection/credentials.js"
import type { Invalidation } from "../pool/pool.js"
import { ListenConnection } from "./connection.js"
import { ListenConnector } from "./connector.js"
import { probeDelivery } from "./deliveryProbe.js"
import { type ConnectionFailure, isPermanent } from "./failure.js"
import { channelCommands, Handover } from "./handover.js"
import { type Listener, Listeners } from "./listeners.js"
import { nextCommand } from "./nextCommand.js"
import { beginOutage, type ListenEdge, type Outage } from "./outage.js"
import { ListenReports } from "./reports.js"
import { closed, connectionOf, idle, outageOf, type State } from "./state.js"

/** Manager of the listening connection and its listeners. */
export class ListenManager {
  private state: State = idle
  private readonly listeners = new Listeners()
  private readonly connector: ListenConnector
  private readonly reports: ListenReports
  /** Cancels the delay before the next handover, which outlives the connection. */
  private cancelHandoverDelay: (() => void) | undefined
  private readonly stopFollowingCredentials: () => void

  constructor(
    private readonly config: DatabaseConfig,
    credentials: CredentialSource,
    observer: Observer,
    private readonly edge: ListenEdge
  ) {
    const location = { database: config.name, server: config.writer.name }
    this.reports = new ListenReports(observer, location, edge.messageOf)
    this.stopFollowingCredentials = credentials.follow(() => this.synchronize())
    this.connector = new ListenConnector(config, credentials, (connection, error) => {
      const listening = connectionOf(this.state)
      if (listening?.connection === connection) this.onLost(listening, error)
    })
  }

  /**
   * Adds a listener. Its `onListening` is called when it receives messages, its `reject` if the
   * attempt fails.
   */
  add(listener: Listener): void {
    const { state } = this
    if (state._tag === "Closed") return listener.reject(closed)
    this.listeners.add(listener)
    switch (state._tag) {
      case "Idle":
        return this.startConnect(undefined)
      case "Pausing":
        // a new listener does not wait for the end of the pause, just as a statement does not
        state.cancel()
        return this.startConnect(state.outage)
      case "Connecting":
        return
      default:
        if (state.listening.channels.has(listener.channel)) listener.onListening()
        else this.synchronize()
    }
  }

  /** Removes a listener. */
  remove(listener: Listener): void {
    if (this.listeners.remove(listener)) this.synchronize()
  }

  /**
   * Evicts the connections that an invalidation matches, at once or after the handover to another;
   * returns their number.
   */
  invalidate({ before, mode, processId }: Invalidation): number {
    const matched = this.connector.invalidate(before, processId)
    const listening = connectionOf(this.state)
    if (mode === "hard" && listening !== undefined && matched.includes(listening.connection)) {
      this.onLost(listening, new Error("the connection was invalidated"), "invalidated")
    } else this.synchronize()
    return matched.length
  }

  /** Fails all listeners, and calls back when all sockets are closed. */
  close(timeout: number, callback: () => void): void {
    this.stopFollowingCredentials()
    this.cancelHandoverDelay?.()
    this.disconnect("shutdown")
    this.state = closed
    this.listeners.failAll(closed)
    this.connector.close(timeout, callback)
  }

  /**
   * Runs the next command that brings the connection up to date with the listeners, if it is free.
   */
  private synchronize(): void {
    if (this.listeners.isEmpty) return this.disconnect("idle")
    const { state } = this
    if (state._tag !== "Listening" && state._tag !== "HandingOver") return
    const { listening } = state
    if (listening.busy || (state._tag === "HandingOver" && state.handover.isSendingMark)) return
    const next = nextCommand(listening.channels, this.listeners)
    if (next?.command === "LISTEN") return this.listen(listening, next.channels)
    if (next !== undefined) {
      for (const channel of next.channels) listening.channels.delete(channel)
      return listening.command(channelCommands(next.command, next.channels), () => this.synchronize())
    }
    if (state._tag === "HandingOver") state.handover.sendMark()
    else if (this.cancelHandoverDelay === undefined && this.connector.isOutdated(listening.connection))
      this.startHandover(listening)
  }

  private listen(listening: ListenConnection, channels: ReadonlyArray<string>): void {
    listening.command(channelCommands("LISTEN", channels), (failure) => {
      if (connectionOf(this.state) !== listening) return
      if (failure === undefined) {
        this.onListening(listening, channels)
        return this.synchronize()
      }
      const rejected: ConnectionFailure = { _tag: "Command", failure }
      const newcomers = channels.flatMap((channel) => this.listeners.of(channel))
      if (newcomers.some(({ state }) => state === "disconnected")) return this.closeAfterFailure(listening, rejected)
      for (const listener of newcomers) {
        this.remove(listener)
        listener.reject(rejected)
      }
      this.synchronize()
    })
  }

  /** The server's session listens to these channels: ends the outage, if there is one. */
  private onListening(listening: ListenConnection, channels: ReadonlyArray<string>): void {
    const outage = outageOf(this.state)
    for (const channel of channels) {
      listening.channels.add(channel)
      for (const listener of this.listeners.of(channel)) listener.onListening(outage?.firstMessage)
    }
    if (outage === undefined) return
    this.state = { _tag: "Listening", outage: undefined, listening }
    this.reports.restored(outage)
  }

  private onMessage(listening: ListenConnection, channel: string, payload: string, processId: number): void {
    if (listening.probe?.channel === channel) return listening.probe.onMessage()
    const { state } = this
    if (state._tag === "HandingOver") {
      if (state.handover.isNext(listening)) return state.handover.onNextMessage({ channel, payload, processId })
      if (state.listening === listening && !state.handover.onOldMessage(channel)) return
    }
    if (connectionOf(this.state) !== listening) return
    for (const listener of this.listeners.receiversOf(channel)) {
      if (!listener.receive(payload, processId)) continue
      this.reports.overflowed(channel)
      if (listener.toleratesGaps) continue
      listener.fail({ _tag: "Missed", reason: "overflow" })
      this.remove(listener)
    }
  }

  private startConnect(outage: Outage | undefined): void {
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
  private startHandover(listening: ListenConnection): void {
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
   * Delays the next handover, also after a success: a source of credentials may return others for
   * each connection, and handovers would never end.
   */
  private delayHandover(): void {
    this.cancelHandoverDelay = clock.later(this.config.pool.connectTimeout, () => {
      this.cancelHandoverDelay = undefined
      this.synchronize()
    })
  }

  /** Closes a connection after a failed command, and begins an outage. */
  private closeAfterFailure(listening: ListenConnection, failure: ConnectionFailure): void {
    if (connectionOf(this.state) !== listening) return
    const outage = outageOf(this.state)
    this.closeListening("invalid")
    this.onFailure(failure, outage)
  }

  private onLost(listening: ListenConnection, error: Error, reason: "broken" | "invalidated" = "broken"): void {
    const { state } = this
    if (state._tag === "HandingOver" && state.handover.isNext(listening)) return state.handover.fail(error)
    if (connectionOf(state) !== listening) return
    this.closeListening(reason)
    this.reports.lost(listening.connection.processId, error)
    this.onFailure({ _tag: "Lost", error }, outageOf(state))
  }

  /**
   * Begins or continues an outage: fails the listeners that do not accept gaps, and schedules a
   * retry.
   */
  private onFailure(failure: ConnectionFailure, current: Outage | undefined): void {
    this.listeners.onDisconnected(failure)
    if (this.listeners.isEmpty) return
    const outage = current ?? beginOutage(failure, this.edge, (outage, pause) => this.reports.retried(outage, pause))
    outage.lastFailure = failure
    // an error that needs a change of the configuration is not retried
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
  private disconnect(reason: CloseReason): void {
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
