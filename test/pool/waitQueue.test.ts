/** The queue for a connection: the rejection of waiters by one timer for all. */
import { afterEach, assert, beforeEach, describe, it, vi } from "vitest"
import { LoadShedding } from "../../src/internal/pool/loadShedding.js"
import { Waiter, WaitQueue } from "../../src/internal/pool/waitQueue.js"

/** Opens a queue, and returns a function that adds a waiter with so many ms. */
const open = () => {
  const away: Array<string> = []
  const waiters = new WaitQueue<string>(new LoadShedding(Number.POSITIVE_INFINITY, 1), (waiter) => {
    if (!waiters.remove(waiter)) return
    away.push(waiter.callback)
    assert.isAtLeast(performance.now(), waiter.deadline)
  })
  const come = (name: string, patience: number) => {
    const now = performance.now()
    const waiter = new Waiter(now, now + patience, [], undefined, name)
    waiters.add(waiter)
    return waiter
  }
  return { away, come, waiters }
}

/** Returns the number of timers that keep the process alive. */
const timers = () => process.getActiveResourcesInfo().filter((what) => what === "Timeout").length

describe("waiters", () => {
  // on a busy machine real timers are late together, and then fire in the order of the waiters
  beforeEach(() => void vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] }))
  afterEach(() => void vi.useRealTimers())

  it("each waiter is rejected at its own deadline, also if that is before those of earlier waiters", () => {
    const { away, come } = open()
    come("first", 60)
    come("second", 20)
    come("third", 40)
    vi.advanceTimersByTime(100)
    assert.deepStrictEqual(away, ["second", "third", "first"])
  })

  it("a waiter that comes after the others have left has all of its time", () => {
    const { away, come, waiters } = open()
    waiters.remove(come("gone", 20))
    come("stays", 60)
    vi.advanceTimersByTime(100)
    assert.deepStrictEqual(away, ["stays"])
  })

  it("waiters are served in the order in which they came, whichever leaves in between", () => {
    const { come, waiters } = open()
    const [a, b, c, d] = ["a", "b", "c", "d"].map((name) => come(name, 10_000))
    assert(a && b && c && d)
    assert.isTrue(waiters.remove(b))
    assert.isFalse(waiters.remove(b))
    assert.strictEqual(waiters.removeFirst(performance.now()), a)
    assert.isTrue(waiters.remove(d))
    assert.deepStrictEqual([...waiters], [c])
    const e = come("e", 10_000)
    assert.deepStrictEqual(waiters.clear(), [c, e])
    assert.strictEqual(waiters.size, 0)
    assert.isUndefined(waiters.removeFirst(performance.now()))
  })

  it("a waiter keeps the process alive, and an empty queue does not", () => {
    vi.useRealTimers()
    const { come, waiters } = open()
    const before = timers()
    const one = come("one", 10_000)
    assert.strictEqual(timers(), before + 1)
    waiters.remove(one)
    assert.strictEqual(timers(), before)
    const other = come("other", 20_000)
    assert.strictEqual(timers(), before + 1)
    waiters.remove(other)
    waiters.clear()
    assert.strictEqual(timers(), before)
  })
})
