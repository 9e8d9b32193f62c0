/**
 * When more connections are opened for those who wait: one at once, then, as long as somebody waits, twice as many every few
 * milliseconds. Nothing is opened while the queue is likely to be served before a new connection would be there.
 *
 * Where there is no connection yet, there is nothing to tell by how soon the queue will be served: then only a few are opened until the
 * first of them is there.
 *
 * A queue that is served fast and yet does not end is no spike: then connections are opened one after the other.
 *
 * A connect that takes much longer than usual holds up nobody: what was sent into a dead network never comes.
 *
 * So a spike of short statements does not fill a pool, a slow connect does not hold up the others, and a pool whose connections are
 * all in long use is full within a moment.
 */
import * as clock from "../concurrency/clock.js"

/** After how long it looks again, in ms. */
const pause = 10

/** For how long the queue is watched before it tells anything: that part of what a connect takes. */
const enough = 1 / 3

/** For how long there may be a queue before it is a standing one: so many times what a connect takes. */
const standing = 2

/** How long a connect may take before nobody counts on it any more: so many times as long as usual, and at least so many ms. */
const overdue = { times: 3, least: 250 }

/** How many connects may be under way while there is no connection to tell by whether more are needed. */
const few = 3

export interface Demand {
  /** How many wait. */
  readonly waiting: number
  /** For how many of them no connection is on its way. */
  readonly wanted: number
  /** How many connections may be opened. */
  readonly room: number
  /** How many connections are in use. */
  readonly busy: number
  /** How many connects are under way that may still be counted on. */
  readonly coming: number
  /** Whether there is no connection yet that could serve anybody. */
  readonly isEmpty: boolean
}

const isCalledFor = ({ room, wanted }: Demand): boolean => room > 0 && wanted > 0

export class Growth {
  /** Takes the next look back, if there is to be one. */
  private takeBack: (() => void) | undefined
  private step = 1
  private lookedAt = 0
  /** Since when somebody could have been served, and somebody has waited all the time. */
  private queueSince = 0
  /** Whether nobody could be served when it looked last. */
  private wasEmpty = false
  /** How many were served over the last `observed` ms. */
  private served = 0
  private observed = 0
  /** How long a connect takes, in ms. */
  private connectTime = 0

  constructor(
    private readonly demand: () => Demand,
    private readonly open: () => void,
    /** Nobody gives a connection back, so everybody needs a new one. */
    private readonly isEager: boolean
  ) {}

  /** Somebody waits. */
  ask(): void {
    if (this.takeBack !== undefined || !isCalledFor(this.demand())) return
    this.step = 1
    this.served = 0
    this.observed = 0
    this.watch()
    this.lookAgain()
    if (this.isEager) while (isCalledFor(this.demand())) this.open()
    else this.open()
  }

  /** Somebody who waited was served by a connection that came back. */
  serve(): void {
    this.served++
  }

  connected(took: number): void {
    // one that was held up by an outage says little about the next
    const isUsual = this.connectTime === 0 || took < this.connectTime
    this.connectTime = isUsual ? took : 0.8 * this.connectTime + 0.2 * took
    if (!this.wasEmpty || this.takeBack === undefined) return
    // the time before says nothing of how fast the queue is served
    this.watch()
    this.takeBack()
    this.lookAgain()
  }

  /** For how long a connect is likely to come still, in ms. */
  get hope(): number {
    return Math.max(overdue.least, overdue.times * this.connectTime)
  }

  stop(): void {
    this.takeBack?.()
    this.takeBack = undefined
  }

  private watch(): void {
    this.wasEmpty = false
    this.lookedAt = clock.now()
    this.queueSince = this.lookedAt
  }

  private lookAgain(): void {
    this.takeBack = clock.later(pause, () => this.look())
  }

  private look(): void {
    this.takeBack = undefined
    const demand = this.demand()
    if (!isCalledFor(demand)) return
    const { busy, coming, isEmpty, room, waiting, wanted } = demand
    this.wasEmpty = isEmpty
    if (isEmpty) {
      this.lookAgain()
      return this.openMany(Math.min(wanted, room, few - coming))
    }
    const now = clock.now()
    this.observed += now - this.lookedAt
    this.lookedAt = now
    if (this.observed < this.connectTime * enough) return this.lookAgain()
    // for as long as a connect takes, those in use are expected back any moment; after that only what was seen counts
    const expected = this.observed < this.connectTime ? this.served + busy : this.served
    const drained = expected === 0 ? Number.POSITIVE_INFINITY : (waiting / expected) * this.observed
    if (this.observed > 2 * this.connectTime) {
      this.observed /= 2
      this.served /= 2
    }
    this.lookAgain()
    if (drained <= this.connectTime) {
      if (coming === 0 && now - this.queueSince > this.connectTime * standing) this.open()
      return
    }
    this.step *= 2
    // who will have been served by the time when a new connection is there needs none
    const servedByThen = Math.floor((waiting * this.connectTime) / drained)
    this.openMany(Math.min(this.step, room, wanted - servedByThen))
  }

  private openMany(count: number): void {
    for (let i = 0; i < count; i++) this.open()
  }
}
