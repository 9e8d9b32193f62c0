/** The times at which the hosts of a cluster are asked for. */
import { afterEach, assert, beforeEach, describe, it, vi } from "vitest"
import type { Endpoint } from "../../src/DatabaseConfig.js"
import { HostDiscovery } from "../../src/internal/topology/hostDiscovery.js"

type Answer = ReadonlyArray<Endpoint> | Error | "never"

/** Opens a discovery whose source answers with `answer`, unless it is "never". */
const open = (answer: Answer = []) => {
  const start = performance.now()
  const state = { answer, isUrgent: false, asked: [] as Array<number>, events: [] as Array<string>, cancelled: 0 }
  const discovery = new HostDiscovery(
    {
      request: (callback) => {
        // `clock.later` lets a turn of the event loop pass, which takes a virtual millisecond
        state.asked.push(Math.round((performance.now() - start) / 100) * 100)
        if (state.answer instanceof Error) callback(undefined, state.answer)
        else if (state.answer !== "never") callback(state.answer, undefined)
        return () => {
          state.cancelled++
        }
      }
    },
    { interval: 30_000, timeout: 5000 },
    {
      onHosts: () => state.events.push("hosts"),
      onFailed: ({ message }) => state.events.push(message),
      isUrgent: () => state.isUrgent
    }
  )
  return { discovery, state }
}

describe("the discovery of hosts", () => {
  beforeEach(
    () =>
      void vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "setImmediate", "clearImmediate", "performance"] })
  )
  afterEach(() => void vi.useRealTimers())

  it("the source is asked at the start, once, and then at the interval", async () => {
    const { discovery, state } = open()
    discovery.start()
    discovery.start()
    await vi.advanceTimersByTimeAsync(65_000)
    assert.deepStrictEqual(state.asked, [0, 30_000, 60_000])
    assert.deepStrictEqual(state.events, ["hosts", "hosts", "hosts"])
    discovery.stop()
  })

  it("after the loss of the writer the source is asked at once, and every second while the writer is searched", async () => {
    const { discovery, state } = open()
    discovery.start()
    await vi.advanceTimersByTimeAsync(10_000)
    state.isUrgent = true
    discovery.hurry()
    await vi.advanceTimersByTimeAsync(2500)
    state.isUrgent = false
    await vi.advanceTimersByTimeAsync(40_000)
    assert.deepStrictEqual(state.asked, [0, 10_000, 11_000, 12_000, 13_000, 43_000])
    discovery.stop()
  })

  it("two losses within a second ask twice, a second apart, and a request in progress is not repeated", async () => {
    const { discovery, state } = open()
    discovery.start()
    discovery.hurry()
    await vi.advanceTimersByTimeAsync(400)
    discovery.hurry()
    discovery.hurry()
    await vi.advanceTimersByTimeAsync(5000)
    assert.deepStrictEqual(state.asked, [0, 1000])
    discovery.stop()
  })

  it("a source without an answer is cancelled after the timeout, and asked again at the interval", async () => {
    const { discovery, state } = open("never")
    discovery.start()
    await vi.advanceTimersByTimeAsync(1)
    assert.isTrue(discovery.isAsking)
    await vi.advanceTimersByTimeAsync(5010)
    assert.isFalse(discovery.isAsking)
    assert.deepStrictEqual([state.cancelled, state.events], [1, ["no answer within 5000 ms"]])
    state.answer = new Error("no route")
    await vi.advanceTimersByTimeAsync(30_010)
    assert.deepStrictEqual([state.asked, state.events[1]], [[0, 35_000], "no route"])
    discovery.stop()
  })

  it("a stop cancels the request and prevents further ones", async () => {
    const { discovery, state } = open("never")
    discovery.start()
    await vi.advanceTimersByTimeAsync(1)
    discovery.stop()
    discovery.hurry()
    await vi.advanceTimersByTimeAsync(100_000)
    assert.deepStrictEqual([state.asked, state.cancelled, state.events], [[0], 1, []])
  })
})
