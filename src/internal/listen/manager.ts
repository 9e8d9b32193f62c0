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
import { Handover, quoted } from "./handover.js"
import type { Subscriber } from "./subscriber.js"

/**
 * The pauses of one outage, before each attempt but that of a newcomer. `go` is called after the pause, with `false` where there is to
 * be no attempt any more; the returned function gives up.
 */
export interface Pauses {
  readonly next: (error: StatementError, go: (again: boolean) => void) => () => void
}

/** From the loss of the connection until every channel is listened to again. */
interface Outage {
  readonly since: number
  readonly pauses: Pauses
  /** What happened first. */
  readonly message: string
  /** What happened last. */
  error: StatementError
  attempts: number
}

const none: ReadonlyArray<never> = []

/** The longest goodbye, in ms. */
const longestGoodbye = 1000

export class ListenManager {
  private readonly listeners = new Map<string, Set<Subscriber>>()
  private line: ListenConnection | undefined
  private outage: Outage | undefined
  /** What gives up the connect, the look whether anything is heard, or the pause that is under way. */
  private connecting: (() => void) | undefined
  private probing: (() => void) | undefined
  private pausing: (() => void) | undefined
  /** All connections whose sockets are not closed yet. */
  private readonly open = new Set<Connection>()
  private closing = false
  private onEmpty = () => {}
  private readonly owner: Owner
  private readonly place: ErrorLocation
  /** How another connection takes over from the one that listens, while it does. */
  private succession: Handover | undefined
  /** What ends the pause until the next one may. */
  private resting: (() => void) | undefined
  /** Connections that were begun earlier are not wanted any more. */
  private invalidBefore = Number.NEGATIVE_INFINITY
  private readonly unfollow: () => void

  constructor(
    private readonly config: DatabaseConfig,
    private readonly credentials: CredentialSource,
    private readonly observer: Observer,
    /** Begins the pauses of an outage; `announce` is told how long each is going to be, in ms. */
    private readonly pauses: (announce: (pause: number) => void) => Pauses
  ) {
    this.place = { database: config.name, server: config.writer.name }
    this.unfollow = credentials.follow(() => this.follow())
    this.owner = {
      lost: (connection, error) => {
        if (this.line?.connection === connection) this.lost(this.line, error)
      },
      closed: (connection) => {
        this.open.delete(connection)
        if (this.open.size === 0) this.onEmpty()
      }
    }
  }

  /** A listener wants to hear. It is told when it does, or why it cannot. */
  join(listener: Subscriber): void {
    const { channel } = listener
    if (this.closing) return listener.refuse(new DatabaseClosed(this.place))
    const others = this.listeners.get(channel)
    if (others === undefined) this.listeners.set(channel, new Set([listener]))
    else others.add(listener)
    if (this.line?.heard.has(channel) === true) listener.hears()
    // who comes new does not wait for a pause to end, nor does anybody who connects for a statement
    else if (this.line === undefined) this.dial()
    else this.follow()
  }

  /** A listener wants to hear no more. */
  leave(listener: Subscriber): void {
    const others = this.listeners.get(listener.channel)
    if (others === undefined || !others.delete(listener)) return
    if (others.size === 0) this.listeners.delete(listener.channel)
    this.follow()
  }

  /** Gives up the connection if it is meant, at once or when another has taken over; gives how many it were. */
  invalidate({ before, mode, processId }: Invalidation): number {
    if (processId === undefined) this.invalidBefore = Math.max(this.invalidBefore, before)
    const { line } = this
    const meant = markForEviction(this.open, before, processId)
    if (mode === "hard" && line !== undefined && meant.includes(line.connection)) {
      this.lost(line, new Error("the connection was invalidated"), "invalidated")
    } else this.follow()
    return meant.length
  }

  /** Ends every listener, and calls back when all sockets are closed. */
  close(timeout: number, done: () => void): void {
    this.closing = true
    this.unfollow()
    this.resting?.()
    this.hangUp("shutdown")
    this.end(() => new DatabaseClosed(this.place))
    const impatient = clock.timer(Math.min(timeout, longestGoodbye), () => {
      for (const connection of this.open) connection.destroy("shutdown")
    })
    this.onEmpty = () => {
      clock.clear(impatient)
      done()
    }
    if (this.open.size === 0) this.onEmpty()
  }

  /** Does the next thing that makes the connection hear what the listeners want to hear, if it is free. */
  private follow(): void {
    if (this.listeners.size === 0) return this.hangUp("idle")
    const { line } = this
    if (line === undefined || !line.sound || line.busy || this.succession?.isCrossing === true) return
    const missing = [...this.listeners.keys()].filter((channel) => !line.heard.has(channel))
    // those who have heard before hear again all at once: the commands of one text are one transaction
    const returning = missing.filter((channel) => this.on(channel).some(({ state }) => state === "deaf"))
    if (returning.length > 0) return this.listen(line, returning)
    // a refusal of a new one is its own
    if (missing.length > 0) return this.listen(line, missing.slice(0, 1))
    const left = [...line.heard].filter((channel) => !this.listeners.has(channel))
    if (left.length > 0) {
      for (const channel of left) line.heard.delete(channel)
      return line.command(quoted("UNLISTEN", left), () => this.follow())
    }
    if (this.succession !== undefined) this.succession.cross()
    else if (this.resting === undefined && this.isOutdated(line.connection)) this.succeed(line)
  }

  /** Whether a connection is to make room for another: it was made with old credentials, or somebody has asked for it. */
  private isOutdated({ generation, retireAt }: Connection): boolean {
    return generation < this.credentials.generation || retireAt <= clock.now()
  }

  /** Makes another connection and goes over to it. */
  private succeed(line: ListenConnection): void {
    this.succession = new Handover(line, {
      connect: (done) => this.connect(done),
      line: (connection) => this.makeLine(connection),
      patience: this.config.pool.connectTimeout,
      wanted: () => this.listeners.keys(),
      ready: () => this.follow(),
      succeeded: (next, kept) => {
        this.settled()
        const reason = line.connection.retireAs === "invalidated" ? "invalidated" : "oldCredentials"
        this.drop(line, reason)
        this.line = next
        next.sound = true
        for (const { channel, payload, processId } of kept) this.heard(next, channel, payload, processId)
        this.follow()
      },
      failed: () => {
        this.settled()
        this.follow()
      },
      missed: (error) => {
        this.settled()
        this.lost(line, error)
      }
    })
  }

  /** The next succession has to wait, whatever came of this one: credentials may be other ones with each connection that is made. */
  private settled(): void {
    this.succession = undefined
    this.resting = clock.later(this.config.pool.connectTimeout, () => {
      this.resting = undefined
      this.follow()
    })
  }

  private on(channel: string): ReadonlyArray<Subscriber> {
    const listeners = this.listeners.get(channel)
    return listeners === undefined ? none : [...listeners]
  }

  private listen(line: ListenConnection, channels: ReadonlyArray<string>): void {
    line.command(quoted("LISTEN", channels), (failure) => {
      if (this.line !== line) return
      if (failure === undefined) {
        this.confirm(line, channels)
        return this.follow()
      }
      const error = toStatementError(this.place, failure, "notSent")
      const newcomers = channels.flatMap((channel) => this.on(channel))
      if (newcomers.some(({ state }) => state === "deaf")) return this.giveUp(line, error)
      for (const listener of newcomers) this.refuse(listener, error)
      this.follow()
    })
  }

  /** The server listens to these channels. */
  private confirm(line: ListenConnection, channels: ReadonlyArray<string>): void {
    const { outage } = this
    for (const channel of channels) {
      line.heard.add(channel)
      for (const listener of this.on(channel)) listener.hears(outage?.message)
    }
    if (outage === undefined) return
    this.outage = undefined
    const { attempts, since } = outage
    this.observe(() => Observation.ListenRestored({ ...this.place, attempts, took: clock.now() - since }))
  }

  private heard(line: ListenConnection, channel: string, payload: string, processId: number): void {
    if (line.echo?.channel === channel) return line.echo.heard()
    const { succession } = this
    if (succession?.concerns(line) === true) return succession.fromNext({ channel, payload, processId })
    if (this.line !== line || succession?.fromOld(channel) === false) return
    for (const listener of this.listeners.get(channel) ?? none) {
      if (!listener.offer(payload, processId)) continue
      this.observe(() => Observation.ListenOverflowed({ database: this.place.database, channel }))
      if (listener.toleratesGaps) continue
      listener.fail(new ListenFailed({ ...this.place, channel, reason: "overflow" }))
      this.leave(listener)
    }
  }

  private connect(done: (failure: ConnectFailure | undefined, connection: Connection | undefined) => void): () => void {
    const { pool, session, writer: server } = this.config
    const opening = { server, session, credentials: this.credentials, readOnly: false, timeout: pool.connectTimeout }
    const attempt = (isFirst: boolean): (() => void) => {
      const begun = clock.now()
      return connect(opening, this.owner, (failure, connection) => {
        if (connection !== undefined) {
          this.open.add(connection)
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

  private dial(): void {
    if (this.connecting !== undefined) return
    this.pausing?.()
    this.pausing = undefined
    if (this.outage !== undefined) this.outage.attempts++
    this.connecting = this.connect((failure, connection) => {
      this.connecting = undefined
      if (connection !== undefined) return this.opened(connection)
      if (failure !== undefined) this.failed(this.connectFailed(failure))
    })
  }

  private connectFailed(failure: ConnectFailure): ConnectFailed {
    const { error, reason } = failure
    return new ConnectFailed({ ...this.place, reason, cause: error, ...permanence(failure) })
  }

  private makeLine(connection: Connection): ListenConnection {
    const { listenHeartbeat, pool } = this.config
    const line = new ListenConnection(connection, pool.connectTimeout, listenHeartbeat, {
      lost: (line, error) => this.lost(line, error),
      idle: () => this.follow()
    })
    connection.onNotification((channel, payload, processId) => this.heard(line, channel, payload, processId))
    return line
  }

  private opened(connection: Connection): void {
    const line = this.makeLine(connection)
    this.line = line
    this.probing = probeDelivery(
      line,
      (done) => this.connect(done),
      this.config.pool.connectTimeout,
      (result) => {
        this.probing = undefined
        if (this.line !== line) return
        switch (result._tag) {
          case "heard":
            line.sound = true
            return this.follow()
          // a pooler that gives each transaction another session leaves those who listen deaf
          case "silent":
            this.hangUp("invalid")
            return this.end(() => this.deafening())
          case "unreachable":
            return this.giveUp(line, this.connectFailed(result.failure))
          case "failed":
            return this.giveUp(line, toStatementError(this.place, result.failure, "notSent"))
        }
      }
    )
  }

  private deafening(): ConfigInvalid {
    return new ConfigInvalid({
      database: this.place.database,
      setting: "writer",
      given: "a pooler that gives each transaction another session, where nothing is heard",
      expected: "the server's own address, or a pooler that keeps sessions, for LISTEN"
    })
  }

  /** The connection is of no use. */
  private giveUp(line: ListenConnection, error: StatementError): void {
    if (this.line !== line) return
    this.drop(line, "invalid")
    this.failed(error)
  }

  private lost(line: ListenConnection, cause: Error, reason: "broken" | "invalidated" = "broken"): void {
    if (this.succession?.concerns(line) === true) return this.succession.fail(cause)
    if (this.line !== line) return
    this.drop(line, reason)
    const { processId } = line.connection
    this.observe(() => Observation.ListenLost({ ...this.place, processId, message: cause.message }))
    this.failed(new Disconnected({ ...this.place, cause, outcome: "notSent" }), cause.message)
  }

  /** There is no connection, for now. */
  private failed(error: StatementError, message: string = error.message): void {
    for (const channel of this.listeners.keys()) {
      for (const listener of this.on(channel)) {
        if (listener.state === "joining") this.refuse(listener, error)
        else if (listener.toleratesGaps) listener.state = "deaf"
        else {
          listener.fail(new ListenFailed({ ...this.place, channel, reason: "disconnected", cause: error }))
          this.leave(listener)
        }
      }
    }
    if (this.listeners.size === 0) return
    const since = clock.now()
    this.outage ??= { since, pauses: this.pauses((pause) => this.announce(pause)), message, error, attempts: 0 }
    this.outage.error = error
    const giveUp = () =>
      this.end((channel) => new ListenFailed({ ...this.place, channel, reason: "disconnected", cause: error }))
    // what a person must mend is not waited for
    if (error._tag === "ConnectFailed" && !isNotSent(error)) return giveUp()
    this.pausing = this.outage.pauses.next(error, (again) => {
      this.pausing = undefined
      if (again) this.dial()
      else giveUp()
    })
  }

  private announce(pause: number): void {
    const { outage } = this
    if (outage === undefined) return
    const { attempts, error } = outage
    this.observe(() =>
      Observation.ListenRetried({ ...this.place, attempt: attempts + 1, pause, message: error.message })
    )
  }

  private refuse(listener: Subscriber, error: ListenError): void {
    this.leave(listener)
    listener.refuse(error)
  }

  private end(error: (channel: string) => ListenError): void {
    const all = [...this.listeners]
    this.listeners.clear()
    for (const [channel, listeners] of all) {
      for (const listener of listeners) {
        if (listener.state === "joining") listener.refuse(error(channel))
        else listener.fail(error(channel))
      }
    }
    this.follow()
  }

  private hangUp(reason: CloseReason): void {
    this.connecting?.()
    this.connecting = undefined
    this.pausing?.()
    this.pausing = undefined
    this.outage = undefined
    if (this.line !== undefined) this.drop(this.line, reason)
  }

  private drop(line: ListenConnection, reason: CloseReason): void {
    this.line = undefined
    this.probing?.()
    this.probing = undefined
    this.succession?.leave()
    this.succession = undefined
    line.leave()
    if (reason === "broken") line.connection.destroy(reason)
    else line.connection.end(reason)
  }

  private observe(make: () => Observation): void {
    if (this.observer.active) this.observer.observe(make())
  }
}
