/** The lag of a replica, the states by lag and health, and their transitions. */
import { assert, describe, it } from "vitest"
import { initial, isUnsettled, type LagState, onLag } from "../../src/internal/topology/lagState.js"
import { type Lag, PrimaryPositions } from "../../src/internal/topology/primaryPositions.js"
import { type ServerReport, withoutHistory } from "../../src/internal/topology/probeReport.js"
import * as Health from "../../src/internal/topology/serverHealth.js"

const primary = (lsn: bigint, timeline = 1): ServerReport => ({ ...withoutHistory, systemId: "7", timeline, lsn })

const standby = (lsn: bigint, report: Partial<ServerReport> = {}): ServerReport => ({
  ...primary(lsn),
  isStandby: true,
  isStreaming: true,
  ...report
})

/** Returns the positions of a primary that has written 100 bytes a second, and was asked each second. */
const positions = (seconds = 10): PrimaryPositions => {
  const all = new PrimaryPositions()
  for (let s = 0; s <= seconds; s++) all.record(primary(BigInt(100 * s)), 1000 * s, 1000 * s + 1)
  return all
}

const infinite: Lag = { bytes: Number.POSITIVE_INFINITY, millis: Number.POSITIVE_INFINITY }

describe("the lag of a replica", () => {
  it("a replica that has reached the latest position has no lag, however old its last commit is", () => {
    assert.deepStrictEqual(positions().lagOf(standby(1000n, { replayedAgo: 3_600_000 }), 10_500), {
      bytes: 0,
      millis: 0
    })
  })

  it("the lag in time is between the ages of the positions that the replica has not and has reached", () => {
    // it has the position of second 6, and lacks that of second 7, which was reached by 7001
    const lagBy = (replayedAgo: number | undefined) => positions().lagOf(standby(650n, { replayedAgo }), 10_500)
    assert.deepStrictEqual(lagBy(4000), { bytes: 350, millis: 4000 })
    // clocks that differ do not move it out of these bounds
    assert.strictEqual(lagBy(-60_000)?.millis, 3499)
    assert.strictEqual(lagBy(60_000)?.millis, 4500)
    assert.strictEqual(lagBy(undefined)?.millis, 3499)
  })

  it("the time of a replica that lacks all known positions is at least the age of the oldest one", () => {
    const recent = new PrimaryPositions()
    recent.record(primary(500n), 1000, 1001)
    assert.deepStrictEqual(recent.lagOf(standby(100n, { replayedAgo: 45_000 }), 3000), { bytes: 400, millis: 45_000 })
    assert.deepStrictEqual(recent.lagOf(standby(100n), 3000), { bytes: 400, millis: 1999 })
  })

  it("a replica that receives nothing, or is of another history, is stale whatever its position is", () => {
    const stale = [{ isStreaming: false, timeline: undefined }, { timeline: 2 }, { systemId: "8" }]
    for (const report of stale) assert.deepStrictEqual(positions().lagOf(standby(5000n, report), 10_500), infinite)
  })

  it("the lag is unknown without a position of the primary, and without one of the replica", () => {
    assert.isUndefined(new PrimaryPositions().lagOf(standby(100n), 1000))
    const silent = { ...withoutHistory, isStandby: true }
    assert.isUndefined(positions().lagOf(silent, 10_500))
  })

  it("a server that is no standby has no lag if it was promoted, and is stale if it is a former primary", () => {
    const all = new PrimaryPositions()
    all.record(primary(1000n, 2), 1000, 1001)
    assert.deepStrictEqual(all.lagOf(primary(10n, 3), 2000), { bytes: 0, millis: 0 })
    assert.deepStrictEqual(all.lagOf(primary(1000n, 2), 2000), { bytes: 0, millis: 0 })
    assert.deepStrictEqual(all.lagOf(primary(9000n, 1), 2000), infinite)
    assert.isUndefined(all.lagOf(withoutHistory, 2000))
  })

  it("a log that ends within a record, at the end of a page, is no lag", () => {
    const all = new PrimaryPositions()
    all.record(primary(81_920n), 1000, 1001)
    assert.deepStrictEqual(all.lagOf(standby(81_900n, { replayedAgo: 60_000 }), 60_000), { bytes: 0, millis: 0 })
    assert.strictEqual(all.lagOf(standby(70_000n), 60_000)?.bytes, 11_920)
  })

  it("a user who may not see the state of replication gets the lag by the position", () => {
    const report = standby(1000n, { isStreaming: undefined, timeline: undefined })
    assert.deepStrictEqual(positions().lagOf(report, 10_500), { bytes: 0, millis: 0 })
  })

  it("positions of another timeline replace the earlier ones", () => {
    const all = positions()
    all.record(primary(900n, 2), 11_000, 11_001)
    assert.strictEqual(all.oldestSince(0)?.timeline, 2)
    assert.deepStrictEqual(all.lagOf(standby(1000n), 11_500), infinite)
  })

  it("the oldest position since a moment is the first that was asked for after it", () => {
    assert.strictEqual(positions().oldestSince(4000)?.lsn, 400n)
    assert.strictEqual(positions().oldestSince(4001)?.lsn, 500n)
    assert.isUndefined(positions().oldestSince(10_001))
  })

  it("the number of positions is bounded, and the latest one is always kept", () => {
    const dense = new PrimaryPositions()
    for (let i = 0; i < 100_000; i++) dense.record(primary(BigInt(i)), 10 * i, 10 * i)
    assert.strictEqual(dense.latest?.lsn, 99_999n)
    const first = dense.oldestSince(0)?.from ?? 0
    assert.isAbove(first, 1_000_000 - 600 * 220)
    assert.isBelow(first, 1_000_000 - 60_000)
  })

  it("a position that the primary has reached after the replica was asked does not count", () => {
    const lag = (askedAt: number) => positions().lagOf(standby(900n), 11_000, askedAt)
    assert.deepStrictEqual(lag(10_001), { bytes: 100, millis: 999 })
    assert.deepStrictEqual(lag(10_000), { bytes: 0, millis: 0 })
    // unless there is no other
    const only = positions(0)
    only.record(primary(50n, 2), 20, 21)
    assert.strictEqual(only.lagOf(standby(40n, { timeline: 2 }), 30, 20)?.bytes, 10)
  })

  it("an answer that arrives after a later one is ignored", () => {
    const all = positions()
    all.record(primary(950n), 9500, 11_000)
    assert.strictEqual(all.latest?.lsn, 1000n)
  })
})

describe("the state of a replica by its lag", () => {
  const limits = { millis: 1000, bytes: Number.POSITIVE_INFINITY }
  const stateAfter = (...millis: ReadonlyArray<number | undefined>): LagState =>
    millis.reduce<LagState>(
      (state, one) => onLag(state, one === undefined ? undefined : { millis: one, bytes: 10 }, limits),
      initial
    )

  it("the first check decides alone, because nothing is known about the replica before it", () => {
    assert.strictEqual(stateAfter(1001)._tag, "Behind")
    assert.strictEqual(stateAfter(1000)._tag, "Current")
    assert.isFalse(isUnsettled(initial))
  })

  it("two successive checks above the limit leave a replica out", () => {
    assert.strictEqual(stateAfter(0, 1001)._tag, "Current")
    assert.isTrue(isUnsettled(stateAfter(0, 1001)))
    assert.strictEqual(stateAfter(0, 1001, 900, 1001)._tag, "Current")
    assert.strictEqual(stateAfter(0, 1001, 1001)._tag, "Behind")
  })

  it("two successive checks below half of the limit bring a replica back", () => {
    assert.strictEqual(stateAfter(2000, 2000, 400)._tag, "Behind")
    assert.isTrue(isUnsettled(stateAfter(2000, 2000, 400)))
    assert.strictEqual(stateAfter(2000, 2000, 400, 600, 400)._tag, "Behind")
    assert.strictEqual(stateAfter(2000, 2000, 500, 500)._tag, "Current")
  })

  it("an unknown lag changes nothing", () => {
    assert.strictEqual(stateAfter(undefined)._tag, "Unchecked")
    assert.strictEqual(stateAfter(0, 2000, undefined)._tag, "Current")
    assert.strictEqual(stateAfter(0, 2000, undefined, 2000)._tag, "Behind")
    assert.strictEqual(stateAfter(2000, 2000, 0, undefined, 0)._tag, "Current")
  })

  it("a limit in bytes counts without one in time, and a stale replica exceeds every limit but infinity", () => {
    const bytes = { millis: Number.POSITIVE_INFINITY, bytes: 9 }
    const one = onLag(initial, { millis: 0, bytes: 10 }, bytes)
    assert.strictEqual(onLag(one, { millis: 0, bytes: 10 }, bytes)._tag, "Behind")
    const none = { millis: Number.POSITIVE_INFINITY, bytes: Number.POSITIVE_INFINITY }
    assert.isFalse(isUnsettled(onLag(initial, infinite, none)))
  })
})

describe("the health of a reader", () => {
  const down = Health.onFailure("refused", 5000)

  it("a server that has failed is left out for a time, and then one read tries it", () => {
    assert.isFalse(Health.isUsable(down, 4999))
    assert.isTrue(Health.isUsable(down, 5000))
    const trial = Health.onChosen(down, 5000, 10_000)
    assert.strictEqual(trial._tag, "trial")
    assert.isFalse(Health.isUsable(trial, 5001))
    // a trial that was given up, such as by an interruption, does not keep the server out for ever
    assert.isTrue(Health.isUsable(trial, 10_000))
  })

  it("an answer ends every state, and a failure ends a trial", () => {
    assert.strictEqual(Health.onAnswer()._tag, "up")
    const trial = Health.onChosen(down, 5000, 10_000)
    assert.strictEqual(Health.onFailure("refused", 12_000)._tag, "down")
    assert.strictEqual(Health.onSilence(trial)._tag, "trial")
  })

  it("a silence makes a server suspect, which stays usable, and changes nothing for a server that is down", () => {
    const suspect = Health.onSilence(Health.onAnswer())
    assert.strictEqual(suspect._tag, "suspect")
    assert.isTrue(Health.isUsable(suspect, 0))
    assert.strictEqual(Health.onSilence(Health.initial)._tag, "suspect")
    assert.deepStrictEqual(Health.onSilence(down), down)
    assert.deepStrictEqual(Health.onChosen(suspect, 0, 1), suspect)
  })
})
