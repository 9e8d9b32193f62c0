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
  const add = (name: string, millis: number, isUrgent = false) => {
    const now = performance.now()
    const waiter = new Waiter(now, now + millis, [], undefined, name, isUrgent)
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

  it("urgent waiters are served before the others, in the order in which they came", () => {
    const { add, waiters } = open()
    const a = add("a", 10_000)
    const [b, c] = [add("b", 10_000, true), add("c", 10_000, true)]
    const d = add("d", 10_000)
    assert.deepStrictEqual([...waiters], [b, c, a, d])
    assert.strictEqual(waiters.removeFirst(performance.now()), b)
    assert.isTrue(waiters.remove(c))
    assert.deepStrictEqual(waiters.clear(), [a, d])
    const e = add("e", 10_000, true)
    assert.strictEqual(waiters.removeFirst(performance.now()), e)
    assert.strictEqual(waiters.size, 0)
  })

  it("an overload rejects no urgent waiter before its deadline", () => {
    const rejected: Array<string> = []
    const loadShedding = new LoadShedding(10, 1)
    const waiters = new WaitQueue<string>(
      loadShedding,
      (waiter, reason) => {
        if (waiters.remove(waiter)) rejected.push(`${waiter.callback}: ${reason}`)
      },
      { setWaiting: () => {} }
    )
    const now = performance.now()
    const add = (name: string, isUrgent: boolean) =>
      waiters.add(new Waiter(now, now + 200, [], undefined, name, isUrgent))
    add("first", false)
    add("urgent", true)
    add("also urgent", true)
    add("second", false)
    loadShedding.isOverloaded = true
    vi.advanceTimersByTime(50)
    assert.strictEqual(waiters.removeFirst(performance.now())?.callback, "urgent")
    assert.deepStrictEqual(rejected, ["first: shed", "second: shed"])
    vi.advanceTimersByTime(300)
    assert.deepStrictEqual(rejected, ["first: shed", "second: shed", "also urgent: timeout"])
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
