/**
 * The listening connection of a database: one for all channels, opened with the first listener,
 * closed with the last, and replaced when it is lost.
 *
 * Listeners are added and removed immediately, and the connection sends LISTEN and UNLISTEN when it
 * is free. So `add` and `remove` wait neither for the network nor for other listeners.
 */

import type { DatabaseConfig } from "../../DatabaseConfig.js"
import type { Observer } from "../../Observation.js"
import type { HostLocator } from "../connection/connect.js"
import type { CredentialSource } from "../connection/credentials.js"
import type { Invalidation } from "../pool/invalidation.js"
import type { ListenConnection } from "./connection.js"
import { ListenLifecycle } from "./connectionLifecycle.js"
import type { ConnectionFailure } from "./failure.js"
import { channelCommands } from "./handover.js"
import type { Listener } from "./listeners.js"
import { nextCommand } from "./nextCommand.js"
import type { ListenEdge } from "./outage.js"
import { closed, connectionOf, outageOf } from "./state.js"

/** Manager of the listening connection and its listeners. */
export class ListenManager extends ListenLifecycle {
  private readonly stopFollowing: ReadonlyArray<() => void>

  constructor(
    config: DatabaseConfig,
    credentials: CredentialSource,
    locator: HostLocator | undefined,
    observer: Observer,
    edge: ListenEdge
  ) {
    super(config, credentials, locator, observer, edge)
    const stopFollowingWriter = locator?.follow((host, error) => {
      const listening = connectionOf(this.state)
      // the former writer sends no notification of a write on the new one
      if (listening !== undefined && listening.connection.server.name !== host) {
        this.onLost(listening, error, "invalidated")
      }
    })
    this.stopFollowing = [
      credentials.follow(() => this.synchronize()),
      ...(stopFollowingWriter === undefined ? [] : [stopFollowingWriter])
    ]
  }

  /**
   * Adds a listener. Its `onListening` is called as soon as the connection listens to its channel,
   * its `reject` if the attempt fails.
   */
  add(listener: Listener): void {
    const { state } = this
    if (state._tag === "Closed") return listener.reject(closed)
    this.listeners.add(listener)
    switch (state._tag) {
      case "Idle":
        return this.startConnect(undefined)
      case "Pausing":
        // a new listener does not wait for the end of the pause
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
   * Evicts the connections that an invalidation matches, and returns their number. `hard` closes
   * the listening connection at once, `soft` after a handover to another one.
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
    for (const stop of this.stopFollowing) stop()
    this.cancelHandoverDelay?.()
    this.disconnect("shutdown")
    this.state = closed
    this.listeners.failAll(closed)
    this.connector.close(timeout, callback)
  }

  /**
   * Brings the connection up to date with the listeners, if it is free: runs the next command, or
   * continues or starts a handover. Without listeners, closes the connection.
   */
  protected override synchronize(): void {
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

  /**
   * Records that the server's session listens to these channels, notifies their listeners, and ends
   * the outage, if there is one.
   */
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

  protected override onMessage(listening: ListenConnection, channel: string, payload: string, processId: number): void {
    if (listening.probe?.channel === channel) return listening.probe.onMessage()
    const { state } = this
    if (state._tag === "HandingOver") {
      if (state.handover.isNext(listening)) return state.handover.onNextMessage({ channel, payload, processId })
      if (state.listening === listening && !state.handover.onOldMessage(channel)) return
    }
    if (connectionOf(this.state) !== listening) return
    this.listeners.deliver(channel, payload, processId, this.reports)
  }
}
