/** The queue for a connection: the rejection of waiters by one timer for all. */
import { afterEach, assert, beforeEach, describe, it, vi } from "vitest"
import { LoadShedding } from "../../src/internal/pool/loadShedding.js"
import { Waiter, WaitQueue } from "../../src/internal/pool/waitQueue.js"

/**
 * Creates a queue. `add` adds a waiter with a deadline in so many ms; `rejected` has the names of
 * the waiters that were rejected.
 */
const open = () => {
  const rejected: Array<string> = []
  const reject = (waiter: Waiter<string>) => {
    if (!waiters.remove(waiter)) return
    rejected.push(waiter.callback)
    assert.isAtLeast(performance.now(), waiter.deadline)
  }
  const loadShedding = new LoadShedding(Number.POSITIVE_INFINITY, 1)
  const waiters = new WaitQueue<string>(loadShedding, reject, { setWaiting: () => {} })
  const add = (name: string, millis: number) => {
    const now = performance.now()
    const waiter = new Waiter(now, now + millis, [], undefined, name)
    waiters.add(waiter)
    return waiter
  }
  return { rejected, add, waiters }
}

/** Returns the number of timers that keep the process alive. */
const timers = () => process.getActiveResourcesInfo().filter((what) => what === "Timeout").length

describe("waiters", () => {
  // real timers that are late together fire in the order of the waiters, not of their deadlines
  beforeEach(() => void vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] }))
  afterEach(() => void vi.useRealTimers())

  it("each waiter is rejected at its own deadline, also if that is before those of earlier waiters", () => {
    const { rejected, add } = open()
    add("first", 60)
    add("second", 20)
    add("third", 40)
    vi.advanceTimersByTime(100)
    assert.deepStrictEqual(rejected, ["second", "third", "first"])
  })

  it("a waiter that comes after the others have left is not rejected before its own deadline", () => {
    const { rejected, add, waiters } = open()
    waiters.remove(add("gone", 20))
    add("stays", 60)
    vi.advanceTimersByTime(100)
    assert.deepStrictEqual(rejected, ["stays"])
  })

  it("waiters are served in the order in which they came, also if some leave in between", () => {
    const { add, waiters } = open()
    const [a, b, c, d] = ["a", "b", "c", "d"].map((name) => add(name, 10_000))
    assert(a && b && c && d)
    assert.isTrue(waiters.remove(b))
    assert.isFalse(waiters.remove(b))
    assert.strictEqual(waiters.removeFirst(performance.now()), a)
    assert.isTrue(waiters.remove(d))
    assert.deepStrictEqual([...waiters], [c])
    const e = add("e", 10_000)
    assert.deepStrictEqual(waiters.clear(), [c, e])
    assert.strictEqual(waiters.size, 0)
    assert.isUndefined(waiters.removeFirst(performance.now()))
  })

  it("a waiter keeps the process alive, and an empty queue does not", () => {
    vi.useRealTimers()
    const { add, waiters } = open()
    const before = timers()
    const one = add("one", 10_000)
    assert.strictEqual(timers(), before + 1)
    waiters.remove(one)
    assert.strictEqual(timers(), before)
    const other = add("other", 20_000)
    assert.strictEqual(timers(), before + 1)
    waiters.remove(other)
    waiters.clear()
    assert.strictEqual(timers(), before)
  })
})
