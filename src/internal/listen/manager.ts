/**
 * LISTEN: one connection for all channels of a database, opened with the first listener, closed with the last, and made anew when it is
 * lost.
 *
 * Listeners join and leave at once; the connection follows what they want when it can. So no listener waits for another, and none that
 * leaves waits for the network.
 */

import type { DatabaseConfig } from "../../DatabaseConfig.js"
import {
  ConfigInvalid,
  ConnectFailed,
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
import { permanence } from "../connection/connectFailure.js"
import type { ConnectFailure, Connection, Owner } from "../connection/connection.js"
import type { CredentialSource } from "../connection/credentials.js"
import { type ErrorLocation, toStatementError } from "../connection/statementError.js"
import { markForEviction } from "../pool/eviction.js"
import type { Invalidation } from "../pool/pool.js"
import { ListenConnection } from "./connection.js"
import { probeDelivery } from "./deliveryProbe.js"
import { channelCommands, Handover } from "./handover.js"
import type { Subscriber } from "./subscriber.js"

/**
 * The pauses of one outage, before each attempt but that of a newcomer. `go` is called after the pause, with `false` where there is to
 * be no attempt any more; the returned function gives up.
 */
export interface RetryPauses {
  readonly next: (error: StatementError, go: (again: boolean) => void) => () => void
}

/** From the loss of the connection until every channel is listened to again. */
interface Outage {
  readonly since: number
  readonly pauses: RetryPauses
  /** What happened first. */
  readonly firstMessage: string
  /** What happened last. */
  lastError: StatementError
  attempts: number
}

const none: ReadonlyArray<never> = []

/** The longest goodbye, in ms. */
const maxCloseTime = 1000

export class ListenManager {
  private readonly listeners = new Map<string, Set<Subscriber>>()
  private listening: ListenConnection | undefined
  private outage: Outage | undefined
  /** What gives up the connect, the look whether anything is heard, or the pause that is under way. */
  private cancelConnect: (() => void) | undefined
  private cancelProbe: (() => void) | undefined
  private cancelPause: (() => void) | undefined
  /** All connections whose sockets are not closed yet. */
  private readonly openConnections = new Set<Connection>()
  private isClosing = false
  private onEmpty = () => {}
  private readonly owner: Owner
  private readonly location: ErrorLocation
  /** How another connection takes over from the one that listens, while it does. */
  private handover: Handover | undefined
  /** What ends the pause until the next one may. */
  private cancelHandoverDelay: (() => void) | undefined
  /** Connections that were begun earlier are not wanted any more. */
  private invalidBefore = Number.NEGATIVE_INFINITY
  private readonly stopFollowingCredentials: () => void

  constructor(
    private readonly config: DatabaseConfig,
    private readonly credentials: CredentialSource,
    private readonly observer: Observer,
    /** Begins the pauses of an outage; `announce` is told how long each is going to be, in ms. */
    private readonly pauses: (announce: (pause: number) => void) => RetryPauses
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

  /** A listener wants to hear. It is told when it does, or why it cannot. */
  add(listener: Subscriber): void {
    const { channel } = listener
    if (this.isClosing) return listener.reject(new DatabaseClosed(this.location))
    const others = this.listeners.get(channel)
    if (others === undefined) this.listeners.set(channel, new Set([listener]))
    else others.add(listener)
    if (this.listening?.channels.has(channel) === true) listener.onListening()
    // who comes new does not wait for a pause to end, nor does anybody who connects for a statement
    else if (this.listening === undefined) this.connectNow()
    else this.synchronize()
  }

  /** A listener wants to hear no more. */
  remove(listener: Subscriber): void {
    const others = this.listeners.get(listener.channel)
    if (others === undefined || !others.delete(listener)) return
    if (others.size === 0) this.listeners.delete(listener.channel)
    this.synchronize()
  }

  /** Gives up the connection if it is meant, at once or when another has taken over; gives how many it were. */
  invalidate({ before, mode, processId }: Invalidation): number {
    if (processId === undefined) this.invalidBefore = Math.max(this.invalidBefore, before)
    const { listening } = this
    const meant = markForEviction(this.openConnections, before, processId)
    if (mode === "hard" && listening !== undefined && meant.includes(listening.connection)) {
      this.onLost(listening, new Error("the connection was invalidated"), "invalidated")
    } else this.synchronize()
    return meant.length
  }

  /** Ends every listener, and calls back when all sockets are closed. */
  close(timeout: number, done: () => void): void {
    this.isClosing = true
    this.stopFollowingCredentials()
    this.cancelHandoverDelay?.()
    this.disconnect("shutdown")
    this.failAll(() => new DatabaseClosed(this.location))
    const impatient = clock.timer(Math.min(timeout, maxCloseTime), () => {
      for (const connection of this.openConnections) connection.destroy("shutdown")
    })
    this.onEmpty = () => {
      clock.clear(impatient)
      done()
    }
    if (this.openConnections.size === 0) this.onEmpty()
  }

  /** Does the next thing that makes the connection hear what the listeners want to hear, if it is free. */
  private synchronize(): void {
    if (this.listeners.size === 0) return this.disconnect("idle")
    const { listening } = this
    if (listening === undefined || !listening.isVerified || listening.busy || this.handover?.isSendingMark === true)
      return
    const missing = [...this.listeners.keys()].filter((channel) => !listening.channels.has(channel))
    // those who have heard before hear again all at once: the commands of one text are one transaction
    const returning = missing.filter((channel) => this.listenersOf(channel).some(({ state }) => state === "deaf"))
    if (returning.length > 0) return this.listen(listening, returning)
    // a refusal of a new one is its own
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

  /** Whether a connection is to make room for another: it was made with old credentials, or somebody has asked for it. */
  private isOutdated({ generation, retireAt }: Connection): boolean {
    return generation < this.credentials.generation || retireAt <= clock.now()
  }

  /** Makes another connection and goes over to it. */
  private startHandover(line: ListenConnection): void {
    this.handover = new Handover(line, {
      connect: (done) => this.connect(done),
      makeListening: (connection) => this.makeListening(connection),
      timeout: this.config.pool.connectTimeout,
      channels: () => this.listeners.keys(),
      onReady: () => this.synchronize(),
      onSucceeded: (next, kept) => {
        this.onHandoverEnd()
        const reason = line.connection.retireAs === "invalidated" ? "invalidated" : "oldCredentials"
        this.closeListening(line, reason)
        this.listening = next
        next.isVerified = true
        for (const { channel, payload, processId } of kept) this.onMessage(next, channel, payload, processId)
        this.synchronize()
      },
      onFailed: () => {
        this.onHandoverEnd()
        this.synchronize()
      },
      onMissed: (error) => {
        this.onHandoverEnd()
        this.onLost(line, error)
      }
    })
  }

  /** The next succession has to wait, whatever came of this one: credentials may be other ones with each connection that is made. */
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

  private listen(line: ListenConnection, channels: ReadonlyArray<string>): void {
    line.command(channelCommands("LISTEN", channels), (failure) => {
      if (this.listening !== line) return
      if (failure === undefined) {
        this.onListening(line, channels)
        return this.synchronize()
      }
      const error = toStatementError(this.location, failure, "notSent")
      const newcomers = channels.flatMap((channel) => this.listenersOf(channel))
      if (newcomers.some(({ state }) => state === "deaf")) return this.closeAfterFailure(line, error)
      for (const listener of newcomers) this.rejectListener(listener, error)
      this.synchronize()
    })
  }

  /** The server listens to these channels. */
  private onListening(line: ListenConnection, channels: ReadonlyArray<string>): void {
    const { outage } = this
    for (const channel of channels) {
      line.channels.add(channel)
      for (const listener of this.listenersOf(channel)) listener.onListening(outage?.firstMessage)
    }
    if (outage === undefined) return
    this.outage = undefined
    const { attempts, since } = outage
    this.observe(() => Observation.ListenRestored({ ...this.location, attempts, took: clock.now() - since }))
  }

  private onMessage(line: ListenConnection, channel: string, payload: string, processId: number): void {
    if (line.probe?.channel === channel) return line.probe.channels()
    const { handover } = this
    if (handover?.isNext(line) === true) return handover.onNextMessage({ channel, payload, processId })
    if (this.listening !== line || handover?.onOldMessage(channel) === false) return
    for (const listener of this.listeners.get(channel) ?? none) {
      if (!listener.receive(payload, processId)) continue
      this.observe(() => Observation.ListenOverflowed({ database: this.location.database, channel }))
      if (listener.toleratesGaps) continue
      listener.fail(new ListenFailed({ ...this.location, channel, reason: "overflow" }))
      this.remove(listener)
    }
  }

  private connect(done: (failure: ConnectFailure | undefined, connection: Connection | undefined) => void): () => void {
    const { pool, session, writer: server } = this.config
    const opening = { server, session, credentials: this.credentials, readOnly: false, timeout: pool.connectTimeout }
    const attempt = (isFirst: boolean): (() => void) => {
      const begun = clock.now()
      return connect(opening, this.owner, (failure, connection) => {
        if (connection !== undefined) {
          this.openConnections.add(connection)
          if (begun <= this.invalidBefore) connection.retireAt = begun
          // once: where each connection has other credentials, two who connect at the same time would never be done
          if (isFirst && this.isOutdated(connection)) {
            connection.end(connection.retireAt === begun ? "invalidated" : "oldCredentials")
            giveUp = attempt(false)
            return
          }
        }
        done(failure, connection)
      })
    }
    let giveUp = attempt(true)
    return () => giveUp()
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
    const { error, reason } = failure
    return new ConnectFailed({ ...this.location, reason, cause: error, ...permanence(failure) })
  }

  private makeListening(connection: Connection): ListenConnection {
    const { listenHeartbeat, pool } = this.config
    const line = new ListenConnection(connection, pool.connectTimeout, listenHeartbeat, {
      onLost: (line, error) => this.onLost(line, error),
      onIdle: () => this.synchronize()
    })
    connection.onNotification((channel, payload, processId) => this.onMessage(line, channel, payload, processId))
    return line
  }

  private onConnected(connection: Connection): void {
    const line = this.makeListening(connection)
    this.listening = line
    this.cancelProbe = probeDelivery(
      line,
      (done) => this.connect(done),
      this.config.pool.connectTimeout,
      (result) => {
        this.cancelProbe = undefined
        if (this.listening !== line) return
        switch (result._tag) {
          case "heard":
            line.isVerified = true
            return this.synchronize()
          // a pooler that gives each transaction another session leaves those who listen deaf
          case "silent":
            this.disconnect("invalid")
            return this.failAll(() => this.poolerCannotListen())
          case "unreachable":
            return this.closeAfterFailure(line, this.connectFailed(result.failure))
          case "failed":
            return this.closeAfterFailure(line, toStatementError(this.location, result.failure, "notSent"))
        }
      }
    )
  }

  private poolerCannotListen(): ConfigInvalid {
    return new ConfigInvalid({
      database: this.location.database,
      setting: "writer",
      given: "a pooler that gives each transaction another session, where nothing is heard",
      expected: "the server's own address, or a pooler that keeps sessions, for LISTEN"
    })
  }

  /** The connection is of no use. */
  private closeAfterFailure(line: ListenConnection, error: StatementError): void {
    if (this.listening !== line) return
    this.closeListening(line, "invalid")
    this.onFailure(error)
  }

  private onLost(line: ListenConnection, cause: Error, reason: "broken" | "invalidated" = "broken"): void {
    if (this.handover?.isNext(line) === true) return this.handover.fail(cause)
    if (this.listening !== line) return
    this.closeListening(line, reason)
    const { processId } = line.connection
    this.observe(() => Observation.ListenLost({ ...this.location, processId, message: cause.message }))
    this.onFailure(new Disconnected({ ...this.location, cause, outcome: "notSent" }), cause.message)
  }

  /** There is no connection, for now. */
  private onFailure(error: StatementError, message: string = error.message): void {
    for (const channel of this.listeners.keys()) {
      for (const listener of this.listenersOf(channel)) {
        if (listener.state === "joining") this.rejectListener(listener, error)
        else if (listener.toleratesGaps) listener.state = "deaf"
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
    const giveUp = () =>
      this.failAll((channel) => new ListenFailed({ ...this.location, channel, reason: "disconnected", cause: error }))
    // what a person must mend is not waited for
    if (error._tag === "ConnectFailed" && !isNotSent(error)) return giveUp()
    this.cancelPause = this.outage.pauses.next(error, (again) => {
      this.cancelPause = undefined
      if (again) this.connectNow()
      else giveUp()
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

  private closeListening(line: ListenConnection, reason: CloseReason): void {
    this.listening = undefined
    this.cancelProbe?.()
    this.cancelProbe = undefined
    this.handover?.cancel()
    this.handover = undefined
    line.stopHeartbeat()
    if (reason === "broken") line.connection.destroy(reason)
    else line.connection.end(reason)
  }

  private observe(make: () => Observation): void {
    if (this.observer.active) this.observer.observe(make())
  }
}
