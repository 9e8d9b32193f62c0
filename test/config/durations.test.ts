/**
 * Durations beyond the 24.8 days that a timer of Node can have. Node fires a longer timer after one
 * millisecond.
 */
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { Consistency, type Database } from "effect-db"
import { afterEach, beforeEach, describe, vi } from "vitest"
import { timer } from "../../src/internal/concurrency/clock.js"
import { LoadShedding } from "../../src/internal/pool/loadShedding.js"
import { Waiter, WaitQueue } from "../../src/internal/pool/waitQueue.js"
import { Db, fresh, insert, stored } from "../support/databases.js"
import { eventually } from "../support/eventually.js"

const day = 86_400_000

describe("timers with a long or infinite duration", () => {
  beforeEach(() => {
    vi.useFakeTimers()
  })
  afterEach(() => {
    vi.useRealTimers()
  })

  const fired = (millis: number) => {
    let at: number | undefined
    const start = Date.now()
    const handle = timer(millis, () => {
      at = Date.now() - start
    })
    return { at: () => at, handle }
  }

  it("a timer of a year fires after a year", () => {
    const { at } = fired(365 * day)
    vi.advanceTimersByTime(365 * day - 1)
    assert.strictEqual(at(), undefined)
    vi.advanceTimersByTime(20)
    assert.closeTo(at() ?? 0, 365 * day, 20)
  })

  it("a timer of a duration that Node supports fires after that duration", () => {
    for (const millis of [0, 1, 250, 24 * day]) {
      const { at } = fired(millis)
      vi.advanceTimersByTime(millis)
      assert.strictEqual(at(), millis)
    }
  })

  it("a timer of infinity never fires", () => {
    const { at } = fired(Number.POSITIVE_INFINITY)
    vi.advanceTimersByTime(1000 * day)
    assert.strictEqual(at(), undefined)
  })

  it("a timer that is cleared in its second month does not fire", () => {
    const { at, handle } = fired(365 * day)
    vi.advanceTimersByTime(40 * day)
    clearTimeout(handle)
    vi.advanceTimersByTime(365 * day)
    assert.strictEqual(at(), undefined)
  })

  it("a queueTarget of a year rejects no waiter early, and sets no further timer", () => {
    const sent: Array<string> = []
    const overload = new LoadShedding(365 * day, 1)
    const reject = (waiter: Waiter<undefined>, why: string) => {
      waiters.remove(waiter)
      sent.push(why)
    }
    const waiters = new WaitQueue<undefined>(overload, reject, { setWaiting: () => {} })
    overload.isOverloaded = true
    const now = performance.now()
    waiters.add(new Waiter(now, Number.POSITIVE_INFINITY, [], undefined, undefined))
    waiters.rejectsArrival(now)
    const set = vi.spyOn(globalThis, "setTimeout")
    vi.advanceTimersByTime(1000)
    assert.strictEqual(set.mock.calls.length, 0)
    assert.deepStrictEqual(sent, [])
    waiters.clear()
  })
})

describe("a database whose durations are all a year", () => {
  const year = "365 days"
  const settings = {
    acquireTimeout: year,
    connectTimeout: year,
    idleTimeout: year,
    maxLifetime: year,
    validateAfterIdle: year,
    queueTarget: year,
    leakThreshold: year,
    statementTimeout: year,
    lockTimeout: year,
    idleInTransactionTimeout: year,
    shutdownTimeout: year,
    readerRetryDelay: year,
    listenHeartbeat: year
  } satisfies Partial<Database.Options>

  it.scopedLive("a database whose durations are all a year opens, reads, writes, queues callers and closes", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const reader = yield* Db.reader
      // the second of two nested transactions waits for the first
      yield* Effect.gen(function* () {
        const has = yield* Deferred.make<void>()
        const first = yield* Effect.fork(
          Db.withTransaction(
            Effect.all([insert("first"), Deferred.succeed(has, undefined), sql`SELECT pg_sleep(0.1)`], {
              discard: true
            })
          )
        )
        yield* Deferred.await(has)
        yield* Db.withTransaction(insert("second"))
        yield* Fiber.join(first)
      }).pipe(Db.withTransaction())
      yield* eventually(
        Db.withConsistency(reader<{ name: string }>`SELECT name FROM item`, Consistency.Strong()),
        (rows) => rows.length === 2
      )
      // the only connection is in use for a moment, so the other caller waits
      yield* Effect.all([sql`SELECT pg_sleep(0.05)`, insert("third")], { concurrency: 2 })
      assert.deepStrictEqual(yield* stored, ["first", "second", "third"])
    }).pipe(Effect.provide(fresh({ ...settings, maxConnections: 1 })))
  )

  it.scopedLive("a read after a write does not wait a year, although the maxWait of its session is a year", () =>
    Effect.gen(function* () {
      yield* insert("seen")
      const read = Effect.flatMap(Db.reader, (sql) => sql<{ name: string }>`SELECT name FROM item`)
      const session = Consistency.makeSession({ maxWait: Duration.days(365) })
      const rows = yield* Consistency.withSession(Effect.zipRight(insert("own"), read), session)
      assert.lengthOf(rows, 2)
    }).pipe(Effect.provide(fresh(settings)))
  )
})
