/**
 * The connections of a pool, idle or in use: the order of their use, their retirement, and their
 * marks for validation.
 */

import type { PoolConfig } from "../../DatabaseConfig.js"
import type { CloseReason } from "../../Observation.js"
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import type { PoolMetrics } from "../observability/poolMetrics.js"
import { markForEviction } from "./invalidation.js"

/**
 * The share of a lifetime over which retirements are spread, so that connections opened together
 * are not closed together.
 */
const lifetimeJitter = 0.025

const maxSweepInterval = 30_000

/** Activity of the connections to one host. */
export interface HostActivity {
  /** The time of the last answer, in ms. */
  readonly heardAt: number
  /** The time of the first request without an answer, or infinity, in ms. */
  readonly waitsSince: number
  /** A number that grows when bytes of an open connection arrive, or leave the process. */
  readonly progress: number
}

export class Connections {
  readonly all = new Set<Connection>()
  /** Idle connections in the order in which they became idle. */
  readonly idle: Array<Connection> = []
  /** A connection whose last answer is older than this moment must be validated. */
  private suspectBefore = 0
  /** The connections that {@link retireAll} has retired. */
  private readonly retired = new WeakSet<Connection>()
  private sweeper: clock.Timer | undefined
  private sweepAt = Number.POSITIVE_INFINITY
  private usable = 0

  constructor(
    private readonly config: PoolConfig,
    private readonly metrics: Pick<PoolMetrics, "setConnections">
  ) {}

  /**
   * Returns the number of connections that can be used. A connection that is closing cannot, nor
   * one whose statement is being cancelled.
   */
  get openCount(): number {
    return this.usable
  }

  /**
   * Counts the connections that can be used, and updates the gauges. Called when a connection is
   * added, is closed or reports a change. A checkout or a checkin does not change the count.
   */
  countUsable(): void {
    this.usable = 0
    for (const connection of this.all) if (connection.isUsable) this.usable++
    this.updateGauges()
  }

  /** Checks if more connections than `limit` can be used. */
  exceeds(limit: number): boolean {
    return this.all.size > limit && this.openCount > limit
  }

  /** Adds a new connection and sets its retirement. It counts as in use until {@link addIdle}. */
  add(connection: Connection): void {
    this.all.add(connection)
    this.countUsable()
    connection.retireAt = connection.createdAt + this.config.maxLifetime * (1 - clock.random() * lifetimeJitter)
  }

  /** Deletes a connection that is closed. */
  delete(connection: Connection): void {
    this.remove(connection)
    this.all.delete(connection)
    this.countUsable()
  }

  /** Removes a connection from the idle ones. */
  remove(connection: Connection): void {
    const { idle } = this
    if (this.config.idleExit) connection.keepProcess(true)
    if (idle[idle.length - 1] === connection) idle.pop()
    else {
      const i = idle.indexOf(connection)
      if (i >= 0) idle.splice(i, 1)
    }
    this.updateGauges()
  }

  /** Adds a connection to the idle ones, and schedules a sweep. */
  addIdle(connection: Connection): void {
    this.idle.push(connection)
    this.updateGauges()
    if (this.config.idleExit) connection.keepProcess(false)
    if (this.sweeper === undefined || connection.retireAs !== "aged") {
      this.sweepWithin(Math.min(this.sweepInterval, connection.retireAt - clock.now()))
    }
  }

  /**
   * Returns the idle connection to use next. It stays idle until {@link remove}. Connections before
   * it that are due for retirement are closed.
   */
  peekIdle(now: number): Connection | undefined {
    const { idle } = this
    while (idle.length > 0) {
      const connection = this.config.order === "lifo" ? idle[idle.length - 1] : idle[0]
      if (connection === undefined) return undefined
      const reason = this.retirementReason(connection, now)
      if (reason === undefined) return connection
      this.remove(connection)
      connection.end(reason)
    }
    return undefined
  }

  /** Returns the reason for the retirement of a connection, if the retirement is due. */
  retirementReason(connection: Connection, now: number): CloseReason | undefined {
    return now > connection.retireAt ? connection.retireAs : undefined
  }

  /** Checks if a connection must be validated before its next use. */
  isSuspect(connection: Connection, now: number): boolean {
    return connection.lastAnswer <= this.suspectBefore || now - connection.lastAnswer > this.config.validateAfterIdle
  }

  /** Marks all connections for validation after one was lost, because others may be lost, too. */
  suspectAll(): void {
    this.suspectBefore = clock.now()
  }

  /**
   * Marks all connections for validation, and closes the idle ones that have received no answer
   * since a moment, because the validation of each would wait for its timeout.
   */
  discardSilent(since: number): void {
    this.suspectAll()
    for (const connection of [...this.idle]) {
      if (connection.lastAnswer > since) continue
      this.remove(connection)
      connection.destroy("invalid")
    }
  }

  /**
   * Evicts the connections that were opened before a moment and, if `processId` is set, have this
   * server process. They are closed now if `mode` is `"hard"`, otherwise at their next checkout or
   * checkin. Returns their number.
   */
  invalidate(mode: "soft" | "hard", before: number, processId: number | undefined): number {
    const matches = markForEviction(this.all, before, processId)
    for (const connection of matches) {
      if (mode === "soft") continue
      if (this.idle.includes(connection)) {
        this.remove(connection)
        connection.end("invalidated")
      } else connection.abort("invalidated")
    }
    return matches.length
  }

  /**
   * Retires all connections after a connection (`source`) or a connect has found that the server
   * has the wrong role. Idle connections are closed now, those in use at their checkin. A `source`
   * that an earlier call has retired is ignored. Otherwise its end would retire the connections
   * that were opened meanwhile, their end would retire the next ones, and so on.
   */
  retireAll(reason: CloseReason, source?: Connection | undefined): void {
    if (source !== undefined && this.retired.has(source)) return
    for (const connection of [...this.all]) {
      if (connection.broken !== undefined) continue
      this.retired.add(connection)
      connection.retireAt = Number.NEGATIVE_INFINITY
      connection.retireAs = reason
      if (!this.idle.includes(connection)) continue
      this.remove(connection)
      connection.end(reason)
    }
  }

  /**
   * Retires the connections to all hosts but one. Idle connections are closed now, those in use at
   * their checkin, or now if there is an error: they are given up with it.
   */
  retireOtherHosts(host: string, error: Error | undefined): void {
    for (const connection of [...this.all]) {
      if (connection.server.name === host || connection.broken !== undefined) continue
      this.retired.add(connection)
      connection.retireAt = Number.NEGATIVE_INFINITY
      connection.retireAs = "wrongRole"
      if (this.idle.includes(connection)) {
        this.remove(connection)
        connection.end("wrongRole")
      } else if (error !== undefined) connection.giveUp(error)
    }
  }

  /** Returns the time of the last answer on any connection, in ms. */
  get heardAt(): number {
    let heardAt = Number.NEGATIVE_INFINITY
    for (const { lastAnswer } of this.all) heardAt = Math.max(heardAt, lastAnswer)
    return heardAt
  }

  /** Returns the times of the last answer of a host and of the first request that awaits one. */
  activityOf(host: string): HostActivity {
    let heardAt = Number.NEGATIVE_INFINITY
    let waitsSince = Number.POSITIVE_INFINITY
    let progress = 0
    for (const connection of this.all) {
      if (connection.server.name !== host || connection.broken !== undefined) continue
      heardAt = Math.max(heardAt, connection.lastAnswer)
      waitsSince = Math.min(waitsSince, connection.waitsSince ?? Number.POSITIVE_INFINITY)
      progress += connection.progress
    }
    return { heardAt, waitsSince, progress }
  }

  /** Gives up all connections to a host that does not answer. */
  giveUpHost(host: string, error: Error): void {
    for (const connection of [...this.all]) {
      if (connection.server.name === host && connection.broken === undefined) connection.giveUp(error)
    }
  }

  /**
   * Retires the connections whose credentials are older than a generation. The retirements are
   * spread over time, and a connection in use is not closed before its checkin.
   */
  retireOldCredentials(generation: number): void {
    const now = clock.now()
    const spread = Math.min(this.config.maxLifetime * lifetimeJitter, maxSweepInterval)
    for (const connection of this.all) {
      if (connection.generation >= generation || connection.retireAs !== "aged") continue
      connection.retireAt = Math.min(connection.retireAt, now + clock.random() * spread)
      connection.retireAs = "oldCredentials"
    }
    if (this.idle.length > 0) this.sweepWithin(spread / 4)
  }

  /** Closes the idle connections of a pool that is closed. */
  endIdle(): void {
    for (const connection of this.idle.splice(0)) connection.end("shutdown")
  }

  /** Aborts all connections. */
  abortAll(reason: CloseReason): void {
    for (const connection of this.all) connection.abort(reason)
  }

  stop(): void {
    clock.clear(this.sweeper)
  }

  private updateGauges(): void {
    this.metrics.setConnections(this.idle.length, this.usable - this.idle.length)
  }

  /** Returns the interval between two sweeps of the idle connections. */
  private get sweepInterval(): number {
    const shortest = Math.min(this.config.idleTimeout, this.config.maxLifetime)
    return Number.isFinite(shortest) ? Math.min(Math.max(shortest / 4, 10), maxSweepInterval) : Number.POSITIVE_INFINITY
  }

  private sweepWithin(millis: number): void {
    const at = clock.now() + millis
    if (!Number.isFinite(at) || (this.sweeper !== undefined && this.sweepAt <= at)) return
    clock.clear(this.sweeper)
    this.sweepAt = at
    this.sweeper = clock.timer(millis, () => {
      this.sweeper = undefined
      this.sweep()
    })
    this.sweeper.unref()
  }

  /**
   * Closes the idle connections that are due for retirement, and those above `minConnections` that
   * have been idle for too long.
   */
  private sweep(): void {
    const now = clock.now()
    let spare = this.openCount - this.config.minConnections
    let next = this.sweepInterval
    for (const connection of [...this.idle]) {
      const isIdle = spare > 0 && now - connection.lastAnswer > this.config.idleTimeout
      const reason = this.retirementReason(connection, now) ?? (isIdle ? "idle" : undefined)
      if (reason === undefined) {
        next = Math.min(next, Math.max(10, connection.retireAt - now))
        continue
      }
      spare--
      this.remove(connection)
      connection.end(reason)
    }
    if (this.idle.length > 0) this.sweepWithin(next)
  }
}
