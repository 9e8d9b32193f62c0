/** The policies that choose the server of a read. */
import { Router } from "effect-db"
import { assert, describe, it } from "vitest"

const candidate = (name: string, settings: Partial<Router.Candidate>): Router.Candidate => ({
  name,
  load: 0,
  weight: 1,
  lagMillis: 0,
  lagBytes: 0,
  latencyMillis: 1,
  ...settings
})

const ask = { database: "app", turn: 0, random: 0.7 }

/** Returns the number of choices of each candidate, for random numbers that are spread evenly. */
const counts = (choose: Router.Choose, candidates: ReadonlyArray<Router.Candidate>): ReadonlyArray<number> => {
  const all = Array.from({ length: 1200 }, (_, i) => choose({ ...ask, random: i / 1200 }, candidates))
  return candidates.map((_, at) => all.filter((choice) => choice === at).length)
}

describe("the policies of the router", () => {
  it("the policies by turn, by random number and by load choose as their names say", () => {
    const candidates = [candidate("a", { load: 3 }), candidate("b", { load: 2 }), candidate("c", { load: 2 })]
    const byTurn = (choose: Router.Choose) => [0, 1, 2, 3].map((turn) => choose({ ...ask, turn }, candidates))
    assert.deepStrictEqual(byTurn(Router.roundRobin), [0, 1, 2, 0])
    assert.deepStrictEqual(byTurn(Router.leastBusy), [1, 1, 2, 1])
    assert.strictEqual(Router.random(ask, candidates), 2)
  })

  it("a weighted choice gives each server its share", () => {
    const candidates = [candidate("a", { weight: 1 }), candidate("b", { weight: 2.5 }), candidate("c", { weight: 0.5 })]
    const [a = 0, b = 0, c = 0] = counts(Router.weighted, candidates)
    for (const [count, share] of [
      [a, 300],
      [b, 750],
      [c, 150]
    ] as const)
      assert.approximately(count, share, 1)
  })

  it("a choice by latency never gives the slowest of three servers a read, and the fastest one most reads", () => {
    const candidates = [
      candidate("slow", { latencyMillis: 30 }),
      candidate("fast", { latencyMillis: 1 }),
      candidate("medium", { latencyMillis: 5 })
    ]
    assert.deepStrictEqual(counts(Router.fastest, candidates), [0, 800, 400])
  })

  it("a choice by latency gives reads to a slower server when the faster one is loaded", () => {
    const loaded = [candidate("fast", { load: 9 }), candidate("slow", { latencyMillis: 5 })]
    assert.deepStrictEqual(counts(Router.fastest, loaded), [0, 1200])
  })

  it("a choice by latency uses the load alone if the latency of a server is not known", () => {
    const known = candidate("known", { latencyMillis: 30 })
    const candidates = [known, candidate("new", { latencyMillis: undefined })]
    assert.deepStrictEqual(counts(Router.fastest, candidates), [600, 600])
    const loaded = [known, candidate("new", { latencyMillis: undefined, load: 1 })]
    assert.deepStrictEqual(counts(Router.fastest, loaded), [1200, 0])
  })
})
