/** The first search for the writer, with hosts that answer when the test says so. */
import { afterEach, assert, beforeEach, describe, it, vi } from "vitest"
import type { ProbeResult } from "../../src/internal/topology/probe.js"
import { withoutHistory } from "../../src/internal/topology/probeReport.js"
import { WriterSearch } from "../../src/internal/topology/writerSearch.js"
import { noReports } from "../support/searchReports.js"

const primary = (timeline: number): ProbeResult => ({
  _tag: "Answered",
  report: { ...withoutHistory, systemId: "1", timeline },
  askedAt: 0,
  latency: undefined
})

const standby: ProbeResult = {
  _tag: "Answered",
  report: { ...withoutHistory, systemId: "1", isStandby: true },
  askedAt: 0,
  latency: undefined
}

const refused: ProbeResult = {
  _tag: "Failed",
  failure: { reason: "unreachable", error: new Error("connect ECONNREFUSED") },
  silentSince: undefined
}

/** Begins the search among hosts; returns the writer that the caller receives, and the answers to give. */
const begin = (...names: ReadonlyArray<string>) => {
  const discovery = { isAwaited: false }
  const endpointOf = (name: string) => ({ name, host: name, address: undefined, port: 5432, ssl: false })
  const answers = new Map<string, (result: ProbeResult) => void>()
  const search = new WriterSearch(
    names.map(endpointOf),
    (endpoint) => ({
      endpoint,
      probe: {
        isOpen: true,
        ask: (_, callback) => void answers.set(endpoint.name, callback),
        close: (callback) => callback()
      }
    }),
    10_000,
    { ...noReports, awaitsHosts: () => discovery.isAwaited }
  )
  const found: Array<string | undefined> = []
  search.locate(30_000, (_, host) => found.push(host?.name))
  return {
    answer: (name: string, result: ProbeResult) => answers.get(name)?.(result),
    close: () => search.close(() => {}),
    discover: (...names: ReadonlyArray<string>) => {
      discovery.isAwaited = false
      search.setHosts(names.map(endpointOf))
    },
    discovery,
    found,
    search
  }
}

describe("the first search for a writer", () => {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "setImmediate", "clearImmediate", "performance"] })
  })
  afterEach(() => {
    vi.useRealTimers()
  })

  it("a host with a later timeline, which answers second, becomes the writer before a caller receives one", () => {
    const { answer, close, found } = begin("a", "b")
    answer("a", primary(1))
    assert.deepStrictEqual(found, [])
    answer("b", primary(2))
    assert.deepStrictEqual(found, ["b"])
    close()
  })

  it("the search ends with the last answer, be it that of a standby or a failure", () => {
    const { answer, close, found } = begin("a", "b", "c")
    answer("b", standby)
    answer("a", primary(1))
    assert.deepStrictEqual(found, [])
    answer("c", refused)
    assert.deepStrictEqual(found, ["a"])
    close()
  })

  it("hosts that are being discovered are awaited, too", () => {
    const { answer, close, discover, discovery, found } = begin("a")
    discovery.isAwaited = true
    answer("a", primary(1))
    assert.deepStrictEqual(found, [])
    discover("a", "b")
    assert.deepStrictEqual(found, [])
    answer("b", primary(2))
    assert.deepStrictEqual(found, ["b"])
    close()
  })

  it("a writer that fails while others are awaited is not used at once when it answers again", async () => {
    const { answer, close, found } = begin("a", "b")
    answer("a", primary(1))
    answer("a", refused)
    await vi.advanceTimersByTimeAsync(302)
    answer("a", primary(1))
    assert.deepStrictEqual(found, [])
    answer("b", primary(2))
    assert.deepStrictEqual(found, ["b"])
    close()
  })

  it("a silent host delays the first caller by 300 ms, and later callers not at all", async () => {
    const { answer, close, found, search } = begin("a", "b")
    answer("a", primary(1))
    search.locate(30_000, (_, host) => found.push(host?.name))
    await vi.advanceTimersByTimeAsync(299)
    assert.deepStrictEqual(found, [])
    await vi.advanceTimersByTimeAsync(2)
    assert.deepStrictEqual(found, ["a", "a"])
    search.doubt("a")
    search.locate(30_000, (_, host) => found.push(host?.name))
    answer("a", primary(1))
    assert.deepStrictEqual(found, ["a", "a", "a"])
    close()
  })
})
