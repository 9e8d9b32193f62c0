/**
 * The search for the writer among several hosts. All hosts are probed in parallel until one accepts
 * writes, and all callers of the database wait for one search.
 */

import type { Endpoint } from "../../DatabaseConfig.js"
import type { ServerStatus } from "../../Topology.js"
import * as clock from "../concurrency/clock.js"
import { combineFailures } from "../connection/combineFailures.js"
import type { HostLocator, OnMoved } from "../connection/connect.js"
import { type ConnectFailure, mayPass } from "../connection/connectFailure.js"
import type { Probe, ProbeResult } from "./probe.js"
import { isSameEndpoint } from "./sameEndpoint.js"
import {
  initial,
  type NotWriter,
  onDoubt,
  onListed,
  onNoAnswer,
  onReport,
  type WriterChange,
  type WriterState,
  whyNotWriter
} from "./writerState.js"

/** Host among which the writer is searched. */
export interface SearchedHost {
  readonly endpoint: Endpoint
  readonly probe: Pick<Probe, "ask" | "close" | "isOpen">
}

/**
 * The pauses of one host between two probes of a search, in ms; each is twice the one before. A
 * standby that is asked on an open connection is asked more often: the next writer is one of them.
 */
const pauses = { shortest: 100, longest: 1000, longestOpen: 500 }

/**
 * The time that the first search waits for the answers of the other hosts when one accepts writes, in
 * ms: no timeline is known yet, and the host may be a former primary.
 */
const otherAnswersTimeout = 300

/** Callbacks for the events of a search. */
export interface SearchReports {
  /**
   * Called when another host has become the writer; with an error if the former writer is dead, or
   * must not be written to any more.
   */
  readonly onChange: (change: WriterChange, tookMillis: number, error: Error | undefined) => void
  /** Called when a host cannot be probed, unless it has failed for the same reason before. */
  readonly onFailed: (host: string, failure: ConnectFailure) => void
  /** Checks if any connection of the writer to a host has received something since a moment. */
  readonly hasHeard: (host: string, since: number) => boolean
  /** Checks the same for the connections of reads. */
  readonly hasRead: (host: string, since: number) => boolean
  /** Called when the writer answers neither the probe nor its callers. */
  readonly onSilent: (host: string, error: Error) => void
  /** Called when the writer is given up because of a failure. */
  readonly onLost: (host: string, error: Error) => void
  /** Called when a search begins. */
  readonly onSearch: () => void
  /** Called when the name of the writer leads to another server, so that its connections are old. */
  readonly onMoved: (error: Error) => void
  /** Called when hosts are searched from now on, or no longer. */
  readonly onHosts: (added: ReadonlyArray<SearchedHost>, removed: ReadonlyArray<SearchedHost>) => void
  /** Checks if an answer with other hosts is awaited. */
  readonly awaitsHosts: () => boolean
}

type OnLocated = Parameters<HostLocator["locate"]>[1]

const reasons: Readonly<Record<NotWriter, string>> = {
  standby: "it is a standby",
  olderTimeline: "it is a former primary: another host has a later timeline",
  otherCluster:
    "it has another system identifier, so it is a server of another cluster: if the cluster was replaced, restart the program",
  unproved: "it does not report its timeline"
}

/** Checks if a state has a later timeline than another one. */
const isNewer = (state: WriterState, other: WriterState): boolean =>
  (state.highest?.timeline ?? 0) > (other.highest?.timeline ?? 0)

/** Search for the writer of one database. */
export class WriterSearch implements HostLocator {
  private state: WriterState = initial
  private readonly members: Map<string, SearchedHost>
  /** The names of the hosts that are to be searched. The writer may be another one, until it is lost. */
  private listed: ReadonlySet<string>
  /** The last failure to find out the hosts, if they are discovered. */
  private discoveryFailure: ConnectFailure | undefined
  private readonly waiters = new Set<OnLocated>()
  /** The last failure of each host in the current search. */
  private readonly failures = new Map<string, ConnectFailure>()
  /** The timers of the hosts that pause between two probes. */
  private readonly pauses = new Map<string, clock.Timer>()
  /** The search that is running. */
  private current: { readonly since: number } | undefined
  private isClosed = false
  /** The hosts whose first probe has been answered or has failed. */
  private readonly answered = new Set<string>()
  /** True since callers may use a writer for the first time. */
  private isSettled = false
  /** Cancels the wait of the first search for the other hosts. */
  private cancelOthers: (() => void) | undefined = undefined
  private readonly followers = new Set<OnMoved>()

  constructor(
    endpoints: ReadonlyArray<Endpoint>,
    private readonly makeHost: (endpoint: Endpoint) => SearchedHost,
    /** The timeout of one probe, in ms. */
    private readonly probeTimeout: number,
    private readonly reports: SearchReports
  ) {
    this.members = new Map(endpoints.map((endpoint) => [endpoint.name, makeHost(endpoint)]))
    this.listed = new Set(this.members.keys())
  }

  /** Returns the hosts that are searched; the writer is one of them even if it has been removed. */
  get hosts(): ReadonlyArray<SearchedHost> {
    return [...this.members.values()]
  }

  /** Checks if a search is running. */
  get isRunning(): boolean {
    return this.current !== undefined
  }

  /**
   * Checks if a search connects to a host again and again, with its own pauses, so that a monitor must
   * not connect as well.
   */
  isConnecting({ probe }: SearchedHost): boolean {
    return this.isRunning && !probe.isOpen
  }

  /** Returns the name of the host that is the writer, if it is known. */
  get writer(): string | undefined {
    return this.state._tag === "Known" ? this.state.host : undefined
  }

  /** Returns the latest timeline that a host has reported as a writer. */
  get timeline(): number | undefined {
    return this.state.highest?.timeline
  }

  /** Returns the state of the writer, and of each host. */
  get status(): Pick<ServerStatus, "hosts" | "reason" | "state"> {
    const { state, writer } = this
    const isDoubted = state._tag === "Known" && state.isDoubted
    return {
      state: isDoubted ? "suspect" : writer !== undefined ? "up" : this.isSearching ? "down" : "unknown",
      reason: isDoubted || this.isSearching ? "the writer is searched" : undefined,
      hosts: this.hosts.map(({ endpoint: { name } }) => ({
        name,
        isWriter: name === writer,
        reason: name === writer ? undefined : this.failures.get(name)?.error.message
      }))
    }
  }

  locate(timeout: number, callback: OnLocated): () => void {
    const found = this.located
    if (found !== undefined) {
      callback(undefined, found)
      return () => {}
    }
    const end: OnLocated = (failure, host) => {
      clock.clear(timer)
      if (this.waiters.delete(end)) callback(failure, host)
    }
    const timer = clock.timer(timeout, () => end(this.failure(timeout), undefined))
    this.waiters.add(end)
    this.search()
    return () => {
      clock.clear(timer)
      this.waiters.delete(end)
    }
  }

  /** Checks if the writer was lost and is searched. */
  get isSearching(): boolean {
    return this.state._tag === "Searching" && this.state.lost !== undefined
  }

  isElsewhere(host: string): boolean {
    return this.state._tag === "Known" && this.state.host !== host
  }

  doubt(host: string): void {
    this.state = onDoubt(this.state, host)
    if (this.state._tag === "Known" && this.state.isDoubted) this.search()
  }

  follow(onMoved: OnMoved): () => void {
    this.followers.add(onMoved)
    return () => {
      this.followers.delete(onMoved)
    }
  }

  /** Handles the result of a probe, of the search itself or of a monitor. */
  handle(host: SearchedHost, result: ProbeResult): void {
    const { name } = host.endpoint
    // the host may have been removed before the result arrived
    if (this.isClosed || this.members.get(name) !== host) return
    if (!this.isSettled) this.answered.add(name)
    if (result._tag === "Failed") {
      const { failure } = result
      const isNews = failure.reason !== "wrongRole" && failure.reason !== this.failures.get(name)?.reason
      this.failures.set(name, failure)
      if (isNews) this.reports.onFailed(name, failure)
      if (this.writer === name) this.onWriterFailed(name, failure, result.silentSince)
    } else {
      const reason = whyNotWriter(result.report, this.state.highest)
      if (reason === undefined) this.failures.delete(name)
      else this.failures.set(name, { reason: "wrongRole", error: new Error(reasons[reason]) })
      const [state, change] = onReport(this.state, name, result.report)
      const isLost = this.state._tag === "Known" && state._tag === "Searching"
      const isAlive = this.state._tag === "Known" && this.state.isRemoved && !isNewer(state, this.state)
      this.state = state
      if (change !== undefined) this.report(change, isAlive)
      if (isLost) this.search()
    }
    this.dropUnlisted()
    this.settle()
  }

  /**
   * Sets the hosts. A new one is probed at once. One that is missing is dropped; if it is the writer,
   * this happens when it no longer answers as the writer, or another host does.
   */
  setHosts(endpoints: ReadonlyArray<Endpoint>): void {
    if (this.isClosed) return
    this.discoveryFailure = undefined
    const listed = new Map(endpoints.map((endpoint) => [endpoint.name, endpoint]))
    this.listed = new Set(listed.keys())
    if (this.writer !== undefined) this.state = onListed(this.state, this.writer, this.listed.has(this.writer))
    const wasRunning = this.isRunning
    const moved = this.hosts.filter(({ endpoint }) => {
      const now = listed.get(endpoint.name)
      return now !== undefined && !isSameEndpoint(now, endpoint)
    })
    for (const host of moved) this.drop(host)
    this.dropUnlisted()
    const added = endpoints.filter(({ name }) => !this.members.has(name)).map(this.makeHost)
    for (const host of added) this.members.set(host.endpoint.name, host)
    this.reports.onHosts(added, [])
    // the name leads to another address, so it may be another server
    for (const { endpoint } of moved) this.onMoved(endpoint.name)
    for (const host of added) {
      // a search that has begun in this call probes them already
      if (wasRunning) this.probe(host, pauses.shortest)
      else if (!this.isRunning && this.state._tag === "Known")
        host.probe.ask(this.probeTimeout, (result) => this.handle(host, result))
    }
    this.settle()
  }

  /** Records that the hosts could not be found out; the known ones stay. */
  onDiscoveryFailed(error: Error): void {
    this.discoveryFailure = { reason: "unreachable", error }
    this.settle()
  }

  private onMoved(name: string): void {
    this.doubt(name)
    if (name !== this.writer) return
    const error = new Error(`${name} leads to another server`)
    this.reports.onMoved(error)
    for (const follower of this.followers) follower(undefined, error)
  }

  private dropUnlisted(): void {
    for (const host of this.hosts) {
      const { name } = host.endpoint
      if (!this.listed.has(name) && name !== this.writer) this.drop(host)
    }
  }

  private drop(host: SearchedHost): void {
    const { name } = host.endpoint
    this.members.delete(name)
    this.failures.delete(name)
    this.answered.delete(name)
    clock.clear(this.pauses.get(name))
    this.pauses.delete(name)
    this.reports.onHosts([], [host])
    host.probe.close(() => {})
  }

  /** Gives the writer up, unless the failure of its probe, or an answer to a caller, shows that it is alive. */
  private onWriterFailed(name: string, failure: ConnectFailure, silentSince: number | undefined): void {
    const { reason } = failure
    if (reason === "tooManyConnections" || reason === "credentials") {
      // callers use the open connections, or fail with the same reason
      if (this.state._tag === "Known") this.state = { ...this.state, isDoubted: false }
      return
    }
    // the server is alive, and its open connections serve callers
    if (reason === "authentication" && this.state._tag === "Known" && !this.state.isDoubted) return
    if (silentSince !== undefined) {
      if (this.reports.hasHeard(name, silentSince)) return
      this.reports.onSilent(name, failure.error)
    }
    this.state = onNoAnswer(this.state, name)
    this.reports.onLost(name, failure.error)
    this.search()
  }

  /** Ends the search, whose waiters are cancelled by their pools, and closes the probes. */
  close(callback: () => void): void {
    this.isClosed = true
    this.stop()
    let left = this.members.size
    if (left === 0) return callback()
    for (const { probe } of this.hosts)
      probe.close(() => {
        left--
        if (left === 0) callback()
      })
  }

  /** Reports a change; `isAlive` if the former writer was only removed from the hosts. */
  private report(change: WriterChange, isAlive: boolean): void {
    const { from, timeline, to } = change
    const took = this.current === undefined ? 0 : clock.now() - this.current.since
    const failure = from === undefined ? undefined : this.failures.get(from)
    const isDemoted = failure?.reason === "wrongRole" && failure.error.message !== reasons.olderTimeline
    const error = new Error(`${to} has become the writer, on timeline ${timeline ?? "unknown"}`)
    this.reports.onChange(change, took, isDemoted || isAlive ? undefined : error)
    for (const follower of this.followers) follower(to, error)
  }

  /** Returns the endpoint of the writer, unless it is doubtful, or the first search awaits other hosts. */
  private get located(): Endpoint | undefined {
    const { state } = this
    if (state._tag !== "Known" || state.isDoubted || !this.isSettled) return undefined
    return this.members.get(state.host)?.endpoint
  }

  private search(): void {
    if (this.current !== undefined || this.isClosed) return
    this.current = { since: clock.now() }
    this.failures.clear()
    this.reports.onSearch()
    for (const host of this.hosts) this.probe(host, pauses.shortest)
  }

  private probe(host: SearchedHost, pause: number): void {
    const { current } = this
    host.probe.ask(this.probeTimeout, (result) => {
      this.handle(host, result)
      // this search has ended, or another one has begun, or the host has been removed
      if (this.current !== current || current === undefined || this.members.get(host.endpoint.name) !== host) return
      const longest = host.probe.isOpen ? pauses.longestOpen : pauses.longest
      const timer = clock.timer(Math.min(pause, longest), () => {
        this.pauses.delete(host.endpoint.name)
        this.probe(host, pause * 2)
      })
      // only the callers that wait keep the process alive
      timer.unref()
      this.pauses.set(host.endpoint.name, timer)
    })
  }

  /**
   * Checks if the search is to end without a writer, after all hosts have failed. Before a writer
   * was ever known, a single permanent failure among them, such as a wrong password, ends the
   * search, because the settings may be wrong. Later it must not turn an outage into a permanent
   * failure.
   */
  private get isHopeless(): boolean {
    const all = [...this.failures.values()]
    if (all.length === 0 || all.length < this.members.size || this.reports.awaitsHosts()) return false
    const isPermanent = (failure: ConnectFailure) => !mayPass(failure) && failure.reason !== "protocol"
    return (
      all.every((failure) => !mayPass(failure)) ||
      (this.state.highest === undefined && !this.isSearching && all.some(isPermanent))
    )
  }

  /** Ends the search if the writer is known, or if the search is hopeless. */
  private settle(): void {
    if (this.state._tag === "Known" && !this.isSettled) this.isSettled = !this.awaitsOthers()
    const found = this.located
    if (found === undefined && !this.isHopeless) return
    this.stop()
    const failure = found === undefined ? this.failure(0) : undefined
    for (const waiter of [...this.waiters]) waiter(failure, found)
  }

  /**
   * Checks if other hosts, also those that are being discovered, may still answer with a later timeline;
   * after a while the search settles without them.
   */
  private awaitsOthers(): boolean {
    const haveAnswered = this.hosts.every(({ endpoint }) => this.answered.has(endpoint.name))
    if (haveAnswered && !this.reports.awaitsHosts()) return false
    this.cancelOthers ??= clock.later(otherAnswersTimeout, () => {
      this.cancelOthers = undefined
      // the host may have been lost meanwhile
      this.isSettled = this.state._tag === "Known"
      this.settle()
    })
    return true
  }

  private stop(): void {
    this.cancelOthers?.()
    this.cancelOthers = undefined
    this.current = undefined
    for (const timer of this.pauses.values()) clock.clear(timer)
    this.pauses.clear()
  }

  private failure(timeout: number): ConnectFailure {
    const silent: ConnectFailure = {
      reason: "unresponsive",
      error: new Error(`no answer within ${Math.round(timeout)} ms`)
    }
    const all = this.hosts.map(({ endpoint: { name } }) => [name, this.failures.get(name) ?? silent] as const)
    const { discoveryFailure = all.length === 0 ? silent : undefined } = this
    return combineFailures(discoveryFailure === undefined ? all : [...all, ["discover", discoveryFailure]])
  }
}
