/**
 * The listening connection of a database: one for all channels, opened with the first listener,
 * closed with the last, and replaced when it is lost.
 *
 * Listeners are added and removed at once; the connection is brought up to date with them when it
 * is free. So no listener waits for another, and none that leaves waits for the network.
 */

import type { DatabaseConfig } from "../../DatabaseConfig.js"
import {
  ConfigInvalid,
  type ConnectFailed,
  DatabaseClosed,
  Disconnected,
  type ListenError,
  ListenFailed,
  type StatementError
} from "../../DatabaseError.js"
import { type CloseReason, Observation, type Observer } from "../../Observation.js"
import { isNotSent } from "../../RetryPolicy.js"
import * as clock from "../concurrency/clock.js"
import { connect } from "../connection/connect.js"
import { connectFailed } from "../connection/connectFailure.js"
import type { ConnectFailure, Connection, Owner } from "../connection/connection.js"
import type { CredentialSource } from "../connection/credentials.js"
import type { ErrorLocation } from "../connection/statementFailure.js"
import { toDatabaseError } from "../edge/databaseError.js"
import { toStatementError } from "../edge/statementError.js"
import { markForEviction } from "../pool/eviction.js"
import type { Invalidation } from "../pool/pool.js"
import { ListenConnection } from "./connection.js"
import { probeDelivery } from "./deliveryProbe.js"
import { channelCommands, Handover } from "./handover.js"
import type { Subscriber } from "./subscriber.js"

/**
 * Pauses of one outage, before each attempt but that for a new listener. `callback` is called after
 * the pause, with `false` if there is to be no further attempt; the returned function cancels.
 */
export interface RetryPauses {
  readonly next: (error: StatementError, callback: (isRetried: boolean) => void) => () => void
}

/** Time from the loss of the connection until the next one listens to the channels. */
interface Outage {
  readonly since: number
  readonly pauses: RetryPauses
  /** The message of the first failure. */
  readonly firstMessage: string
  /** The last failure. */
  lastError: StatementError
  attempts: number
}

const none: ReadonlyArray<never> = []

/** The timeout of closing the sockets, in ms. */
const maxCloseTime = 1000

/** Keeper of the listening connection and its listeners. */
export class ListenManager {
  private readonly listeners = new Map<string, Set<Subscriber>>()
  private listening: ListenConnection | undefined
  private outage: Outage | undefined
  /** Each cancels the connect, the delivery probe or the retry pause that is under way. */
  private cancelConnect: (() => void) | undefined
  private cancelProbe: (() => void) | undefined
  private cancelPause: (() => void) | undefined
  /** All connections whose sockets are not closed yet. */
  private readonly openConnections = new Set<Connection>()
  private isClosing = false
  private onEmpty = () => {}
  private readonly owner: Owner
  private readonly location: ErrorLocation
  /** The handover to another connection, while there is one. */
  private handover: Handover | undefined
  /** Cancels the delay before the next handover. */
  private cancelHandoverDelay: (() => void) | undefined
  /** Connections whose connect was started before this time are invalid. */
  private invalidBefore = Number.NEGATIVE_INFINITY
  private readonly stopFollowingCredentials: () => void

  constructor(
    private readonly config: DatabaseConfig,
    private readonly credentials: CredentialSource,
    private readonly observer: Observer,
    /**
     * Begins the pauses of an outage; `onPause` gets the length of each before it begins, in ms.
     */
    private readonly pauses: (onPause: (pause: number) => void) => RetryPauses
  ) {
    this.location = { database: config.name, server: config.writer.name }
    this.stopFollowingCredentials = credentials.follow(() => this.synchronize())
    this.owner = {
      lost: (connection, error) => {
        if (this.listening?.connection === connection) this.onLost(this.listening, error)
      },
      closed: (connection) => {
        this.openConnections.delete(connection)
        if (this.openConnections.size === 0) this.onEmpty()
      }
    }
  }

  /** Adds a listener. Its `onJoined` is called when it receives messages, or with the error. */
  add(listener: Subscriber): void {
    const { channel } = listener
    if (this.isClosing) return listener.reject(new DatabaseClosed(this.location))
    const others = this.listeners.get(channel)
    if (others === undefined) this.listeners.set(channel, new Set([listener]))
    else others.add(listener)
    if (this.listening?.channels.has(channel) === true) listener.onListening()
    // a new listener does not wait for the end of a retry pause, as no caller of a statement does
    else if (this.listening === undefined) this.connectNow()
    else this.synchronize()
  }

  /** Removes a listener. */
  remove(listener: Subscriber): void {
    const others = this.listeners.get(listener.channel)
    if (others === undefined || !others.delete(listener)) return
    if (others.size === 0) this.listeners.delete(listener.channel)
    this.synchronize()
  }

  /**
   * Evicts the connections that an invalidation matches, at once or after the handover to another;
   * returns their number.
   */
  invalidate({ before, mode, processId }: Invalidation): number {
    if (processId === undefined) this.invalidBefore = Math.max(this.invalidBefore, before)
    const { listening } = this
    const matched = markForEviction(this.openConnections, before, processId)
    if (mode === "hard" && listening !== undefined && matched.includes(listening.connection)) {
      this.onLost(listening, new Error("the connection was invalidated"), "invalidated")
    } else this.synchronize()
    return matched.length
  }

  /** Fails all listeners, and calls back when all sockets are closed. */
  close(timeout: number, callback: () => void): void {
    this.isClosing = true
    this.stopFollowingCredentials()
    this.cancelHandoverDelay?.()
    this.disconnect("shutdown")
    this.failAll(() => new DatabaseClosed(this.location))
    const timer = clock.timer(Math.min(timeout, maxCloseTime), () => {
      for (const connection of this.openConnections) connection.destroy("shutdown")
    })
    this.onEmpty = () => {
      clock.clear(timer)
      callback()
    }
    if (this.openConnections.size === 0) this.onEmpty()
  }

  /**
   * Runs the next command that brings the connection up to date with the listeners, if it is free.
   */
  private synchronize(): void {
    if (this.listeners.size === 0) return this.disconnect("idle")
    const { listening } = this
    if (listening === undefined || !listening.isVerified || listening.busy || this.handover?.isSendingMark === true)
      return
    const missing = [...this.listeners.keys()].filter((channel) => !listening.channels.has(channel))
    // the channels of disconnected listeners return all at once: the commands of one text are one
    // transaction
    const returning = missing.filter((channel) =>
      this.listenersOf(channel).some(({ state }) => state === "disconnected")
    )
    if (returning.length > 0) return this.listen(listening, returning)
    // the LISTEN of a new channel goes alone, so that an error of the server concerns that channel
    // only
    if (missing.length > 0) return this.listen(listening, missing.slice(0, 1))
    const left = [...listening.channels].filter((channel) => !this.listeners.has(channel))
    if (left.length > 0) {
      for (const channel of left) listening.channels.delete(channel)
      return listening.command(channelCommands("UNLISTEN", left), () => this.synchronize())
    }
    if (this.handover !== undefined) this.handover.sendMark()
    else if (this.cancelHandoverDelay === undefined && this.isOutdated(listening.connection))
      this.startHandover(listening)
  }

  /** Checks if a connection is to be replaced: its credentials are old, or it was invalidated. */
  private isOutdated({ generation, retireAt }: Connection): boolean {
    return generation < this.credentials.generation || retireAt <= clock.now()
  }

  /** Makes another connection and begins the handover to it. */
  private startHandover(listening: ListenConnection): void {
    this.handover = new Handover(listening, {
      connect: (callback) => this.connect(callback),
      makeListening: (connection) => this.makeListening(connection),
      timeout: this.config.pool.connectTimeout,
      channels: () => this.listeners.keys(),
      onReady: () => this.synchronize(),
      onSucceeded: (next, buffered) => {
        this.onHandoverEnd()
        const reason = listening.connection.retireAs === "invalidated" ? "invalidated" : "oldCredentials"
        this.closeListening(listening, reason)
        this.listening = next
        next.isVerified = true
        for (const { channel, payload, processId } of buffered) this.onMessage(next, channel, payload, processId)
        this.synchronize()
      },
      onFailed: () => {
        this.onHandoverEnd()
        this.synchronize()
      },
      onMissed: (error) => {
        this.onHandoverEnd()
        this.onLost(listening, error)
      }
    })
  }

  /**
   * Delays the next handover, also after a success: a source of credentials may return others for
   * each connection, and handovers would never end.
   */
  private onHandoverEnd(): void {
    this.handover = undefined
    this.cancelHandoverDelay = clock.later(this.config.pool.connectTimeout, () => {
      this.cancelHandoverDelay = undefined
      this.synchronize()
    })
  }

  private listenersOf(channel: string): ReadonlyArray<Subscriber> {
    const listeners = this.listeners.get(channel)
    return listeners === undefined ? none : [...listeners]
  }

  private listen(listening: ListenConnection, channels: ReadonlyArray<string>): void {
    listening.command(channelCommands("LISTEN", channels), (failure) => {
      if (this.listening !== listening) return
      if (failure === undefined) {
        this.onListening(listening, channels)
        return this.synchronize()
      }
      const error = toStatementError(this.location, failure, "notSent")
      const newcomers = channels.flatMap((channel) => this.listenersOf(channel))
      if (newcomers.some(({ state }) => state === "disconnected")) return this.closeAfterFailure(listening, error)
      for (const listener of newcomers) this.rejectListener(listener, error)
      this.synchronize()
    })
  }

  /** Takes note of channels that the server's session listens to. */
  private onListening(listening: ListenConnection, channels: ReadonlyArray<string>): void {
    const { outage } = this
    for (const channel of channels) {
      listening.channels.add(channel)
      for (const listener of this.listenersOf(channel)) listener.onListening(outage?.firstMessage)
    }
    if (outage === undefined) return
    this.outage = undefined
    const { attempts, since } = outage
    this.observe(() => Observation.ListenRestored({ ...this.location, attempts, took: clock.now() - since }))
  }

  private onMessage(listening: ListenConnection, channel: string, payload: string, processId: number): void {
    if (listening.probe?.channel === channel) return listening.probe.onMessage()
    const { handover } = this
    if (handover?.isNext(listening) === true) return handover.onNextMessage({ channel, payload, processId })
    if (this.listening !== listening || handover?.onOldMessage(channel) === false) return
    for (const listener of this.listeners.get(channel) ?? none) {
      if (!listener.receive(payload, processId)) continue
      this.observe(() => Observation.ListenOverflowed({ database: this.location.database, channel }))
      if (listener.toleratesGaps) continue
      listener.fail(new ListenFailed({ ...this.location, channel, reason: "overflow" }))
      this.remove(listener)
    }
  }

  private connect(
    callback: (failure: ConnectFailure | undefined, connection: Connection | undefined) => void
  ): () => void {
    const { pool, session, writer: server } = this.config
    const options = { server, session, credentials: this.credentials, readOnly: false, timeout: pool.connectTimeout }
    const attempt = (isFirst: boolean): (() => void) => {
      const startedAt = clock.now()
      return connect(options, this.owner, (failure, connection) => {
        if (connection !== undefined) {
          this.openConnections.add(connection)
          if (startedAt <= this.invalidBefore) connection.retireAt = startedAt
          // once: if each connection gets other credentials, two callers that connect at the same
          // time would outdate each other without end
          if (isFirst && this.isOutdated(connection)) {
            connection.end(connection.retireAt === startedAt ? "invalidated" : "oldCredentials")
            cancel = attempt(false)
            return
          }
        }
        callback(failure, connection)
      })
    }
    let cancel = attempt(true)
    return () => cancel()
  }

  private connectNow(): void {
    if (this.cancelConnect !== undefined) return
    this.cancelPause?.()
    this.cancelPause = undefined
    if (this.outage !== undefined) this.outage.attempts++
    this.cancelConnect = this.connect((failure, connection) => {
      this.cancelConnect = undefined
      if (connection !== undefined) return this.onConnected(connection)
      if (failure !== undefined) this.onFailure(this.connectFailed(failure))
    })
  }

  private connectFailed(failure: ConnectFailure): ConnectFailed {
    return toDatabaseError(connectFailed(this.location, failure))
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

  private onConnected(connection: Connection): void {
    const listening = this.makeListening(connection)
    this.listening = listening
    this.cancelProbe = probeDelivery(
      listening,
      (callback) => this.connect(callback),
      this.config.pool.connectTimeout,
      (result) => {
        this.cancelProbe = undefined
        if (this.listening !== listening) return
        switch (result._tag) {
          case "delivered":
            listening.isVerified = true
            return this.synchronize()
          // a pooler in transaction mode gives each transaction another session, so no message
          // arrives
          case "undelivered":
            this.disconnect("invalid")
            return this.failAll(() => this.poolerCannotListen())
          case "unreachable":
            return this.closeAfterFailure(listening, this.connectFailed(result.failure))
          case "failed":
            return this.closeAfterFailure(listening, toStatementError(this.location, result.failure, "notSent"))
        }
      }
    )
  }

  private poolerCannotListen(): ConfigInvalid {
    return new ConfigInvalid({
      database: this.location.database,
      setting: "writer",
      given: "a pooler in transaction mode, which delivers no notifications",
      expected: "the server's own address, or a pooler that keeps sessions, for LISTEN"
    })
  }

  /** Closes a connection after a failed command, and begins an outage. */
  private closeAfterFailure(listening: ListenConnection, error: StatementError): void {
    if (this.listening !== listening) return
    this.closeListening(listening, "invalid")
    this.onFailure(error)
  }

  private onLost(listening: ListenConnection, cause: Error, reason: "broken" | "invalidated" = "broken"): void {
    if (this.handover?.isNext(listening) === true) return this.handover.fail(cause)
    if (this.listening !== listening) return
    this.closeListening(listening, reason)
    const { processId } = listening.connection
    this.observe(() => Observation.ListenLost({ ...this.location, processId, message: cause.message }))
    this.onFailure(new Disconnected({ ...this.location, cause, outcome: "notSent" }), cause.message)
  }

  /** Begins or continues an outage: fails the listeners that take no gap, and schedules a retry. */
  private onFailure(error: StatementError, message: string = error.message): void {
    for (const channel of this.listeners.keys()) {
      for (const listener of this.listenersOf(channel)) {
        if (listener.state === "joining") this.rejectListener(listener, error)
        else if (listener.toleratesGaps) listener.state = "disconnected"
        else {
          listener.fail(new ListenFailed({ ...this.location, channel, reason: "disconnected", cause: error }))
          this.remove(listener)
        }
      }
    }
    if (this.listeners.size === 0) return
    const since = clock.now()
    this.outage ??= {
      since,
      pauses: this.pauses((pause) => this.reportRetry(pause)),
      firstMessage: message,
      lastError: error,
      attempts: 0
    }
    this.outage.lastError = error
    const fail = () =>
      this.failAll((channel) => new ListenFailed({ ...this.location, channel, reason: "disconnected", cause: error }))
    // an error that needs a change of the configuration is not retried
    if (error._tag === "ConnectFailed" && !isNotSent(error)) return fail()
    this.cancelPause = this.outage.pauses.next(error, (isRetried) => {
      this.cancelPause = undefined
      if (isRetried) this.connectNow()
      else fail()
    })
  }

  private reportRetry(pause: number): void {
    const { outage } = this
    if (outage === undefined) return
    const { attempts, lastError } = outage
    this.observe(() =>
      Observation.ListenRetried({ ...this.location, attempt: attempts + 1, pause, message: lastError.message })
    )
  }

  private rejectListener(listener: Subscriber, error: ListenError): void {
    this.remove(listener)
    listener.reject(error)
  }

  private failAll(error: (channel: string) => ListenError): void {
    const all = [...this.listeners]
    this.listeners.clear()
    for (const [channel, listeners] of all) {
      for (const listener of listeners) {
        if (listener.state === "joining") listener.reject(error(channel))
        else listener.fail(error(channel))
      }
    }
    this.synchronize()
  }

  private disconnect(reason: CloseReason): void {
    this.cancelConnect?.()
    this.cancelConnect = undefined
    this.cancelPause?.()
    this.cancelPause = undefined
    this.outage = undefined
    if (this.listening !== undefined) this.closeListening(this.listening, reason)
  }

  private closeListening(listening: ListenConnection, reason: CloseReason): void {
    this.listening = undefined
    this.cancelProbe?.()
    this.cancelProbe = undefined
    this.handover?.cancel()
    this.handover = undefined
    listening.stopHeartbeat()
    if (reason === "broken") listening.connection.destroy(reason)
    else listening.connection.end(reason)
  }

  private observe(make: () => Observation): void {
    if (this.observer.active) this.observer.observe(make())
  }
}
