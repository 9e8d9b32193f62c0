/** The checks of the monitors: their times, and the state of a reader after them. */
import * as Either from "effect/Either"
import * as Redacted from "effect/Redacted"
import { DatabaseConfig } from "effect-db"
import { afterEach, assert, beforeEach, describe, it, vi } from "vitest"
import { CredentialSource } from "../../src/internal/connection/credentials.js"
import { makePoolMetrics } from "../../src/internal/observability/poolMetrics.js"
import { OutageWaiters } from "../../src/internal/pool/outageWaiters.js"
import { PrimarySampler } from "../../src/internal/topology/primarySampler.js"
import type { ProbeResult } from "../../src/internal/topology/probe.js"
import { type ServerReport, withoutHistory } from "../../src/internal/topology/probeReport.js"
import { ReaderMonitor } from "../../src/internal/topology/readerMonitor.js"
import { Server } from "../../src/internal/topology/server.js"
import { WriterMonitor } from "../../src/internal/topology/writerMonitor.js"
import { WriterSearch } from "../../src/internal/topology/writerSearch.js"
import type { ConnectReason } from "../../src/SqlState.js"
import { noReports } from "../support/searchReports.js"

const primary: ServerReport = { ...withoutHistory, systemId: "7", timeline: 1, lsn: 1000n }

const standby: ServerReport = { ...primary, isStandby: true, isStreaming: true }

const late: ServerReport = { ...standby, lsn: 10n, replayedAgo: 600_000 }

const answer = (report: ServerReport): ProbeResult => ({
  _tag: "Answered",
  report,
  askedAt: performance.now(),
  latency: 1
})

const failure = (reason: ConnectReason): ProbeResult => ({
  _tag: "Failed",
  failure: { reason, error: new Error(reason) },
  silentSince: undefined
})

const retryDelay = 5000

/** Checks that questions were asked at an interval, apart from the turns of the event loop that they take. */
const assertInterval = (asked: ReadonlyArray<number>, from: number, to: number, interval: number) => {
  const times = asked.filter((at) => at >= from && at < to)
  assert.approximately(times.length, (to - from) / interval, 1 + (0.03 * (to - from)) / interval)
  for (const [i, at] of times.entries()) assert.approximately(at - (times[i - 1] ?? at - interval), interval, 5)
}

/** Makes a monitor of a reader that gives an answer at once, and the times at which it is asked. */
const makeReader = (sampler: PrimarySampler, options: Partial<DatabaseConfig.CommonOptions> = {}) => {
  const url = Redacted.make("postgres://me@127.0.0.1:1/app")
  const config = Either.getOrThrow(DatabaseConfig.make("app", { writer: url, readers: [url], ...options }))
  const server = new Server(config.readers[0] ?? assert.fail("there is no reader"), "reader", {
    config,
    credentials: new CredentialSource({ isDynamic: false, request: () => () => {} }),
    isWriter: () => false,
    locator: undefined,
    makeMetrics: makePoolMetrics,
    metrics: undefined,
    observer: { active: false, observe: () => {} },
    outageWaiters: new OutageWaiters(0),
    tasks: {}
  })
  const state = { answer: (): ProbeResult => answer(standby), asked: [] as Array<number> }
  const start = performance.now()
  const probe = {
    ask: (_: number, callback: (result: ProbeResult) => void) => {
      state.asked.push(performance.now() - start)
      callback(state.answer())
    },
    close: (callback: () => void) => callback()
  }
  const { lagLimits } = config.routing
  return { monitor: new ReaderMonitor(server, probe, sampler, config.monitor, retryDelay, lagLimits), server, state }
}

const useFakeTime = () => {
  beforeEach(
    () =>
      void vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "setImmediate", "clearImmediate", "performance"] })
  )
  afterEach(() => void vi.useRealTimers())
}

describe("the monitor of a writer", () => {
  useFakeTime()

  it("each host is asked every 100 ms for 30 s after a change of the writer, and at the interval otherwise", async () => {
    const start = performance.now()
    const hosts = ["a", "b"].map((host) => ({
      host,
      port: 5432,
      name: `${host}:5432`,
      address: undefined,
      ssl: false as const
    }))
    const asked = new Map<string, Array<number>>(hosts.map(({ name }) => [name, []]))
    const search: WriterSearch = new WriterSearch(
      hosts,
      (endpoint) => ({
        endpoint,
        probe: {
          isOpen: true,
          ask: (_, callback) => {
            asked.get(endpoint.name)?.push(performance.now() - start)
            callback(answer(endpoint.host === "a" ? primary : standby))
          },
          close: (callback) => callback()
        }
      }),
      300,
      { ...noReports, onSearch: () => monitor.start() }
    )
    const isIdle = {
      heardAt: Number.NEGATIVE_INFINITY,
      waitsSince: Number.POSITIVE_INFINITY,
      progress: 0
    }
    const monitor = new WriterMonitor(search, { isOn: true, interval: 5000, detectionTime: 1000 }, () => isIdle)
    search.locate(1000, () => {})
    await vi.advanceTimersByTimeAsync(60_000)
    monitor.onChanged()
    await vi.advanceTimersByTimeAsync(90_000)
    for (const times of asked.values()) {
      assert.isBelow(times[0] ?? 1, 1)
      assertInterval(times, 1, 60_000, 5000)
      assertInterval(times, 60_000, 90_000, 100)
      assertInterval(times, 95_100, 150_000, 5000)
    }
    monitor.stop()
    search.close(() => {})
  })
})

describe("the monitor of a reader", () => {
  useFakeTime()

  it("the reader is asked every 100 ms for 30 s after a change of the writer, and at the interval otherwise", async () => {
    const sampler = new PrimarySampler((_, callback) => callback(answer(primary)))
    const { monitor, state } = makeReader(sampler)
    monitor.start()
    await vi.advanceTimersByTimeAsync(60_000)
    monitor.onWriterChanged()
    await vi.advanceTimersByTimeAsync(90_000)
    assert.isBelow(state.asked[0] ?? 1, 1)
    assertInterval(state.asked, 1, 60_000, 5000)
    assertInterval(state.asked, 60_000, 90_000, 100)
    assertInterval(state.asked, 95_100, 150_000, 5000)
    monitor.close(() => {})
  })

  it("a reader whose connect has failed once, or whose lag has crossed its limit once, is asked again after 100 ms", async () => {
    const sampler = new PrimarySampler((_, callback) => callback(answer(primary)))
    const { monitor, server, state } = makeReader(sampler)
    monitor.start()
    await vi.advanceTimersByTimeAsync(1)
    assert.isFalse(server.isBehind)
    state.answer = () => answer(late)
    await vi.advanceTimersByTimeAsync(5000)
    assert.isFalse(server.isBehind)
    await vi.advanceTimersByTimeAsync(110)
    assert.isTrue(server.isBehind)
    const checks = state.asked.length
    await vi.advanceTimersByTimeAsync(4800)
    assert.lengthOf(state.asked, checks)
    state.answer = () => answer(standby)
    await vi.advanceTimersByTimeAsync(320)
    assert.isFalse(server.isBehind)
    assert.lengthOf(state.asked, checks + 2)
    // the first failure of a connect makes the reader suspect, the second one takes it out
    state.answer = () => failure("unreachable")
    await vi.advanceTimersByTimeAsync(5000)
    assert.isTrue(server.isSuspect)
    await vi.advanceTimersByTimeAsync(110)
    assert.isTrue(server.isDown)
    monitor.close(() => {})
  })

  /** Starts five monitors one after the other; returns the times of the questions to the primary and to a reader. */
  const startFive = async (maxLag: DatabaseConfig.CommonOptions["maxLag"]) => {
    const asked: Array<number> = []
    const sampler = new PrimarySampler((_, callback) => {
      asked.push(performance.now())
      callback(answer(primary))
    })
    const ages: Array<number> = []
    const readers = Array.from({ length: 5 }, () => makeReader(sampler, { maxLag }))
    for (const { monitor, state } of readers) {
      state.answer = () => {
        ages.push(performance.now() - (asked.at(-1) ?? 0))
        return answer(standby)
      }
      monitor.start()
      await vi.advanceTimersByTimeAsync(700)
    }
    await vi.advanceTimersByTimeAsync(600_000)
    for (const { monitor } of readers) monitor.close(() => {})
    return { ages, asked, checks: ages.length }
  }

  it("the readers share positions of the primary that are younger than half of the interval", async () => {
    const { ages, asked, checks } = await startFive("1 minute")
    // five in each interval of five seconds
    assert.isAbove(checks, 590)
    assert.isAtMost(asked.length, (2 * 604) / 5)
    assert.isBelow(Math.max(...ages), 2500)
  })

  it("a position of the primary is not used when it is older than a tenth of the limit of the lag", async () => {
    const { ages, asked, checks } = await startFive("1 second")
    assert.isBelow(Math.max(...ages), 100)
    assert.isAbove(asked.length, checks / 2)
  })

  it("a reader whose lag is unknown, because the primary connects slowly, is checked again after a second", async () => {
    let connectTime = 400
    const sampler = new PrimarySampler((_, callback) => {
      setTimeout(() => callback(answer(primary)), connectTime)
      connectTime = 0
    })
    const { monitor, server, state } = makeReader(sampler)
    state.answer = () => answer(late)
    monitor.start()
    await vi.advanceTimersByTimeAsync(1200)
    assert.isTrue(server.isUnchecked)
    assert.isTrue(server.isUsable(performance.now()))
    await vi.advanceTimersByTimeAsync(200)
    assert.isTrue(server.isBehind)
    assert.lengthOf(state.asked, 2)
    monitor.close(() => {})
  })

  it("a reader that is behind stays behind during an outage and a refusal of its monitor", async () => {
    const sampler = new PrimarySampler((_, callback) => callback(answer(primary)))
    const { monitor, server, state } = makeReader(sampler)
    state.answer = () => answer(late)
    monitor.start()
    assert.isTrue(server.isBehind)
    for (const reason of ["tooManyConnections", "authentication", "unreachable", "credentials"] as const) {
      state.answer = () => failure(reason)
      await vi.advanceTimersByTimeAsync(11_000)
      assert.isTrue(server.isBehind, reason)
    }
    state.answer = () => answer(standby)
    await vi.advanceTimersByTimeAsync(6000)
    assert.isFalse(server.isBehind)
    assert.isTrue(server.isUsable(performance.now()))
    monitor.close(() => {})
  })
})
