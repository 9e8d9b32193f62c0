/**
 * The growth of a pool in virtual time. `outage.test.ts` and `support/suites/pooling` test it on
 * real servers.
 */
import { afterEach, assert, beforeEach, describe, it, vi } from "vitest"
import { Growth } from "../../src/internal/pool/growth.js"

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "setImmediate", "clearImmediate", "performance"] })
})
afterEach(() => {
  vi.useRealTimers()
})

/** Times are in ms. */
interface Trial {
  /** The duration of a connect. */
  readonly connect: number
  /** The duration of a checkout. */
  readonly use: number
  readonly max: number
  /** The number of idle connections at the start. */
  readonly idle?: number
  /** The number of first connects that never complete. */
  readonly hanging?: number
  /** True if there were connections before, so that the duration of a connect is known. */
  readonly wasOpen?: boolean
  /** True if each caller checks out again after its check-in. */
  readonly isSteady?: boolean
}

/** A pool that receives `callers` checkouts at once. */
class Spike {
  total: number
  waiting = 0
  private idle: number
  private connecting = 0
  private late = 0
  private begun = 0
  private readonly growth: Growth

  constructor(
    private readonly trial: Trial,
    callers: number
  ) {
    this.total = trial.idle ?? 0
    this.idle = this.total
    this.growth = new Growth(
      () => {
        const pending = this.connecting - this.late
        const room = trial.max - this.total - this.connecting
        const active = this.total - this.idle
        return {
          waiting: this.waiting,
          wanted: this.waiting - pending,
          room,
          active,
          pending,
          isEmpty: this.total === 0
        }
      },
      () => this.open(),
      false
    )
    if (this.total > 0 || trial.wasOpen === true) this.growth.onConnected(trial.connect)
    for (let i = 0; i < callers; i++) {
      this.waiting++
      this.serve()
      this.growth.openIfNeeded()
    }
  }

  private serve(isBack = false): void {
    while (this.idle > 0 && this.waiting > 0) {
      this.idle--
      this.waiting--
      if (isBack) this.growth.onServed()
      setTimeout(() => {
        this.idle++
        if (this.trial.isSteady === true) this.waiting++
        this.serve(true)
        this.growth.openIfNeeded()
      }, this.trial.use)
    }
  }

  private open(): void {
    this.connecting++
    if (this.begun++ < (this.trial.hanging ?? 0)) {
      setTimeout(() => {
        this.late++
        this.growth.openIfNeeded()
      }, this.growth.expectedConnectTime + 1)
      return
    }
    setTimeout(() => {
      this.connecting--
      this.total++
      this.idle++
      this.growth.onConnected(this.trial.connect)
      this.serve()
    }, this.trial.connect)
  }
}

const hour = 3_600_000

describe("a spike of 50 short statements, where it takes 150 ms to connect", () => {
  const short = { connect: 150, use: 2, max: 50 }
  const trials: Readonly<Record<string, Trial>> = {
    "of five idle connections": { ...short, idle: 5 },
    "of one idle connection": { ...short, idle: 1 },
    "that has never had a connection": short,
    "whose connections are gone": { ...short, wasOpen: true }
  }
  for (const [name, trial] of Object.entries(trials)) {
    it(`a spike leaves at most eight connections in a pool ${name}`, () => {
      const spike = new Spike(trial, 50)
      vi.advanceTimersByTime(2000)
      assert.strictEqual(spike.waiting, 0)
      assert.isAtMost(spike.total, 8)
    })
  }
})

describe("a pool whose connections are all in long use", () => {
  for (const idle of [0, 5]) {
    it(`a pool whose connections are in long use is full within the time of four connects, with ${idle} connections before`, () => {
      const spike = new Spike({ connect: 150, use: hour, max: 20, idle }, 20)
      vi.advanceTimersByTime(600)
      assert.deepStrictEqual([spike.waiting, spike.total], [0, 20])
    })
  }
})

describe("callers that come repeatedly", () => {
  it("repeated callers get as many connections as the pool may open, however many more of them wait", () => {
    const steady = new Spike({ connect: 50, use: 5, max: 10, isSteady: true }, 100)
    vi.advanceTimersByTime(2000)
    assert.strictEqual(steady.total, 10)
  })

  it("repeated callers get as many connections as the pool may open, also if each waits for less than a connect takes", () => {
    const steady = new Spike({ connect: 50, use: 5, max: 10, isSteady: true }, 20)
    vi.advanceTimersByTime(2000)
    assert.strictEqual(steady.total, 10)
  })

  it("repeated callers get no more connections than they use", () => {
    const steady = new Spike({ connect: 50, use: 5, max: 10, isSteady: true }, 6)
    vi.advanceTimersByTime(2000)
    assert.deepStrictEqual([steady.waiting, steady.total], [0, 6])
  })
})

describe("connects that hang", () => {
  it("connects that hang delay callers only until these connects count as late", () => {
    const spike = new Spike({ connect: 20, use: 2, max: 10, hanging: 3 }, 10)
    vi.advanceTimersByTime(400)
    assert.strictEqual(spike.waiting, 0)
  })

  it("connects that all hang are limited to three until they are late", () => {
    const spike = new Spike({ connect: 20, use: 2, max: 50, hanging: 50 }, 50)
    vi.advanceTimersByTime(200)
    assert.strictEqual(spike.total, 0)
    // the timers of three connects, and the timer of the next check
    assert.strictEqual(vi.getTimerCount(), 4)
  })
})

describe("the check for more connections", () => {
  it("a pool checks once, not twice, for more connections if a connect completes just before the check", () => {
    const waiting = { waiting: 9, wanted: 9, room: 9, active: 0, pending: 0, isEmpty: true }
    const growth = new Growth(
      () => waiting,
      () => {},
      false
    )
    growth.openIfNeeded()
    // between the timer of a check and the check itself, data that has arrived is read
    for (let i = 0; i < 3; i++) vi.advanceTimersToNextTimer()
    growth.onConnected(5)
    assert.strictEqual(vi.getTimerCount(), 1)
    vi.advanceTimersToNextTimer()
    growth.stop()
    assert.strictEqual(vi.getTimerCount(), 0)
  })
})
