/**
 * The servers of a database, their roles and their health.
 */

import type { DatabaseConfig, Endpoint, ServerConfig } from "../../DatabaseConfig.js"
import type { Observer } from "../../Observation.js"
import type { Role, ServerStatus } from "../../Topology.js"
import * as clock from "../concurrency/clock.js"
import { readerAt } from "../config/discoveredReader.js"
import type { HostLocator } from "../connection/connect.js"
import type { CredentialSource } from "../connection/credentials.js"
import type { MakePoolMetrics } from "../observability/poolMetrics.js"
import type { MakeReaderMetrics, MakeWriterMetrics } from "../observability/serverMetrics.js"
import type { ConnectionTasks } from "../pool/lifecycleTasks.js"
import { OutageWaiters } from "../pool/outageWaiters.js"
import { HostDiscovery, type HostSource } from "./hostDiscovery.js"
import { makeWriterSearch } from "./makeWriterSearch.js"
import { Proofs } from "./outcomeConnections.js"
import { PrimarySampler } from "./primarySampler.js"
import { Probe, type ProbeResult } from "./probe.js"
import { ReaderMonitor, type ReaderProbe } from "./readerMonitor.js"
import { type Close, type Reader, Readers } from "./readers.js"
import { ReplayWait } from "./replayWait.js"
import { Server } from "./server.js"
import { UnpooledConnections } from "./unpooledConnections.js"
import { WriterMonitor } from "./writerMonitor.js"
import type { WriterSearch } from "./writerSearch.js"

/** Functions that make the metrics of a database. */
export interface MakeMetrics {
  readonly pool: MakePoolMetrics
  readonly reader: MakeReaderMetrics
  readonly writer: MakeWriterMetrics
}

const nothing = () => {}

const removedHost: ProbeResult = {
  _tag: "Failed",
  failure: { reason: "unreachable", error: new Error("the host was removed from the cluster") },
  silentSince: undefined
}

/** Servers of one database. */
export class Topology {
  readonly writer: Server
  /** @internal */ readonly outageWaiters: OutageWaiters
  /** The search for the writer, if it may be on several hosts. */
  readonly writerSearch: WriterSearch | undefined
  /** The proofs of COMMITs whose answers were lost. */
  readonly proofs: Proofs
  /** The positions of the primary, with which those of the replicas are compared. */
  readonly sampler: PrimarySampler
  private readonly writerMonitor: WriterMonitor | undefined
  private readonly allReaders: Readers
  private readonly discovery: HostDiscovery | undefined
  /** The probe of a writer that is not searched. */
  private writerProbe: Probe | undefined
  /** The pauses that wait for connections in use, and for proofs. */
  private readonly drains = new Set<(isOver: boolean) => void>()
  private isClosed = false

  constructor(
    private readonly config: DatabaseConfig,
    credentials: (server: ServerConfig) => CredentialSource,
    tasks: ConnectionTasks,
    private readonly observer: Observer,
    makeMetrics: MakeMetrics,
    hosts?: HostSource | undefined
  ) {
    this.outageWaiters = new OutageWaiters(config.pool.maxOutageWaiters)
    const database = config.name
    const common = { config, makeMetrics: makeMetrics.pool, observer, outageWaiters: this.outageWaiters, tasks }
    const make = (server: ServerConfig, role: Role, credentials: CredentialSource, locator?: HostLocator | undefined) =>
      new Server(server, role, {
        ...common,
        credentials,
        locator,
        isWriter: () => role === "reader" && config.cluster !== undefined && this.writerSearch?.writer === server.name,
        metrics: role === "reader" ? makeMetrics.reader(database, server.name) : undefined
      })
    const source = credentials(config.writer)
    const countChange = makeMetrics.writer(database)
    this.writerSearch = makeWriterSearch(config, source, {
      onChange: (change, tookMillis, error) => {
        observer.observe({ _tag: "WriterChanged", database, ...change, tookMillis })
        for (const pool of this.writer.pools) pool.retireOtherHosts(change.to, error)
        // the first writer of a database is no change
        if (change.from === undefined) {
          if (config.startup === "verify") for (const { reads } of this.readers) reads.warm()
          return
        }
        countChange(tookMillis)
        this.sampler.positions.clear()
        this.writerMonitor?.onChanged()
        this.allReaders.onWriterChanged()
      },
      onFailed: (server, { error, reason }) =>
        observer.observe({ _tag: "ConnectFailed", database, server, reason, message: error.message }),
      hasHeard: (host, since) =>
        Math.max(this.writer.activityOf(host).heardAt, this.writerMonitor?.progressAt ?? 0) > since,
      hasRead: (host, since) => this.readers.some((reader) => reader.name === host && reader.hasHeard(host, since)),
      onSilent: (host, error) => this.writer.giveUpHost(host, error),
      // a host of the cluster is a reader when it is no longer the writer
      onLost: (host, error) => this.readers.find(({ name }) => name === host)?.onFailure(error.message),
      onSearch: () => {
        this.writerMonitor?.start()
        this.discovery?.hurry()
      },
      onMoved: () => {
        for (const pool of this.writer.pools)
          pool.invalidate({ mode: "soft", before: clock.now(), processId: undefined })
        this.sampler.positions.clear()
      },
      onHosts: (added, removed) => this.writerMonitor?.onHosts(added, removed),
      awaitsHosts: () => this.discovery?.isAsking === true
    })
    if (this.writerSearch !== undefined && config.monitor.isOn) {
      this.writerMonitor = new WriterMonitor(this.writerSearch, config.monitor, (host) => this.writer.activityOf(host))
    }
    this.writer = make(config.writer, "writer", source, this.writerSearch)
    // a writer always has a pool for writes; a reader has none
    this.proofs = new Proofs(this.writer.writes ?? this.writer.reads, () => queueMicrotask(() => this.checkDrains()))
    this.sampler = new PrimarySampler((timeout, callback) => this.askPrimary(timeout, callback))
    this.allReaders = new Readers(config.readers, (server) =>
      this.withMonitor(make(server, "reader", credentials(server)))
    )
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
    return this.allReaders.servers
  }

  /** Starts the monitors of the readers, and the discovery of hosts, if they are off: with the first read. */
  startMonitors(): void {
    this.allReaders.startMonitors()
    this.discovery?.start()
  }

  /** True if there are readers, or if they are to be discovered. */
  get mayHaveReaders(): boolean {
    return this.readers.length > 0 || this.discovery !== undefined
  }

  /** Begins to discover the hosts of the cluster, if the settings have a source of hosts. */
  discover(): void {
    this.discovery?.start()
  }

  /** Sets the hosts of the cluster: each may be the writer, and serves reads while it is not. */
  private setHosts(endpoints: ReadonlyArray<Endpoint>): void {
    if (this.isClosed) return
    const { name: database, startup, writer } = this.config
    // before the readers, whose monitors use the probes of the hosts
    this.writerSearch?.setHosts(endpoints)
    const { added, removed } = this.allReaders.set(endpoints.map((endpoint) => readerAt(writer, endpoint)))
    if (added.length + removed.length > 0) {
      const names = (servers: ReadonlyArray<Server>) => servers.map(({ name }) => name)
      this.observer.observe({ _tag: "HostsChanged", database, added: names(added), removed: names(removed) })
    }
    for (const { reads } of added) {
      if (this.writer.reads.isPaused) reads.pause(nothing)
      if (startup === "verify" && this.writerSearch?.writer !== undefined) reads.warm()
    }
  }

  private withMonitor(server: Server): Reader {
    const { monitor, readerRetryDelay, routing, session } = this.config
    // behind a pooler, and with several hosts, the probe and the reads may go to different servers
    const isMonitored = monitor.isOn && session.mode === "session" && server.server.hosts.length === 1
    if (!isMonitored) return { server, monitor: undefined }
    const probe = this.sharedProbe(server) ?? this.makeProbe(server)
    server.replayWait = new ReplayWait(new UnpooledConnections(server.reads.options))
    return {
      server,
      monitor: new ReaderMonitor(server, probe, this.sampler, monitor, readerRetryDelay, routing.lagLimits)
    }
  }

  /**
   * Returns the probe of the search for the writer, if the search has the host of a reader, too.
   */
  private sharedProbe({ name }: Server): ReaderProbe | undefined {
    const { writerSearch } = this
    if (this.config.cluster === undefined || writerSearch === undefined) return undefined
    const find = () => writerSearch.hosts.find(({ endpoint }) => endpoint.name === name)
    return {
      get isSearching() {
        const host = find()
        return host !== undefined && writerSearch.isConnecting(host)
      },
      ask: (timeout, callback) => {
        const host = find()
        if (host === undefined) return callback(removedHost)
        host.probe.ask(timeout, (result) => {
          writerSearch.handle(host, result)
          callback(result)
        })
      },
      close: (callback) => callback()
    }
  }

  private makeProbe(watched: Server): Probe {
    const { credentials, name, server } = watched
    const { monitor, session } = this.config
    return new Probe({
      server,
      session: { ...session, ...server.own },
      credentials,
      connectTimeout: server.connectTimeout,
      reconnectTimeout: monitor.isOn ? monitor.detectionTime : server.connectTimeout,
      maxAge: this.config.pool.maxLifetime,
      staysOpen: monitor.isOn,
      onLost: nothing,
      hasHeard: (since) => watched.hasHeard(name, since)
    })
  }

  /** Probes the primary; calls back with `undefined` while it is not known. */
  private askPrimary(timeout: number, callback: (result: ProbeResult | undefined) => void): void {
    const { writerSearch } = this
    if (this.isClosed) return callback(undefined)
    if (writerSearch === undefined) {
      this.writerProbe ??= this.makeProbe(this.writer)
      return this.writerProbe.ask(timeout, callback)
    }
    // a process that only reads may not have searched the writer yet
    writerSearch.locate(timeout, (_, found) => {
      const host = writerSearch.hosts.find(({ endpoint }) => endpoint.name === found?.name)
      if (host === undefined) return callback(undefined)
      host.probe.ask(timeout, (result) => {
        writerSearch.handle(host, result)
        // the host may be a former primary by now
        callback(writerSearch.writer === found?.name ? result : undefined)
      })
    })
  }

  get servers(): ReadonlyArray<Server> {
    return [this.writer, ...this.readers]
  }

  get status(): ReadonlyArray<ServerStatus> {
    const { readers, sampler, writer, writerSearch } = this
    const timeline = writerSearch?.timeline ?? sampler.positions.latest?.timeline
    const own = { ...writer.status, timeline, ...writerSearch?.status }
    return [{ ...own, up: own.state !== "down" }, ...readers.map(({ status }) => status)]
  }

  /**
   * Holds checkouts back. Calls back when no connection is in use, or after `timeout` ms, with the
   * number of connections that are still in use. The proof of a COMMIT counts as a connection,
   * because a pause does not stop it. The returned function cancels the wait. It also ends the
   * pause, unless the database was paused before.
   */
  pause(timeout: number, callback: (inUse: number) => void): () => void {
    const wasPaused = this.writer.reads.isPaused
    const pools = this.servers.flatMap((server) => server.pools)
    const inUse = () =>
      // connections whose statement is being cancelled count, too
      pools.reduce((sum, { connections: { all, idle } }) => sum + all.size - idle.length, this.proofs.countOutsidePool)
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
    // the callback runs during a checkin, and the check must run after it
    for (const pool of pools) pool.pause(() => queueMicrotask(() => this.checkDrains()))
    this.proofs.onPaused()
    queueMicrotask(() => check(false))
    return () => {
      end()
      if (!wasPaused) this.resume()
    }
  }

  private checkDrains(): void {
    for (const drain of this.drains) drain(false)
  }

  /** Serves the callers that were held back, and ends the pauses that still wait. */
  resume(): void {
    for (const drain of this.drains) drain(true)
    for (const server of this.servers) for (const pool of server.pools) pool.resume()
  }

  /** Closes all pools; `callback` is called when all sockets are closed. */
  close(timeout: number, callback: () => void): void {
    const { allReaders, discovery, proofs, writer, writerMonitor, writerProbe, writerSearch } = this
    const closing: ReadonlyArray<Close> = [
      ...writer.pools.map(
        (pool): Close =>
          (onClosed) =>
            pool.close(timeout, onClosed)
      ),
      (onClosed) => proofs.close(onClosed),
      ...allReaders.closing(timeout),
      ...[writerProbe, writerSearch].flatMap((part) => (part ? [(onClosed: () => void) => part.close(onClosed)] : []))
    ]
    let left = closing.length
    this.isClosed = true
    discovery?.stop()
    writerMonitor?.stop()
    for (const close of closing)
      close(() => {
        left--
        if (left === 0) callback()
      })
  }
}
