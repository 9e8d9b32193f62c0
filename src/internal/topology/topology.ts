/**
 * The servers of a database, their roles and their health.
 */

import type { DatabaseConfig, Endpoint, ServerConfig } from "../../DatabaseConfig.js"
import type { Observer } from "../../Observation.js"
import type { Role, ServerStatus } from "../../Topology.js"
import * as clock from "../concurrency/clock.js"
import { readerAt } from "../config/clusterHosts.js"
import type { HostLocator } from "../connection/connect.js"
import { connectFailed } from "../connection/connectFailure.js"
import type { CredentialSource } from "../connection/credentials.js"
import type { MakePoolMetrics } from "../observability/poolMetrics.js"
import type { HostActivity } from "../pool/connections.js"
import type { ConnectionTasks } from "../pool/connectionTasks.js"
import { OutageWaiters } from "../pool/outageWaiters.js"
import { Pool } from "../pool/pool.js"
import { HostDiscovery, type HostSource } from "./hostDiscovery.js"
import { makeWriterSearch } from "./makeWriterSearch.js"
import { WriterMonitor } from "./writerMonitor.js"
import type { WriterSearch } from "./writerSearch.js"

/** Server of a database, with its pools. */
export class Server {
  /** The pool of connections for writes, if the server is the writer. */
  readonly writes: Pool | undefined
  /** The pool of connections with sessions that refuse writes. */
  readonly reads: Pool
  private downUntil = 0
  private isRemoved = false

  constructor(
    private readonly config: DatabaseConfig,
    readonly server: ServerConfig,
    readonly role: Role,
    /** The source of the user and password of each connection. */
    readonly credentials: CredentialSource,
    tasks: ConnectionTasks,
    private readonly observer: Observer,
    makeMetrics: MakePoolMetrics,
    outageWaiters: OutageWaiters,
    locator: HostLocator | undefined,
    /** Checks if the server is known to be the writer of the cluster, so that it serves no reads. */
    private readonly isWriter: () => boolean,
    /** Called after each connect of a reader. */
    private readonly onConnect: () => void
  ) {
    const { name: database } = config
    const pool = { ...config.pool, connectTimeout: server.connectTimeout }
    const session = { ...config.session, ...server.own }
    const common = { database, server, session, credentials, tasks, observer, makeMetrics, outageWaiters, locator }
    this.writes = role === "writer" ? new Pool({ ...common, pool, readOnly: false }) : undefined
    this.reads = new Pool({
      ...common,
      // no connection is kept open in the read-only pool of the primary, because it is used only
      // when no replica can serve a read
      pool: role === "writer" ? { ...pool, minConnections: 0 } : pool,
      readOnly: true,
      isWarm: () => !this.isLeftOut,
      onHealth: role === "reader" ? (healthy, message) => this.onHealth(healthy, message) : undefined
    })
    credentials.follow((generation) =>
      observer.observe({ _tag: "CredentialsRotated", database, server: server.name, generation })
    )
  }

  get name(): string {
    return this.server.name
  }

  /**
   * Checks if the server takes part in routing. After a failure a reader is left out for
   * `readerRetryDelay`, then tried again. The host of a cluster that is the writer is no reader.
   */
  isUp(now: number): boolean {
    return now >= this.downUntil && !this.isLeftOut
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

  get pools(): ReadonlyArray<Pool> {
    return this.writes === undefined ? [this.reads] : [this.writes, this.reads]
  }

  private onHealth(healthy: boolean, message: string): void {
    this.onConnect()
    // the connect has found the writer, which is no failure of the server
    if (!healthy && this.isWriter()) return
    const wasDown = this.downUntil > 0
    const location = { database: this.config.name, server: this.name }
    if (healthy) {
      this.downUntil = 0
      if (wasDown) this.observer.observe({ _tag: "MarkedUp", ...location })
    } else {
      this.downUntil = clock.now() + this.config.readerRetryDelay
      if (!wasDown) this.observer.observe({ _tag: "MarkedDown", ...location, message })
    }
  }
}

/** Servers of one database. */
export class Topology {
  readonly writer: Server
  private currentReaders: ReadonlyArray<Server>
  /** The readers that were removed, until their connections are closed. */
  private readonly leaving = new Set<Server>()
  /** @internal */ readonly outageWaiters: OutageWaiters
  /** The search for the writer, if it may be on several hosts. */
  readonly writerSearch: WriterSearch | undefined
  private readonly writerMonitor: WriterMonitor | undefined
  private readonly discovery: HostDiscovery | undefined
  private readonly makeReader: (server: ServerConfig) => Server
  /** The pauses that wait for connections in use. */
  private readonly drains = new Set<(isOver: boolean) => void>()

  constructor(
    private readonly config: DatabaseConfig,
    credentials: (server: ServerConfig) => CredentialSource,
    tasks: ConnectionTasks,
    private readonly observer: Observer,
    makeMetrics: MakePoolMetrics,
    hosts?: HostSource | undefined
  ) {
    this.outageWaiters = new OutageWaiters(config.pool.maxOutageWaiters)
    const make = (server: ServerConfig, role: Role, source: CredentialSource, locator?: HostLocator | undefined) =>
      new Server(
        config,
        server,
        role,
        source,
        tasks,
        observer,
        makeMetrics,
        this.outageWaiters,
        locator,
        () => role === "reader" && config.cluster !== undefined && this.writerSearch?.writer === server.name,
        () => this.discovery?.start()
      )
    const source = credentials(config.writer)
    const database = config.name
    this.writerSearch = makeWriterSearch(config, source, {
      onChange: (change, tookMillis, error) => {
        observer.observe({ _tag: "WriterChanged", database, ...change, tookMillis })
        for (const pool of this.writer.pools) pool.retireOtherHosts(change.to, error)
        // the first writer of a database is no change
        if (change.from === undefined) return
        this.writerMonitor?.onChanged()
        if (config.cluster !== undefined) for (const { reads } of this.readers) reads.warm()
      },
      onFailed: (server, { error, reason }) =>
        observer.observe({ _tag: "ConnectFailed", database, server, reason, message: error.message }),
      hasHeard: (host, since) => Math.max(this.activityOf(host).heardAt, this.writerMonitor?.progressAt ?? 0) > since,
      onSilent: (host, error) => {
        for (const pool of this.writer.pools) pool.giveUpHost(host, error)
      },
      onSearch: () => {
        this.writerMonitor?.start()
        this.discovery?.hurry()
      },
      onHosts: (added, removed) => this.writerMonitor?.onHosts(added, removed),
      awaitsHosts: () => this.discovery?.isAsking === true
    })
    if (this.writerSearch !== undefined && config.monitor.isOn) {
      this.writerMonitor = new WriterMonitor(this.writerSearch, config.monitor, (host) => this.activityOf(host))
    }
    this.writer = make(config.writer, "writer", source, this.writerSearch)
    this.makeReader = (server) => make(server, "reader", credentials(server))
    this.currentReaders = config.readers.map(this.makeReader)
    if (hosts === undefined || config.cluster === undefined) return
    const times = { interval: config.cluster.discoverInterval, timeout: config.pool.connectTimeout }
    this.discovery = new HostDiscovery(hosts, times, {
      onHosts: (endpoints) => this.setHosts(endpoints),
      onFailed: (error) => {
        observer.observe({ _tag: "DiscoveryFailed", database, message: error.message })
        this.writerSearch?.onDiscoveryFailed(error)
      },
      isUrgent: () => this.writerSearch?.isRunning === true
    })
  }

  get readers(): ReadonlyArray<Server> {
    return this.currentReaders
  }

  get servers(): ReadonlyArray<Server> {
    return [this.writer, ...this.readers]
  }

  /** Begins to discover the hosts of the cluster, if they are discovered. */
  discover(): void {
    this.discovery?.start()
  }

  /** Sets the hosts of the cluster: adds a reader for each new one, and removes those of missing ones. */
  private setHosts(endpoints: ReadonlyArray<Endpoint>): void {
    const { name: database, startup, writer } = this.config
    const before = new Map(this.readers.map((server) => [server.name, server]))
    const isSame = ({ server }: Server, { address }: Endpoint) => server.address === address
    const kept = endpoints.flatMap((endpoint) => {
      const server = before.get(endpoint.name)
      return server !== undefined && isSame(server, endpoint) ? [server] : []
    })
    const removed = this.readers.filter((server) => !kept.includes(server))
    const added = endpoints
      .filter(({ name }) => !kept.some((server) => server.name === name))
      .map((endpoint) => this.makeReader(readerAt(writer, endpoint)))
    this.currentReaders = [...kept, ...added]
    if (added.length + removed.length > 0) {
      const names = (servers: ReadonlyArray<Server>) => servers.map(({ name }) => name)
      this.observer.observe({ _tag: "HostsChanged", database, added: names(added), removed: names(removed) })
    }
    this.writerSearch?.setHosts(endpoints)
    for (const { reads } of added) {
      if (this.writer.reads.isPaused) reads.pause(() => {})
      if (startup === "verify") reads.warm()
    }
    for (const server of removed) {
      this.leaving.add(server)
      server.remove(() => this.leaving.delete(server))
    }
  }

  /** Returns the activity of all pools of the writer on a host. */
  private activityOf(host: string): HostActivity {
    const all = this.writer.pools.map((pool) => pool.activityOf(host))
    return {
      heardAt: Math.max(...all.map(({ heardAt }) => heardAt)),
      waitsSince: Math.min(...all.map(({ waitsSince }) => waitsSince)),
      progress: all.reduce((sum, { progress }) => sum + progress, 0)
    }
  }

  get status(): ReadonlyArray<ServerStatus> {
    const now = clock.now()
    return this.servers.map((server) => ({
      name: server.name,
      role: server.role,
      up: server.isUp(now),
      writes: server.writes?.stats,
      reads: server.reads.stats
    }))
  }

  /**
   * Holds checkouts back, and calls back with the number of connections that are still in use when
   * there are none, or after `timeout` ms. The returned function cancels the wait, and the pause unless
   * there was one before.
   */
  pause(timeout: number, callback: (inUse: number) => void): () => void {
    const wasPaused = this.writer.reads.isPaused
    const pools = this.servers.flatMap((server) => server.pools)
    // those whose statement is being cancelled, too
    const inUse = () => pools.reduce((sum, { connections: { all, idle } }) => sum + all.size - idle.length, 0)
    const end = () => {
      clock.clear(timer)
      this.drains.delete(check)
    }
    const check = (isOver: boolean) => {
      const left = inUse()
      if (!this.drains.has(check) || (left > 0 && !isOver)) return
      end()
      callback(left)
    }
    const timer = clock.timer(timeout, () => check(true))
    this.drains.add(check)
    const checkAll = () => {
      for (const drain of this.drains) drain(false)
    }
    // after the checkin that has called it
    for (const pool of pools) pool.pause(() => queueMicrotask(checkAll))
    queueMicrotask(() => check(false))
    return () => {
      end()
      if (!wasPaused) this.resume()
    }
  }

  /** Serves the callers that were held back, and ends the pauses that still wait. */
  resume(): void {
    for (const drain of this.drains) drain(true)
    for (const server of this.servers) for (const pool of server.pools) pool.resume()
  }

  /** Closes all pools; `callback` is called when all sockets are closed. */
  close(timeout: number, callback: () => void): void {
    this.discovery?.stop()
    const pools = [...this.servers, ...this.leaving].flatMap((server) => server.pools)
    let left = pools.length + 1
    const onClosed = () => {
      left--
      if (left === 0) callback()
    }
    for (const pool of pools) pool.close(timeout, onClosed)
    this.writerMonitor?.stop()
    if (this.writerSearch === undefined) onClosed()
    else this.writerSearch.close(onClosed)
  }
}
