/**
 * The servers of a database, their roles and their health.
 */

import type { DatabaseConfig, ServerConfig } from "../../DatabaseConfig.js"
import type { Observer } from "../../Observation.js"
import type { Role, ServerStatus } from "../../Topology.js"
import * as clock from "../concurrency/clock.js"
import type { HostLocator } from "../connection/connect.js"
import type { CredentialSource } from "../connection/credentials.js"
import type { MakePoolMetrics } from "../observability/poolMetrics.js"
import type { HostActivity } from "../pool/connections.js"
import type { ConnectionTasks } from "../pool/connectionTasks.js"
import { OutageWaiters } from "../pool/outageWaiters.js"
import { Pool } from "../pool/pool.js"
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
    locator: HostLocator | undefined
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
   * `readerRetryDelay`, then tried again.
   */
  isUp(now: number): boolean {
    return now >= this.downUntil
  }

  get pools(): ReadonlyArray<Pool> {
    return this.writes === undefined ? [this.reads] : [this.writes, this.reads]
  }

  private onHealth(healthy: boolean, message: string): void {
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
  readonly readers: ReadonlyArray<Server>
  /** @internal */ readonly outageWaiters: OutageWaiters
  /** The search for the writer, if it may be on several hosts. */
  readonly writerSearch: WriterSearch | undefined
  private readonly writerMonitor: WriterMonitor | undefined

  constructor(
    config: DatabaseConfig,
    credentials: (server: ServerConfig) => CredentialSource,
    tasks: ConnectionTasks,
    observer: Observer,
    makeMetrics: MakePoolMetrics
  ) {
    this.outageWaiters = new OutageWaiters(config.pool.maxOutageWaiters)
    const make = (server: ServerConfig, role: Role, source: CredentialSource, locator?: HostLocator | undefined) =>
      new Server(config, server, role, source, tasks, observer, makeMetrics, this.outageWaiters, locator)
    const source = credentials(config.writer)
    const database = config.name
    this.writerSearch = makeWriterSearch(config, source, {
      onChange: (change, tookMillis, error) => {
        observer.observe({ _tag: "WriterChanged", database, ...change, tookMillis })
        for (const pool of this.writer.pools) pool.retireOtherHosts(change.to, error)
        // the first writer of a database is no change
        if (change.from !== undefined) this.writerMonitor?.onChanged()
      },
      onFailed: (server, { error, reason }) =>
        observer.observe({ _tag: "ConnectFailed", database, server, reason, message: error.message }),
      hasHeard: (host, since) => this.activityOf(host).heardAt > since,
      onSilent: (host, error) => {
        for (const pool of this.writer.pools) pool.giveUpHost(host, error)
      },
      onSearch: () => this.writerMonitor?.start()
    })
    if (this.writerSearch !== undefined && config.monitor.isOn) {
      this.writerMonitor = new WriterMonitor(this.writerSearch, config.monitor, (host) => this.activityOf(host))
    }
    this.writer = make(config.writer, "writer", source, this.writerSearch)
    this.readers = config.readers.map((server) => make(server, "reader", credentials(server)))
  }

  get servers(): ReadonlyArray<Server> {
    return [this.writer, ...this.readers]
  }

  /** Returns the activity of all pools of the writer on a host. */
  private activityOf(host: string): HostActivity {
    const all = this.writer.pools.map((pool) => pool.activityOf(host))
    return {
      heardAt: Math.max(...all.map(({ heardAt }) => heardAt)),
      waitsSince: Math.min(...all.map(({ waitsSince }) => waitsSince)),
      bytes: all.reduce((sum, { bytes }) => sum + bytes, 0)
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
   * there are none, or after `timeout` ms. The returned function cancels the wait.
   */
  pause(timeout: number, callback: (inUse: number) => void): () => void {
    const pools = this.servers.flatMap((server) => server.pools)
    const inUse = () => pools.reduce((sum, pool) => sum + pool.stats.active, 0)
    let isOver = false
    const end = () => {
      isOver = true
      clock.clear(timer)
    }
    const check = () => {
      if (isOver || inUse() > 0) return
      end()
      callback(0)
    }
    const timer = clock.timer(timeout, () => {
      end()
      callback(inUse())
    })
    // after the checkin that has called it
    for (const pool of pools) pool.pause(() => queueMicrotask(check))
    queueMicrotask(check)
    return end
  }

  /** Serves the callers that were held back. */
  resume(): void {
    for (const server of this.servers) for (const pool of server.pools) pool.resume()
  }

  /** Closes all pools; `callback` is called when all sockets are closed. */
  close(timeout: number, callback: () => void): void {
    const pools = this.servers.flatMap((server) => server.pools)
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
