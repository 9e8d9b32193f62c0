/**
 * The monitor of the hosts of a writer. It probes each host at an interval, so that a promotion is
 * noticed without the loss of a connection, and the writer when callers wait for its answers.
 */

import type { MonitorConfig } from "../../DatabaseConfig.js"
import * as clock from "../concurrency/clock.js"
import type { HostActivity } from "../pool/connections.js"
import { answerPart, SilenceWatch } from "./silenceWatch.js"
import type { SearchedHost, WriterSearch } from "./writerSearch.js"

/** The interval after a change, in ms, and the time for which it holds. */
export const fast = { interval: 100, duration: 30_000 }

/** Monitor of the hosts of one writer. It starts with the first search. */
export class WriterMonitor {
  private readonly cancels = new Map<string, () => void>()
  private readonly watch: SilenceWatch
  private changedAt = Number.NEGATIVE_INFINITY
  private isStarted = false

  constructor(
    private readonly search: WriterSearch,
    private readonly config: MonitorConfig,
    activityOf: (host: string) => HostActivity
  ) {
    const writer = () => this.search.hosts.find(({ endpoint }) => endpoint.name === this.search.writer)
    this.watch = new SilenceWatch(
      config.detectionTime,
      () => {
        const host = writer()
        return host && activityOf(host.endpoint.name)
      },
      (callback) => {
        const host = writer()
        if (host === undefined) return callback(false)
        host.probe.ask(config.detectionTime * answerPart, (result) => {
          callback(result._tag === "Answered")
          this.search.handle(host, result)
        })
      }
    )
  }

  /** The time when the connections to the writer were last seen to make progress. */
  get progressAt(): number {
    return this.watch.progressAt
  }

  start(): void {
    if (this.isStarted) return
    this.isStarted = true
    for (const host of this.search.hosts) this.schedule(host)
    this.watch.start()
  }

  /** Begins to monitor hosts, and ends it for others, whose probes are closed and do not call back. */
  onHosts(added: ReadonlyArray<SearchedHost>, removed: ReadonlyArray<SearchedHost>): void {
    for (const { endpoint } of removed) {
      this.cancels.get(endpoint.name)?.()
      this.cancels.delete(endpoint.name)
    }
    if (removed.length > 0) this.watch.reset()
    if (this.isStarted) for (const host of added) this.schedule(host)
  }

  stop(): void {
    for (const cancel of this.cancels.values()) cancel()
    this.cancels.clear()
    this.watch.stop()
  }

  /** Shortens the interval for a while, because another change may follow. */
  onChanged(): void {
    this.changedAt = clock.now()
    for (const host of this.search.hosts) this.schedule(host)
  }

  private schedule(host: SearchedHost): void {
    const { name } = host.endpoint
    this.cancels.get(name)?.()
    const isFast = clock.now() - this.changedAt < fast.duration
    const interval = isFast ? Math.min(fast.interval, this.config.interval) : this.config.interval
    const cancel = clock.later(interval, () => {
      if (this.search.isConnecting(host)) return this.schedule(host)
      host.probe.ask(this.config.detectionTime * answerPart, (result) => {
        this.search.handle(host, result)
        // not after `stop`, and not if a change has begun a new interval
        if (this.cancels.get(name) === cancel) this.schedule(host)
      })
    })
    this.cancels.set(name, cancel)
  }
}
