/**
 * Two trials of a pool that HikariCP describes: a spike of short statements while a connect takes
 * long, and a database that is down for a while.
 *
 * `EFFECT_DB_CHAOS=full` runs the second at full length: the database is down for 30 s, with a
 * checkout every 2 s, and none waits for longer than 5 s.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { type Database, DatabaseError } from "effect-db"
import { describe } from "vitest"
import { Db } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { makeProxy, type Proxy } from "../support/proxy.js"
import { freshDatabase } from "../support/server.js"

const figures = Effect.map(Db.status, ({ servers }) => servers[0]?.writes ?? assert.fail("no writer"))

const given = Effect.gen(function* () {
  const { writer } = yield* freshDatabase
  return yield* makeProxy(writer)
})

/** The states of a pool before the spike, and the way to each. */
const before: Readonly<
  Record<string, { readonly options: Partial<Database.Options>; readonly ready: Effect.Effect<unknown, unknown, Db> }>
> = {
  "of five idle connections": {
    options: { minConnections: 5 },
    ready: eventually(figures, ({ idle }) => idle === 5)
  },
  "that has never had a connection": { options: { startup: "lazy" }, ready: Effect.void },
  "that is about to open its first five": { options: { minConnections: 5 }, ready: Effect.void },
  "whose connections are gone": {
    options: {},
    ready: Effect.zipRight(
      Db.invalidate({ mode: "hard" }),
      eventually(figures, ({ total }) => total === 0)
    )
  }
}

/**
 * The time from the first answer to the last, in ms, if nothing else slows the machine. A slower
 * run that opens too many connections is repeated, because its statements were not short.
 */
const undisturbed = 75

describe("a spike of 50 short statements, where it takes 150 ms to connect", () => {
  for (const [name, { options, ready }] of Object.entries(before)) {
    const trial = Effect.gen(function* () {
      const proxy = yield* given
      // a login takes six messages, one after the other, and a statement two
      yield* proxy.delay(1, 25)
      return yield* Effect.gen(function* () {
        const connects: Array<number> = []
        yield* Effect.forkScoped(
          Stream.runForEach(Db.observations, (fact) =>
            Effect.sync(() => fact._tag === "Connected" && connects.push(fact.tookMillis))
          )
        )
        yield* ready
        const sql = yield* Db.writer
        const served: Array<number> = []
        const one = Effect.tap(sql`SELECT 1`, () => Effect.sync(() => served.push(performance.now())))
        yield* Effect.forEach(Array.from({ length: 50 }), () => one, { concurrency: "unbounded" })
        // the connections that are still being opened count as well
        yield* eventually(figures, ({ connecting }) => connecting === 0)
        for (const took of connects) assert.isAtLeast(took, 150)
        return { total: (yield* figures).total, took: (served[49] ?? 0) - (served[0] ?? 0) }
      }).pipe(Effect.provide(Db.layer({ writer: proxy.url, maxConnections: 50, ...options })))
    })
    it.scopedLive(`a spike leaves at most eight connections in a pool ${name}`, () =>
      Effect.gen(function* () {
        const { total } = yield* Effect.repeat(Effect.scoped(trial), {
          until: ({ took, total }) => total <= 8 || took < undisturbed,
          times: 20
        })
        assert.isAtMost(total, 8)
      })
    )
  }
})

const isFull = process.env.EFFECT_DB_CHAOS === "full"

/**
 * The time for which the database is down, the interval of checkouts, and their longest wait; in ms.
 */
const outage = isFull ? { down: 30_000, every: 2000, limit: 5000 } : { down: 3000, every: 600, limit: 500 }

/** The time that a caller may take beyond its limit, in ms. */
const allowance = 50

interface Mode {
  readonly begin: (proxy: Proxy) => Effect.Effect<void>
  readonly end: (proxy: Proxy) => Effect.Effect<void>
}

const modes: Readonly<Record<string, Mode>> = {
  "the port is closed": {
    begin: (proxy) => Effect.zipRight(proxy.refuse, proxy.cut),
    end: (proxy) => proxy.accept
  },
  "the cable is pulled": { begin: (proxy) => proxy.freeze, end: (proxy) => proxy.thaw },
  "the cable is pulled, and the messages under way never arrive": {
    begin: (proxy) => proxy.freeze,
    end: (proxy) => proxy.strand
  }
}

describe.concurrent("a database that is down", () => {
  for (const [mode, { begin, end }] of Object.entries(modes)) {
    it.scopedLive(
      `every checkout settles in time while the database is down, and the first one afterwards succeeds: ${mode}`,
      () =>
        Effect.gen(function* () {
          const proxy = yield* given
          const live = Db.layer({
            writer: proxy.url,
            acquireTimeout: outage.limit,
            // a connection that was used before the outage is validated before its next checkout
            validateAfterIdle: outage.every / 2
          })
          yield* Effect.gen(function* () {
            const sql = yield* Db.writer
            const checkOut = Effect.gen(function* () {
              // measured by a timer, which is late as well if this process is
              const limit = yield* Effect.forkScoped(Effect.map(Effect.sleep(outage.limit), () => performance.now()))
              const exit = yield* Effect.exit(DatabaseError.refine(Effect.scoped(Effect.asVoid(sql.reserve))))
              return { exit, limit, settled: performance.now() }
            })
            yield* checkOut
            yield* begin(proxy)
            const checkouts = yield* Effect.forEach(Array.from({ length: outage.down / outage.every }), () =>
              Effect.zipRight(Effect.sleep(outage.every), Effect.forkScoped(checkOut))
            )
            yield* Effect.sleep(outage.every)
            const isBack = performance.now()
            yield* end(proxy)
            const first = yield* checkOut
            assert.isTrue(Exit.isSuccess(first.exit), String(first.exit))
            for (const fiber of checkouts) {
              const { exit, limit, settled } = yield* Fiber.join(fiber)
              assert.isAtMost(settled, (yield* Fiber.join(limit)) + allowance)
              if (settled >= isBack) continue
              const error = Exit.isFailure(exit) && exit.cause._tag === "Fail" ? exit.cause.error : undefined
              assert.include(["ConnectFailed", "PoolExhausted"], error?._tag, String(exit))
            }
            const { active, total, waiting } = yield* figures
            assert.deepStrictEqual([active, waiting], [0, 0])
            assert.isAtLeast(total, 1)
          }).pipe(Effect.scoped, Effect.provide(live))
        }),
      outage.down * 2 + 30_000
    )
  }
})
