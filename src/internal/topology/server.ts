/**
 * One server of a database: its pools, its health and its lag.
 */

import type { DatabaseConfig, PoolConfig, ServerConfig } from "../../DatabaseConfig.js"
import type { Observer } from "../../Observation.js"
import type { Role, ServerState, ServerStatus } from "../../Topology.js"
import * as clock from "../concurrency/clock.js"
import type { HostLocator } from "../connection/connect.js"
import { connectFailed } from "../connection/connectFailure.js"
import type { CredentialSource } from "../connection/credentials.js"
import type { ReaderMetrics } from "../observability/serverMetrics.js"
import type { HostActivity } from "../pool/connections.js"
import { Pool } from "../pool/pool.js"
import type { PoolDependencies } from "../pool/poolDependencies.js"
import { initial as initialLag, isUnsettled, onLag } from "./lagState.js"
import { PositionQuestions } from "./positionQuestions.js"
import type { Lag } from "./primaryPositions.js"
import type { ServerReport } from "./probeReport.js"
import type { ReplayWait } from "./replayWait.js"
import { type Health, initial, isUsable, onAnswer, onChosen, onFailure, onSilence, shown } from "./serverHealth.js"

/** Objects of a database that its servers share. */
export interface ServerDependencies
  extends Pick<PoolDependencies, "credentials" | "makeMetrics" | "observer" | "outageWaiters" | "tasks"> {
  readonly config: DatabaseConfig
  readonly locator: HostLocator | undefined
  readonly metrics: ReaderMetrics | undefined
  /** Checks if the host of a reader is known to be the writer of the cluster, so that it serves no reads. */
  readonly isWriter: () => boolean
}

/** Monitor of a server, which tries it after a failure, so that no read has to. */
export interface RunningMonitor {
  /** Called after a failure. */
  readonly onDown: () => void
  /** Called when the server seems to be back: it checks the server at once. */
  readonly onRecovery: () => void
  /** Returns the time when it has last seen progress of the connections. */
  readonly progressAt: () => number
}

/** The weight of the latest latency in the average. */
const latencyShare = 0.2

const isStale = ({ bytes }: Lag): boolean => bytes === Number.POSITIVE_INFINITY

/**
 * Returns the settings of the pool for reads on the primary. If `limit` is below `maxConnections`, the
 * pool has no overflow, so that it never exceeds the limit.
 */
const primaryReads = (pool: PoolConfig, limit: number): PoolConfig => ({
  ...pool,
  minConnections: 0,
  maxConnections: limit,
  maxOverflow: limit < pool.maxConnections ? 0 : pool.maxOverflow
})

/** Server of a database, with its pools. */
export class Server {
  /** The pool of connections for writes, if the server is the writer. */
  readonly writes: Pool | undefined
  /** The pool of connections with sessions that refuse writes. */
  readonly reads: Pool
  /** The source of the user and password of each connection. */
  readonly credentials: CredentialSource
  private readonly config: DatabaseConfig
  private readonly observer: Observer
  private readonly metrics: ReaderMetrics | undefined
  private readonly isWriter: () => boolean
  private isRemoved = false
  private health: Health = initial
  private lagState = initialLag
  /** The lag of a reader by the last check; `undefined` if it is unknown. */
  lag: Lag | undefined
  /** The average time of a round trip, in ms; `undefined` without a monitor. */
  latency: number | undefined
  private timeline: number | undefined
  /** The questions for the position of a primary. */
  readonly positionQuestions: PositionQuestions
  /** The wait for its replay, if the server is monitored. */
  replayWait: ReplayWait | undefined
  /** The monitor of the server, while it runs. */
  monitor: RunningMonitor | undefined

  constructor(
    readonly server: ServerConfig,
    readonly role: Role,
    { config, credentials, isWriter, locator, makeMetrics, metrics, observer, outageWaiters, tasks }: ServerDependencies
  ) {
    this.config = config
    this.credentials = credentials
    this.observer = observer
    this.metrics = metrics
    this.isWriter = isWriter
    const { maxPrimaryReads } = config.routing
    const database = config.name
    const pool = { ...config.pool, connectTimeout: server.connectTimeout }
    const session = { ...config.session, ...server.own }
    const common = { database, server, session, credentials, tasks, observer, makeMetrics, outageWaiters, locator }
    this.writes = role === "writer" ? new Pool({ ...common, pool, readOnly: false }) : undefined
    this.reads = new Pool({
      ...common,
      // no connection is kept open in the read-only pool of the primary, because it is used only
      // when no replica can serve a read
      pool: role === "writer" ? primaryReads(pool, maxPrimaryReads) : pool,
      readOnly: true,
      isWarm: () => !this.isLeftOut,
      onHealth: role === "reader" ? (healthy, message) => this.onConnect(healthy, message) : undefined
    })
    this.positionQuestions = new PositionQuestions(this.reads)
    credentials.follow((generation) =>
      observer.observe({ _tag: "CredentialsRotated", database, server: server.name, generation })
    )
  }

  get name(): string {
    return this.server.name
  }

  get pools(): ReadonlyArray<Pool> {
    return this.writes === undefined ? [this.reads] : [this.writes, this.reads]
  }

  /**
   * Checks if the server takes part in routing. After a failure a reader is left out until its monitor
   * has an answer; without a monitor for `readerRetryDelay`, and then one read at a time tries it. The
   * host of a cluster that is the writer is no reader.
   */
  isUsable(now: number): boolean {
    const { health } = this
    // an idle connection may serve the trial, without a connect
    if (health._tag === "trial" && this.reads.connections.heardAt > health.since) this.setHealth(onAnswer())
    return isUsable(this.health, now) && !this.isLeftOut
  }

  private get isLeftOut(): boolean {
    return this.isRemoved || this.isWriter()
  }

  /**
   * Takes the server out of the database: waiters go to other servers, idle connections are closed,
   * and those in use when they are checked in. `callback` is called when all are closed.
   */
  remove(callback: () => void): void {
    this.isRemoved = true
    this.updateUsable()
    const location = { database: this.config.name, server: this.name }
    const error = new Error("the host was removed from the cluster")
    let left = this.pools.length
    const onClosed = () => {
      left--
      if (left === 0) callback()
    }
    const failure = connectFailed(location, { reason: "unreachable", error })
    for (const pool of this.pools) pool.close(Number.POSITIVE_INFINITY, onClosed, failure)
  }

  /** True after a failure, until the server has answered. */
  get isDown(): boolean {
    return this.health._tag === "down" || this.health._tag === "trial"
  }

  /** True while callers wait for its answers. */
  get isSuspect(): boolean {
    return this.health._tag === "suspect"
  }

  /** True if the server is left out because of its lag. */
  get isBehind(): boolean {
    return this.lagState._tag === "Behind"
  }

  /** True if no check has found the lag yet, or none since an outage. */
  get isUnchecked(): boolean {
    return this.lagState._tag === "Unchecked"
  }

  /** True if the next check may change the state, so that it should come soon. */
  get isUnsettled(): boolean {
    return this.isSuspect || isUnsettled(this.lagState)
  }

  /** True if its pool has no connection left for another caller. */
  get isBusy(): boolean {
    const { maxConnections, maxOverflow } = this.reads.options.pool
    return this.reads.load >= maxConnections + maxOverflow
  }

  /** Records that a read has been sent to the server. */
  onChosen(now: number): void {
    if (this.isDown) {
      this.health = onChosen(this.health, now, now + this.config.readerRetryDelay)
    }
  }

  /** Records that callers wait for answers. */
  onSilence(): void {
    this.setHealth(onSilence(this.health))
  }

  /** Records an answer to the monitor. */
  onReport(report: ServerReport, latency: number | undefined): void {
    this.timeline = report.timeline
    // each of its logins would be refused
    if (this.server.target === "standby" && !report.isStandby && !this.isWriter())
      return this.onFailure("it is no standby")
    this.setHealth(onAnswer())
    if (latency !== undefined) {
      this.latency = this.latency === undefined ? latency : this.latency + latencyShare * (latency - this.latency)
      this.metrics?.setLatency(this.latency)
    }
  }

  /** Records a failed connect, or a silence. */
  onFailure(message: string): void {
    const until = this.monitor === undefined ? clock.now() + this.config.readerRetryDelay : Number.POSITIVE_INFINITY
    this.setHealth(onFailure(message, until))
    this.monitor?.onDown()
  }

  /**
   * Records that the server is alive, but refuses its monitor: reads have to try it, unless the last
   * check has found that it is too far behind.
   */
  onRefusal(): void {
    if (this.health._tag === "down") this.setHealth(onFailure(this.health.message, clock.now()))
    else this.setHealth(onAnswer())
    this.setLag(undefined)
  }

  /** Returns the activity of all pools on a host. */
  activityOf(host: string): HostActivity {
    const all = this.pools.map((pool) => pool.activityOf(host))
    return {
      heardAt: Math.max(...all.map(({ heardAt }) => heardAt)),
      waitsSince: Math.min(...all.map(({ waitsSince }) => waitsSince)),
      progress: all.reduce((sum, { progress }) => sum + progress, 0)
    }
  }

  /** Checks if a connection to a host has received something since a moment. */
  hasHeard(host: string, since: number): boolean {
    return this.activityOf(host).heardAt > since || (this.monitor?.progressAt() ?? since) > since
  }

  /** Gives up all connections to a host that does not answer. */
  giveUpHost(host: string, error: Error): void {
    for (const pool of this.pools) pool.giveUpHost(host, error)
  }

  get status(): ServerStatus {
    const { lag, latency, timeline } = this
    const up = isUsable(this.health, clock.now()) && !this.isLeftOut
    return {
      name: this.name,
      role: this.role,
      up: up && !this.isBehind,
      state: this.state,
      reason: this.reason,
      hosts: [],
      timeline,
      lagMillis: lag?.millis,
      lagBytes: lag?.bytes,
      latencyMillis: latency,
      writes: this.writes?.stats,
      reads: this.reads.stats
    }
  }

  private get state(): ServerState {
    if (this.role === "reader") return shown(this.health, clock.now())
    // a writer is never left out, and has no trial
    if (this.pools.some(({ connections }) => connections.openCount > 0)) return "up"
    return this.lastConnectFailure === undefined ? "unknown" : "down"
  }

  private get lastConnectFailure(): string | undefined {
    return this.writes?.stats.lastConnectFailure
  }

  private get reason(): string | undefined {
    const { health, lag, lastConnectFailure } = this
    if (this.isWriter()) return "it is the writer"
    if (this.role === "writer") return this.state === "down" ? lastConnectFailure : undefined
    if (health._tag === "down" || health._tag === "trial") return health.message
    if (health._tag === "suspect") return "callers wait for its answers"
    if (!this.isBehind) return undefined
    if (lag === undefined) return "it was too far behind the primary when its lag was last known"
    return isStale(lag)
      ? "it does not replay the log of the primary"
      : `it is ${Math.round(lag.millis)} ms and ${lag.bytes} bytes behind the primary`
  }

  private updateUsable(): void {
    this.metrics?.setUsable(!this.isDown && !this.isBehind && !this.isLeftOut)
  }

  private onConnect(healthy: boolean, message: string): void {
    // the lag of a server that was down is not known, and reads must not see data that is too old
    if (healthy && this.health._tag === "down" && this.monitor !== undefined) this.monitor.onRecovery()
    else if (healthy) this.setHealth(onAnswer())
    // a host that is the writer now, or was removed, refuses readers: that is no failure
    else if (!this.isLeftOut) this.onFailure(message)
  }

  private setHealth(health: Health): void {
    const location = { database: this.config.name, server: this.name }
    const wasDown = this.isDown
    this.health = health
    // the lag after the outage is not known, so the next check decides; a server that is behind
    // needs its checks also after an outage
    if (health._tag === "down" && !this.isBehind) this.lagState = initialLag
    this.updateUsable()
    if (health._tag === "down" && !wasDown)
      this.observer.observe({ _tag: "MarkedDown", ...location, message: health.message })
    if (health._tag === "up" && wasDown) this.observer.observe({ _tag: "MarkedUp", ...location })
  }

  /** Records the lag that a check has found; `undefined` if it is unknown. */
  setLag(lag: Lag | undefined): void {
    const wasBehind = this.isBehind
    this.lag = lag
    if (lag === undefined) return
    this.lagState = onLag(this.lagState, lag, this.config.routing.lagLimits)
    this.metrics?.setLag(lag)
    this.updateUsable()
    if (this.isBehind === wasBehind) return
    const location = { database: this.config.name, server: this.name }
    const { bytes: lagBytes, millis: lagMillis } = lag
    this.observer.observe({ _tag: this.isBehind ? "FellBehind" : "CaughtUp", ...location, lagMillis, lagBytes })
  }
}
