/**
 * The discovery of the hosts of a cluster: its source is asked at an interval, and often while the
 * writer is searched.
 */

import type { Endpoint } from "../../DatabaseConfig.js"
import * as clock from "../concurrency/clock.js"

/** Source of the hosts of a cluster. It may run code of the program. */
export interface HostSource {
  /** Asks for the hosts, and calls back once, unless the returned function cancels. */
  readonly request: (
    callback: (hosts: ReadonlyArray<Endpoint> | undefined, error: Error | undefined) => void
  ) => () => void
}

/** Times of a discovery, in ms. */
export interface DiscoveryTimes {
  readonly interval: number
  /** The timeout of one answer. */
  readonly timeout: number
}

/** Callbacks for the answers. */
export interface DiscoveryReports {
  /** Called with each answer. */
  readonly onHosts: (hosts: ReadonlyArray<Endpoint>) => void
  /** Called if there is no answer, or none that can be used. */
  readonly onFailed: (error: Error) => void
  /** Checks if the writer is being searched. */
  readonly isUrgent: () => boolean
}

/** The time between two requests while the writer is searched, in ms, unless the interval is shorter. */
const urgentInterval = 1000

const nothing = () => {}

/** Discovery of the hosts of one cluster. It starts with the first request. */
export class HostDiscovery {
  /** True while an answer is awaited. */
  isAsking = false
  private askedAt = Number.NEGATIVE_INFINITY
  private cancelRequest = nothing
  private cancelTimer = nothing
  private isStopped = false

  constructor(
    private readonly source: HostSource,
    private readonly times: DiscoveryTimes,
    private readonly reports: DiscoveryReports
  ) {}

  /** Asks as soon as possible: at once, or a second after the last request. */
  hurry(): void {
    if (!this.isAsking) this.askWithin(this.askedAt + urgentInterval - clock.now())
  }

  /** Asks at once, if it has never asked. */
  start(): void {
    if (this.askedAt === Number.NEGATIVE_INFINITY) this.hurry()
  }

  stop(): void {
    this.isStopped = true
    this.cancelTimer()
    this.cancelRequest()
  }

  private askWithin(millis: number): void {
    this.cancelTimer()
    if (this.isStopped) return
    if (millis <= 0) this.ask()
    else if (Number.isFinite(millis)) this.cancelTimer = clock.later(millis, () => this.ask())
  }

  private ask(): void {
    if (this.isAsking) return
    this.isAsking = true
    this.askedAt = clock.now()
    const { timeout } = this.times
    let isOver = false
    const end = (report: () => void) => {
      if (isOver) return
      isOver = true
      cancelTimeout()
      this.cancelRequest = nothing
      this.isAsking = false
      report()
      // the report may have begun a search, which has asked again
      if (this.isAsking) return
      const { interval } = this.times
      this.askWithin(this.reports.isUrgent() ? Math.min(interval, urgentInterval) : interval)
    }
    const cancelTimeout = clock.later(timeout, () => {
      this.cancelRequest()
      end(() => this.reports.onFailed(new Error(`no answer within ${Math.round(timeout)} ms`)))
    })
    this.cancelRequest = cancelTimeout
    // not in this call, because the source may answer at once, and the caller has just begun a search
    queueMicrotask(() => {
      if (this.isStopped) return
      const cancel = this.source.request((hosts, error) =>
        end(() => {
          if (hosts === undefined) this.reports.onFailed(error ?? new Error("there is no answer"))
          else this.reports.onHosts(hosts)
        })
      )
      if (isOver) return
      this.cancelRequest = () => {
        cancelTimeout()
        cancel()
      }
    })
  }
}
