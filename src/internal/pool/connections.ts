/**
 * The connections of a pool, idle or in use: which is next, which has had its time, which has to show that it is alive.
 */

import type { PoolConfig } from "../../DatabaseConfig.js"
import type { CloseReason } from "../../Observation.js"
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import { markForEviction } from "./eviction.js"

/** The part of a lifetime over which ends are spread, so that connections made together do not die together. */
const jitter = 0.025

const longestSweep = 30_000

export class Connections {
  readonly all = new Set<Connection>()
  /** The one that came back last is at the end. */
  readonly idle: Array<Connection> = []
  /** Connections that last answered before this moment have to show that they are alive. */
  private suspectBefore = 0
  /** Connections that were retired for what another one has found. */
  private readonly retired = new WeakSet<Connection>()
  private sweeper: clock.Timer | undefined
  private sweepAt = Number.POSITIVE_INFINITY

  constructor(private readonly config: PoolConfig) {}

  /** How many are not on their way out, nor may be after an interruption. */
  get open(): number {
    let open = 0
    for (const connection of this.all) if (connection.isUsable) open++
    return open
  }

  /** Whether there are more than that. */
  isOver(most: number): boolean {
    return this.all.size > most && this.open > most
  }

  /** A new connection, in use until it is put back. */
  add(connection: Connection): void {
    this.all.add(connection)
    connection.retireAt = connection.createdAt + this.config.maxLifetime * (1 - clock.random() * jitter)
  }

  /** Takes a connection off the idle ones. */
  take(connection: Connection): void {
    const { idle } = this
    if (this.config.idleExit) connection.keepProcess(true)
    if (idle[idle.length - 1] === connection) idle.pop()
    else {
      const i = idle.indexOf(connection)
      if (i >= 0) idle.splice(i, 1)
    }
  }

  /** Makes a connection idle. */
  put(connection: Connection): void {
    this.idle.push(connection)
    if (this.config.idleExit) connection.keepProcess(false)
    if (this.sweeper === undefined || connection.retireAs !== "aged") {
      this.sweepWithin(Math.min(this.period, connection.retireAt - clock.now()))
    }
  }

  /** The idle connection whose turn it is; those that have had their time are closed on the way. It stays idle until it is taken. */
  next(now: number): Connection | undefined {
    const { idle } = this
    while (idle.length > 0) {
      const connection = this.config.order === "lifo" ? idle[idle.length - 1] : idle[0]
      if (connection === undefined) return undefined
      const due = this.due(connection, now)
      if (due === undefined) return connection
      this.take(connection)
      connection.end(due)
    }
    return undefined
  }

  /** Why a connection must not be handed out any more, if so. */
  due(connection: Connection, now: number): CloseReason | undefined {
    return now > connection.retireAt ? connection.retireAs : undefined
  }

  isSuspect(connection: Connection, now: number): boolean {
    return connection.lastAnswer <= this.suspectBefore || now - connection.lastAnswer > this.config.validateAfterIdle
  }

  /** A connection was lost, so others may be. */
  suspectAll(): void {
    this.suspectBefore = clock.now()
  }

  /** Those that have been silent since then are not asked one by one. */
  discardSilent(since: number): void {
    this.suspectAll()
    for (const connection of [...this.idle]) {
      if (connection.lastAnswer > since) continue
      this.take(connection)
      connection.destroy("invalid")
    }
  }

  /** Ends those that were opened before a moment, or the one of a server process: as `mode` says. Gives how many it meant. */
  invalidate(mode: "soft" | "hard", before: number, processId: number | undefined): number {
    const meant = markForEviction(this.all, before, processId)
    for (const connection of meant) {
      if (mode === "soft") continue
      if (this.idle.includes(connection)) {
        this.take(connection)
        connection.end("invalidated")
      } else connection.abort("invalidated")
    }
    return meant.length
  }

  /**
   * Retires all connections because one has found that its server takes no writes: idle ones end now, those in use when they come back.
   * One that was retired before finds nothing by its end, or its end would retire what was opened meanwhile, and so on without an end.
   */
  retireAll(reason: CloseReason, found?: Connection | undefined): void {
    if (found !== undefined && this.retired.has(found)) return
    for (const connection of [...this.all]) {
      if (connection.broken !== undefined) continue
      this.retired.add(connection)
      connection.retireAt = Number.NEGATIVE_INFINITY
      connection.retireAs = reason
      if (!this.idle.includes(connection)) continue
      this.take(connection)
      connection.end(reason)
    }
  }

  /** Ends those that are older than a generation of credentials, not all at once and none that is in use. */
  retireOlder(generation: number): void {
    const now = clock.now()
    const spread = Math.min(this.config.maxLifetime * jitter, longestSweep)
    for (const connection of this.all) {
      if (connection.generation >= generation || connection.retireAs !== "aged") continue
      connection.retireAt = Math.min(connection.retireAt, now + clock.random() * spread)
      connection.retireAs = "oldCredentials"
    }
    if (this.idle.length > 0) this.sweepWithin(spread / 4)
  }

  stop(): void {
    clock.clear(this.sweeper)
  }

  /** How often idle connections are looked at. */
  private get period(): number {
    const shortest = Math.min(this.config.idleTimeout, this.config.maxLifetime)
    return Number.isFinite(shortest) ? Math.min(Math.max(shortest / 4, 10), longestSweep) : Number.POSITIVE_INFINITY
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

  private sweep(): void {
    const now = clock.now()
    let spare = this.open - this.config.minConnections
    let next = this.period
    for (const connection of [...this.idle]) {
      const isIdle = spare > 0 && now - connection.lastAnswer > this.config.idleTimeout
      const reason = this.due(connection, now) ?? (isIdle ? "idle" : undefined)
      if (reason === undefined) {
        next = Math.min(next, Math.max(10, connection.retireAt - now))
        continue
      }
      spare--
      this.take(connection)
      connection.end(reason)
    }
    if (this.idle.length > 0) this.sweepWithin(next)
  }
}
