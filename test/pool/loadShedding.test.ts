/** Load shedding of a pool, in a simulation and on a real server. */
import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import { DatabaseError } from "effect-db"
import { describe } from "vitest"
import { LoadShedding } from "../../src/internal/pool/loadShedding.js"
import { Db, fresh } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { randoms } from "../support/random.js"

/** The settings of a simulation of a pool, in steps of a millisecond. */
interface Simulation {
  readonly connections: number
  /** The duration of a statement, in ms. */
  readonly service: number
  readonly target?: number
  /**
   * The number of callers that come in the millisecond `now`, if `settled` were served or rejected in
   * the one before.
   */
  readonly arrivals: (now: number, settled: number) => number
  /** True while no connection is checked in. */
  readonly isStuck?: (now: number) => boolean
  readonly millis: number
}

interface Outcome {
  readonly shed: number
  readonly served: number
  /** The milliseconds with overload, from the first to the last. */
  readonly overloaded: ReadonlyArray<number>
  /** The waits of the served callers, each with the moment of its end. */
  readonly waits: ReadonlyArray<{ readonly at: number; readonly waited: number }>
}

const simulate = ({ arrivals, connections, isStuck, millis, service, target = 50 }: Simulation): Outcome => {
  const overload = new LoadShedding(target, connections)
  const busyUntil: Array<number> = Array.from({ length: connections }, () => 0)
  const queue: Array<number> = []
  /** The index of the first waiter; the callers before it are no longer in the queue. */
  let head = 0
  let shed = 0
  const waits: Array<{ at: number; waited: number }> = []
  const overloaded: Array<number> = []
  let settled = 0
  // a clock may begin at any value
  const begin = 12_345
  for (let now = begin; now < begin + millis; now++) {
    const coming = arrivals(now - begin, settled)
    settled = 0
    const stuck = isStuck?.(now - begin) ?? false
    const take = (): number => (stuck ? -1 : busyUntil.findIndex((until) => until <= now))
    const shedOld = () => {
      if (!overload.isOverloaded) return
      for (; head < queue.length && (queue[head] ?? 0) + target <= now; head++) {
        shed++
        settled++
      }
    }
    // waiters get the connections that are free again, and only then new callers come
    for (let i = take(); i >= 0; i = take()) {
      shedOld()
      const since = queue[head]
      if (since === undefined) break
      head++
      overload.onServed(now, now - since, queue.length - head)
      busyUntil[i] = now + service
      waits.push({ at: now - begin, waited: now - since })
      settled++
    }
    for (let n = 0; n < coming; n++) {
      const i = queue.length === head ? take() : -1
      if (i >= 0) {
        overload.onImmediateCheckout()
        busyUntil[i] = now + service
        waits.push({ at: now - begin, waited: 0 })
        settled++
      } else {
        queue.push(now)
        overload.onArrival(now, queue.length - head)
        shedOld()
      }
    }
    shedOld()
    if (overload.isOverloaded) overloaded.push(now - begin)
  }
  return { shed, served: waits.length, overloaded, waits }
}

/** Returns seeded random arrivals at a rate per second. */
const poisson = (perSecond: number, seed: number) => {
  const random = randoms(seed)
  const limit = Math.exp(-perSecond / 1000)
  return () => {
    let n = 0
    for (let p = random(); p > limit; p *= random()) n++
    return n
  }
}

/** Returns the wait that a share of all waits does not exceed. */
const percentile = (waits: Outcome["waits"], share: number): number =>
  waits.map(({ waited }) => waited).sort((a, b) => a - b)[Math.floor(waits.length * share)] ?? 0

describe("the detection of overload", () => {
  it("a burst that drains is no overload", () => {
    for (const size of [100, 1000, 10_000]) {
      for (const at of [0, 300, 499, 777]) {
        const { overloaded, served, shed } = simulate({
          connections: 10,
          service: 2,
          arrivals: (now) => (now === at ? size : now % 10 === 0 ? 1 : 0),
          millis: 4000
        })
        assert.deepStrictEqual([shed, overloaded.length], [0, 0], `${size} at ${at}`)
        assert.isAtLeast(served, size)
      }
    }
  })

  it("bursts that drain one after the other are no overload", () => {
    const { overloaded, shed } = simulate({
      connections: 10,
      service: 10,
      arrivals: (now) => (now % 1000 < 50 ? 18 : 0),
      millis: 20_000
    })
    assert.deepStrictEqual([shed, overloaded.length], [0, 0])
  })

  for (const connections of [1, 5, 10, 50]) {
    for (const service of [1, 20, 60, 100, 400]) {
      it(`100 fibers that each send one statement after the other are no overload: ${connections} connections, ${service} ms`, () => {
        for (const spread of [1, 20, 200]) {
          for (const start of [0, 240, 249, 251, 499]) {
            // each caller comes again once it was served
            const { overloaded, shed } = simulate({
              connections,
              service,
              arrivals: (now, settled) => (now >= start && now < start + spread ? 100 / spread : 0) + settled,
              millis: 10_000
            })
            assert.deepStrictEqual([shed, overloaded.length], [0, 0], `from ${start} over ${spread}`)
          }
        }
      })
    }
  }

  it("two groups of 1000 fibers that each send one statement after the other are no overload", () => {
    const { overloaded, shed } = simulate({
      connections: 10,
      service: 20,
      arrivals: (now, settled) => (now === 0 || now === 5249 ? 1000 : 0) + settled,
      millis: 20_000
    })
    assert.deepStrictEqual([shed, overloaded.length], [0, 0])
  })

  it("a pool with 95 % of the load that it can carry is not overloaded", () => {
    for (const seed of [1, 2, 3]) {
      const { overloaded, shed } = simulate({
        connections: 10,
        service: 10,
        arrivals: poisson(950, seed),
        millis: 60_000
      })
      assert.deepStrictEqual([shed, overloaded.length], [0, 0])
    }
  })

  it("a pool that is stuck is not overloaded, because its callers have deadlines", () => {
    const { overloaded, shed } = simulate({
      connections: 10,
      service: 10,
      arrivals: poisson(500, 4),
      isStuck: (now) => now > 1000 && now < 9000,
      millis: 10_000
    })
    assert.deepStrictEqual([shed, overloaded.length], [0, 0])
  })

  for (const times of [1.5, 2, 5]) {
    it(`${times} times as many callers as can be served are an overload within seconds, and the served ones wait briefly`, () => {
      const { overloaded, served, shed, waits } = simulate({
        connections: 10,
        service: 10,
        arrivals: poisson(1000 * times, 5),
        millis: 60_000
      })
      assert.isBelow(overloaded[0] ?? Number.POSITIVE_INFINITY, times < 2 ? 5000 : 1500)
      assert.isAbove(shed, 0)
      // the throughput stays that of a full load
      assert.isAbove(served, 0.99 * 1000 * 60)
      assert.isAtMost(percentile(waits, 0.95), 100)
      const later = waits.filter(({ at }) => at > 5000)
      assert.isAtMost(percentile(later, 0.95), 51)
    })
  }

  it("an overload of slow statements is detected as well", () => {
    const { overloaded, waits } = simulate({ connections: 10, service: 400, arrivals: poisson(125, 6), millis: 60_000 })
    assert.isBelow(overloaded[0] ?? Number.POSITIVE_INFINITY, 5000)
    assert.isAtMost(
      percentile(
        waits.filter(({ at }) => at > 5000),
        0.95
      ),
      100
    )
  })

  it("an overload ends within two seconds after fewer callers come", () => {
    const many = poisson(5000, 7)
    const few = poisson(800, 8)
    const { overloaded, shed, waits } = simulate({
      connections: 10,
      service: 10,
      arrivals: (now) => (now < 10_000 ? many() : few()),
      millis: 20_000
    })
    assert.isAbove(shed, 0)
    assert.isBelow(overloaded[overloaded.length - 1] ?? 0, 12_000)
    const later = waits.filter(({ at }) => at > 12_000)
    assert.isAtMost(percentile(later, 0.99), 10)
  })

  it("no caller is ever rejected without a target", () => {
    const { shed } = simulate({
      connections: 1,
      service: 10,
      target: Number.POSITIVE_INFINITY,
      arrivals: () => 5,
      millis: 10_000
    })
    assert.strictEqual(shed, 0)
  })
})

describe("a pool under load", () => {
  it.scopedLive("100 fibers that each send one statement after the other are all served, however long they wait", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const served = yield* Effect.forEach(
        Array.from({ length: 100 }),
        () => Effect.replicateEffect(sql`SELECT pg_sleep(0.03)`, 3),
        { concurrency: "unbounded" }
      )
      assert.lengthOf(served.flat(), 300)
    }).pipe(Effect.provide(fresh({ maxConnections: 2, readers: [] })))
  )

  it.scopedLive("callers are rejected soon while more come than can be served, and none is rejected afterwards", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const failures: Array<DatabaseError.DatabaseError> = []
      const one = sql`SELECT pg_sleep(0.01)`.pipe(
        DatabaseError.refine,
        Effect.catchAll((error) => Effect.sync(() => void failures.push(error)))
      )
      const writes = Effect.map(Db.status, ({ servers }) => servers[0]?.writes)
      const coming = yield* Effect.fork(
        Effect.repeat(
          Effect.all(
            Array.from({ length: 5 }, () => Effect.fork(one)),
            { discard: true }
          ),
          Schedule.spaced("2 millis")
        )
      )
      yield* eventually(
        Effect.sync(() => failures.length),
        (n) => n > 100
      )
      assert.isTrue((yield* writes)?.overloaded)
      yield* Fiber.interrupt(coming)
      const rest = performance.now()
      yield* eventually(writes, (figures) => figures?.overloaded === false)
      assert.isBelow(performance.now() - rest, 2000)
      for (const error of failures) {
        assert.isTrue(error._tag === "PoolExhausted" && error.reason === "shed", error.message)
        if (error._tag === "PoolExhausted") assert.isBelow(error.waitedMillis, 3000)
        assert.include(error.message, "the pool is overloaded")
      }
      yield* eventually(writes, (figures) => figures?.waiting === 0)
      const before = failures.length
      yield* Effect.all(
        Array.from({ length: 50 }, () => one),
        { concurrency: "unbounded", discard: true }
      )
      assert.strictEqual(failures.length, before)
    }).pipe(Effect.provide(fresh({ maxConnections: 2, readers: [] })))
  )

  it.scopedLive("no caller is rejected with queueTarget infinity", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const all = yield* Effect.forEach(
        Array.from({ length: 600 }),
        (_, i) => Effect.delay(sql`SELECT pg_sleep(0.01)`, i * 3),
        { concurrency: "unbounded" }
      )
      assert.lengthOf(all, 600)
    }).pipe(Effect.provide(fresh({ maxConnections: 2, readers: [], queueTarget: Duration.infinity })))
  )
})
