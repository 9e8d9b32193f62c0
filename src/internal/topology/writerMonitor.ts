/**
 * The monitor of the hosts of a writer. It probes each host at an interval, so that a promotion is
 * noticed without the loss of a connection, and the writer when callers wait for its answers.
 */

import type { MonitorConfig } from "../../DatabaseConfig.js"
import * as clock from "../concurrency/clock.js"
import type { HostActivity } from "../pool/connections.js"
import type { SearchedHost, WriterSearch } from "./writerSearch.js"

/** The interval after a change, in ms, and the time for which it holds. */
const fast = { interval: 100, duration: 30_000 }

/**
 * The parts of the detection time: the silence before a probe, the interval of checking it, the time
 * for an answer to the probe, and the same time for an answer on another socket.
 */
const silencePart = 0.3
const checkPart = 0.1
export const answerPart = 0.3

const nothing = () => {}

/** Monitor of the hosts of one writer. It starts with the first search. */
export class WriterMonitor {
  private readonly cancels = new Map<string, () => void>()
  private cancelCheck = nothing
  private changedAt = Number.NEGATIVE_INFINITY
  private isStarted = false
  /** The progress of the connections to the writer at the last check. */
  private progress = 0
  /** The time when the last progress was seen. */
  progressAt = Number.NEGATIVE_INFINITY
  /** The host that {@link check} is probing. */
  private checked: SearchedHost | undefined
  /** The time of the last answer to a probe of {@link check}. */
  private answeredAt = Number.NEGATIVE_INFINITY

  constructor(
    private readonly search: WriterSearch,
    private readonly config: MonitorConfig,
    private readonly activityOf: (host: string) => HostActivity
  ) {}

  start(): void {
    if (this.isStarted) return
    this.isStarted = true
    for (const host of this.search.hosts) this.schedule(host)
    this.check()
  }

  /** Begins to monitor hosts, and ends it for others, whose probes are closed and do not call back. */
  onHosts(added: ReadonlyArray<SearchedHost>, removed: ReadonlyArray<SearchedHost>): void {
    for (const host of removed) {
      const { name } = host.endpoint
      this.cancels.get(name)?.()
      this.cancels.delete(name)
      if (this.checked === host) this.checked = undefined
    }
    if (this.isStarted) for (const host of added) this.schedule(host)
  }

  stop(): void {
    for (const cancel of this.cancels.values()) cancel()
    this.cancels.clear()
    this.cancelCheck()
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
      host.probe.ask(this.config.detectionTime * answerPart, (result) => {
        this.search.handle(host, result)
        // not after `stop`, and not if a change has begun a new interval
        if (this.cancels.get(name) === cancel) this.schedule(host)
      })
    })
    this.cancels.set(name, cancel)
  }

  /** Probes the writer if callers wait for it in silence, and checks that again and again. */
  private check(): void {
    const { detectionTime } = this.config
    this.cancelCheck = clock.later(detectionTime * checkPart, () => {
      const host = this.search.hosts.find(({ endpoint }) => endpoint.name === this.search.writer)
      const isSilent = host !== undefined && this.silenceOf(host.endpoint.name) >= detectionTime * silencePart
      if (isSilent && this.checked === undefined) {
        this.checked = host
        host.probe.ask(detectionTime * answerPart, (result) => {
          this.checked = undefined
          if (result._tag === "Answered") this.answeredAt = clock.now()
          this.search.handle(host, result)
        })
      }
      this.check()
    })
  }

  /** Returns the time for which callers and the monitor have received nothing that they wait for, in ms. */
  private silenceOf(host: string): number {
    const now = clock.now()
    const { heardAt, progress, waitsSince } = this.activityOf(host)
    // the close of a connection lowers the sum
    if (progress > this.progress) this.progressAt = now
    this.progress = progress
    return now - Math.max(heardAt, waitsSince, this.progressAt, this.answeredAt)
  }
}
