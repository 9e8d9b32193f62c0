/**
 * Growth of a pool: decides when connections are opened for waiters. The first connection is opened
 * at once. While waiters are left, a check every few milliseconds opens twice as many as the check
 * before. A check opens none if the queue is likely to drain before a new connection would be ready.
 *
 * Without any connection the speed of the queue cannot be measured, so only a few connections are
 * opened until the first is ready.
 *
 * If a queue drains fast but does not end, connections are opened one after the other.
 *
 * A connect that takes much longer than usual is no longer expected to succeed, because a packet
 * into a dead network gets no answer.
 *
 * With these rules a spike of short statements does not fill a pool, and a slow connect does not
 * delay the others. If all connections are used for long, the pool grows to its maximum within a
 * moment.
 */
import * as clock from "../concurrency/clock.js"

/** The interval between two checks, in ms. */
const checkInterval = 10

/** The time to observe a queue before its speed is used, as a share of the time of a connect. */
const observationShare = 1 / 3

/** The age from which a queue counts as permanent, as a multiple of the time of a connect. */
const standingQueueFactor = 2

/** The age from which a connect is late: `times` the usual time, but at least `least` ms. */
const lateConnect = { times: 3, least: 250 }

/** The limit for pending connects while there is no connection yet. */
const maxBlindConnects = 3

export interface Demand {
  /** The number of waiters. */
  readonly waiting: number
  /** The number of waiters for which no connection is being opened or validated. */
  readonly wanted: number
  /** The number of connections that may still be opened. */
  readonly room: number
  /** The number of connections in use. */
  readonly active: number
  /**
   * The number of connects in progress that are not late, and of connections that run `onConnect`.
   */
  readonly pending: number
  /** True if there is no connection yet that a waiter could get. */
  readonly isEmpty: boolean
}

const isNeeded = ({ room, wanted }: Demand): boolean => room > 0 && wanted > 0

export class Growth {
  /** Cancels the next check, if one is scheduled. */
  private cancelCheck: (() => void) | undefined
  private step = 1
  private checkedAt = 0
  /** The moment since which there has always been a connection and a queue. */
  private queueSince = 0
  /** True if there was no connection at the last check, and none has become ready since. */
  private wasEmpty = false
  /** The number of waiters that got a connection in the last {@link observedMillis}. */
  private servedCount = 0
  private observedMillis = 0
  /** The usual time of a connect, in ms; 0 before the first. */
  private connectTime = 0

  constructor(
    private readonly demand: () => Demand,
    private readonly open: () => void,
    /** True if no connection is reused, so that each waiter needs a new one. */
    private readonly isEager: boolean
  ) {}

  /**
   * Opens connections if there are waiters that need them, and schedules the checks that open more.
   */
  openIfNeeded(): void {
    if (this.cancelCheck !== undefined || !isNeeded(this.demand())) return
    this.step = 1
    this.servedCount = 0
    this.observedMillis = 0
    this.beginObservation()
    this.scheduleCheck()
    if (this.isEager) while (isNeeded(this.demand())) this.open()
    else this.open()
  }

  /** Counts a waiter that got a connection which was checked in. */
  onServed(): void {
    this.servedCount++
  }

  /** Records the time of a connect. */
  onConnected(took: number): void {
    // a faster connect replaces the average, because an outage may have delayed the earlier ones
    const isUsual = this.connectTime === 0 || took < this.connectTime
    this.connectTime = isUsual ? took : 0.8 * this.connectTime + 0.2 * took
    if (!this.wasEmpty || this.cancelCheck === undefined) return
    // the time without a connection does not show how fast the queue drains
    this.beginObservation()
    this.cancelCheck()
    this.scheduleCheck()
  }

  /** Returns the time after which a connect is late, in ms. */
  get expectedConnectTime(): number {
    return Math.max(lateConnect.least, lateConnect.times * this.connectTime)
  }

  stop(): void {
    this.cancelCheck?.()
    this.cancelCheck = undefined
  }

  private beginObservation(): void {
    this.wasEmpty = false
    this.checkedAt = clock.now()
    this.queueSince = this.checkedAt
  }

  private scheduleCheck(): void {
    this.cancelCheck = clock.later(checkInterval, () => this.check())
  }

  private check(): void {
    this.cancelCheck = undefined
    const demand = this.demand()
    if (!isNeeded(demand)) return
    const { active, pending, isEmpty, room, waiting, wanted } = demand
    this.wasEmpty = isEmpty
    if (isEmpty) {
      this.scheduleCheck()
      return this.openMany(Math.min(wanted, room, maxBlindConnects - pending))
    }
    const now = clock.now()
    this.observedMillis += now - this.checkedAt
    this.checkedAt = now
    if (this.observedMillis < this.connectTime * observationShare) return this.scheduleCheck()
    // until the queue has been observed for as long as a connect takes, each connection in use
    // counts as about to be checked in; from then on only the measured speed counts
    const expected = this.observedMillis < this.connectTime ? this.servedCount + active : this.servedCount
    const drainMillis = expected === 0 ? Number.POSITIVE_INFINITY : (waiting / expected) * this.observedMillis
    if (this.observedMillis > 2 * this.connectTime) {
      this.observedMillis /= 2
      this.servedCount /= 2
    }
    this.scheduleCheck()
    if (drainMillis <= this.connectTime) {
      if (pending === 0 && now - this.queueSince > this.connectTime * standingQueueFactor) this.open()
      return
    }
    this.step *= 2
    // waiters that get a connection before a new one would be ready do not need it
    const servedMeanwhile = Math.floor((waiting * this.connectTime) / drainMillis)
    this.openMany(Math.min(this.step, room, wanted - servedMeanwhile))
  }

  private openMany(count: number): void {
    for (let i = 0; i < count; i++) this.open()
  }
}
