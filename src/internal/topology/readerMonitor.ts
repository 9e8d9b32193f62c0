/**
 * The monitor of one reader: its health, its lag behind the primary, and its latency. It has a
 * connection of its own, and probes the reader at an interval, and when callers wait for its answers.
 */

import type { LagLimits, MonitorConfig } from "../../DatabaseConfig.js"
import * as clock from "../concurrency/clock.js"
import type { Lag } from "./primaryPositions.js"
import type { PrimarySampler } from "./primarySampler.js"
import type { Probe, ProbeResult } from "./probe.js"
import type { ServerReport } from "./probeReport.js"
import type { Server } from "./server.js"
import { answerPart, SilenceWatch } from "./silenceWatch.js"
import { fast } from "./writerMonitor.js"

const nothing = () => {}

/** Probe of a reader, of its own or shared with the search for the writer. */
export interface ReaderProbe extends Pick<Probe, "ask" | "close"> {
  /** True while the search connects to the host, with pauses that it chooses. */
  readonly isSearching?: boolean
}

/** The interval while the lag is not known, because the primary has not answered in time, in ms. */
const uncheckedInterval = 1000

/** The part of the limit of the lag by which the position of the primary may be too old. */
const sampleError = 0.1

/** Monitor of one reader. It starts with the first read. */
export class ReaderMonitor {
  private readonly watch: SilenceWatch
  private readonly timeout: number
  /** The interval in force, in ms. */
  private interval: number
  private changedAt = Number.NEGATIVE_INFINITY
  private cancel = nothing
  private isStarted = false
  /** True if the primary has not answered in time at the last check. */
  private isPrimaryAway = false
  /** The number of connects that have failed since the last answer. */
  private failures = 0

  constructor(
    private readonly server: Server,
    private readonly probe: ReaderProbe,
    private readonly sampler: PrimarySampler,
    private readonly config: MonitorConfig,
    /** The interval of probing a reader that has failed, in ms. */
    private readonly retryDelay: number,
    private readonly lagLimits: LagLimits
  ) {
    this.interval = config.interval
    this.timeout = config.detectionTime * answerPart
    this.watch = new SilenceWatch(
      config.detectionTime,
      () => server.activityOf(server.name),
      (callback) => {
        server.onSilence()
        const since = clock.now()
        probe.ask(this.timeout, (result) => {
          const isAnswered = result._tag === "Answered"
          callback(isAnswered)
          // the primary was not asked for its position, so this is no check of the lag; a reader
          // that is down returns only after such a check
          if (isAnswered && server.isDown) this.checkSoon()
          else this.handle(result, since, undefined)
        })
      }
    )
  }

  start(): void {
    if (this.isStarted) return
    this.isStarted = true
    this.server.monitor = {
      // a reader that has failed has another interval
      onDown: () => this.schedule(),
      onRecovery: () => this.checkSoon(),
      progressAt: () => this.watch.progressAt
    }
    this.check()
    this.watch.start()
  }

  /** Stops the monitor, and closes its connection; `callback` is called when its socket is closed. */
  close(callback: () => void): void {
    this.cancel()
    this.cancel = nothing
    this.isStarted = false
    this.server.monitor = undefined
    this.watch.stop()
    this.probe.close(callback)
  }

  /** Shortens the interval for a while, because the replicas of another writer may be behind. */
  onWriterChanged(): void {
    this.changedAt = clock.now()
    if (this.isStarted) this.schedule()
  }

  private schedule(): void {
    this.cancel()
    const { interval } = this.config
    const isFast = clock.now() - this.changedAt < fast.duration || this.server.isUnsettled
    const isDown = !this.server.isUsable(Number.NEGATIVE_INFINITY)
    const isUnchecked = this.isPrimaryAway && this.server.isUnchecked
    const usual = isUnchecked ? uncheckedInterval : interval
    const next = isFast ? fast.interval : isDown ? Math.max(fast.interval, this.retryDelay) : usual
    this.interval = Math.min(next, interval)
    this.cancel = clock.later(this.interval, () => (this.probe.isSearching === true ? this.schedule() : this.check()))
  }

  /** Checks the reader in place of the check in progress, whose position of the primary is older. */
  private checkSoon(): void {
    if (!this.isStarted) return
    this.cancel()
    this.cancel = clock.later(0, () => this.check())
  }

  /**
   * Asks the primary, and then the reader, so that the position of the primary is not the later one. The
   * monitors of all readers share the positions of the primary.
   */
  private check(maxAge = this.maxSampleAge): void {
    const { cancel } = this
    // not after `close`, and not if a change has begun a new interval
    const isCurrent = () => this.isStarted && this.cancel === cancel
    this.sampler.sample(this.timeout, maxAge, (isAnswered) => {
      if (!isCurrent()) return
      this.isPrimaryAway = !isAnswered
      const since = clock.now()
      this.probe.ask(this.timeout, (result) => {
        if (!this.isStarted) return
        // a shared position does not show that the primary is there, and without a primary no
        // reader receives a log
        const isStale = result._tag === "Answered" && result.report.isStreaming === false
        if (isStale && isAnswered && maxAge > 0 && isCurrent()) return this.check(0)
        this.handle(result, since, (report, askedAt) => this.lagOf(report, askedAt, isAnswered))
        if (isCurrent()) this.schedule()
      })
    })
  }

  /** The age up to which a position of the primary is used for a check, in ms. */
  private get maxSampleAge(): number {
    const { bytes, millis } = this.lagLimits
    // the primary may write any number of bytes meanwhile
    return Number.isFinite(bytes) ? 0 : Math.min(this.interval / 2, millis * sampleError)
  }

  /** Handles the result of a probe that has begun at `since`. */
  private handle(
    result: ProbeResult,
    since: number,
    lagOf: ((report: ServerReport, askedAt: number) => Lag | undefined) | undefined
  ): void {
    const { server } = this
    if (result._tag === "Answered") {
      this.failures = 0
      server.onReport(result.report, result.latency)
      if (lagOf !== undefined) server.setLag(lagOf(result.report, result.askedAt))
      return
    }
    const { failure, silentSince } = result
    const { reason } = failure
    // the server is alive, and its open connections serve callers
    if (reason === "tooManyConnections" || reason === "credentials" || reason === "authentication") {
      return server.onRefusal()
    }
    if (reason !== "wrongRole" && server.hasHeard(server.name, silentSince ?? since)) return
    if (silentSince !== undefined) server.giveUpHost(server.name, failure.error)
    // a single connect may get lost, so the first failure only makes the reader suspect, and
    // another probe follows soon
    else if (reason !== "wrongRole" && this.failures++ === 0) return server.onSilence()
    server.onFailure(failure.error.message)
  }

  /** Returns the lag by the report of the reader, or `undefined` if it is unknown. */
  private lagOf(report: ServerReport, askedAt: number, isPrimaryThere: boolean): Lag | undefined {
    // without a position of this moment, the reader may have reached only an old one. While the
    // primary is away no standby receives a log, and the standbys have to serve the reads
    return isPrimaryThere ? this.sampler.positions.lagOf(report, clock.now(), askedAt) : undefined
  }
}
