/** The retry budget by itself, without a database. */
import { assert, describe, it, vi } from "vitest"
import { RetryBudget } from "../../src/internal/client/retryBudget.js"

const policy = { burst: 4, perSecond: 0 }

/** Takes until nothing is left; returns the number of attempts. */
const takeAll = (budget: RetryBudget, of = policy): number => {
  let taken = 0
  while (budget.take(of)) taken++
  return taken
}

describe("a retry budget", () => {
  it("a retry budget is used up by attempts that return nothing to it", () => {
    const budget = new RetryBudget()
    assert.strictEqual(takeAll(budget), 4)
    assert.isFalse(budget.take(policy))
  })

  it("a retry budget regains what a caller returns, and no more", () => {
    const budget = new RetryBudget()
    takeAll(budget)
    budget.giveBack(3, policy)
    assert.strictEqual(takeAll(budget), 3)
  })

  it("a retry budget lasts for any number of callers that return what they take, in any order", () => {
    const budget = new RetryBudget()
    const open: Array<number> = []
    for (let n = 0; n < 1000; n++) {
      // two callers at a time, with two attempts each
      if (open.length === 2) budget.giveBack(open.splice(n % 2, 1)[0] ?? 0, policy)
      assert.isTrue(budget.take(policy) && budget.take(policy), `caller ${n}`)
      open.push(2)
    }
  })

  it("a retry budget never exceeds its maximum when callers return attempts after it has refilled over time", () => {
    vi.useFakeTimers({ toFake: ["performance"] })
    try {
      const budget = new RetryBudget()
      const filling = { burst: 4, perSecond: 4 }
      assert.strictEqual(takeAll(budget, filling), 4)
      vi.advanceTimersByTime(2000)
      assert.strictEqual(takeAll(budget, filling), 4)
      budget.giveBack(4, filling)
      budget.giveBack(4, filling)
      assert.strictEqual(takeAll(budget, filling), 4)
      // returned before the refill over time is computed
      vi.advanceTimersByTime(2000)
      budget.giveBack(3, filling)
      assert.strictEqual(takeAll(budget, filling), 4)
    } finally {
      vi.useRealTimers()
    }
  })

  it("a retry budget keeps its attempts when a caller whose policy has a lower maximum returns one", () => {
    const budget = new RetryBudget()
    assert.isTrue(budget.take(policy))
    budget.giveBack(1, { burst: 1, perSecond: 0 })
    assert.strictEqual(takeAll(budget), 3)
  })
})
