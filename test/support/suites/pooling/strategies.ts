/** The strategies of a pool that keep no connection, or allow only one. */
import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import { DatabaseError } from "effect-db"
import { Db, fresh, insert, pid, stored } from "../../databases.js"
import { eventually } from "../../eventually.js"
import { taggedFailure } from "../../failures.js"
import { hold, holdAll, processes } from "./connections.js"
import { figures, settled, told, watch } from "./observations.js"
import { Network, once, open, openOverNetwork, type Way } from "./way.js"

export const strategies = (way: Way): void => {
  const none = { strategy: "none" } as const

  it.scopedLive("the strategy none opens a connection for each checkout, and closes it at check-in", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      const all = [yield* pid, yield* pid, yield* Db.withTransaction(Effect.zipRight(pid, pid))]
      assert.strictEqual(new Set(all).size, 3)
      const closed = yield* told(facts, "Closed", 3)
      assert.deepStrictEqual(
        closed.map(({ processId, reason }) => [processId, reason]),
        all.map((process) => [process, "excess"])
      )
      yield* eventually(processes, (left) => left.length === 0)
      assert.strictEqual((yield* figures).total, 0)
    }).pipe(Effect.provide(open(way, { ...none, startup: "lazy" })))
  )

  it.scopedLive("the strategy none opens up to maxConnections at once, and opens a new one for a waiter", () =>
    Effect.gen(function* () {
      const holders = yield* holdAll(4)
      assert.strictEqual(new Set(holders.map((holder) => holder.pid)).size, 4)
      const waiter = yield* Effect.fork(pid)
      yield* settled({ total: 4, waiting: 1 })
      const [first, ...others] = holders
      if (first !== undefined) yield* first.release
      const served = yield* Fiber.join(waiter)
      for (const { pid: process } of holders) assert.notStrictEqual(served, process)
      for (const { release } of others) yield* release
      yield* settled({ total: 0 })
    }).pipe(Effect.provide(open(way, { ...none, maxConnections: 4 })))
  )

  it.scopedLive("the strategy none closes a connection that opens after its waiter has given up", () =>
    Effect.gen(function* () {
      const network = yield* Network
      const facts = yield* watch
      const asked = yield* network.when(({ type }) => type === "startup", "freeze")
      const fiber = yield* Effect.fork(insert("nobody"))
      yield* asked
      yield* Fiber.interrupt(fiber)
      yield* network.thaw
      assert.strictEqual((yield* told(facts, "Closed"))[0]?.reason, "excess")
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(openOverNetwork(way, { ...none, startup: "lazy" })))
  )

  it.scopedLive("the strategy single fails work that holds the connection and requests another one", () =>
    Effect.gen(function* () {
      const error = yield* taggedFailure(
        "PoolSelfDeadlock",
        Db.withTransaction(Effect.zipRight(insert("a"), Db.independent(pid)))
      )
      assert.include(error.message, "1")
      yield* insert("b")
      assert.deepStrictEqual(yield* stored, ["b"])
    }).pipe(Effect.provide([open({ ...way, strategy: "single" }), once]))
  )

  it.scopedLive("a pool whose connections are all held by callers that wait for one more fails at once", () =>
    Effect.gen(function* () {
      const inner = Db.withTransaction(pid, { propagation: "requiresNew" })
      const nested = (name: string) => Db.withTransaction(Effect.zipRight(insert(name), inner))
      const holder = yield* hold
      const first = yield* Effect.fork(Effect.exit(nested("a")))
      yield* settled({ active: 2, waiting: 1 })
      // a waiter that holds no connection does not make it a deadlock
      const patient = yield* Effect.fork(pid)
      yield* settled({ waiting: 2 })
      yield* holder.release
      assert.strictEqual((yield* Fiber.join(first))._tag, "Success")
      assert.isAbove(yield* Fiber.join(patient), 0)
      // both hold a connection before either of them requests another one
      const all = Effect.unsafeMakeLatch(false)
      let holding = 0
      const together = (name: string) => {
        const meet = Effect.suspend(() => (++holding === 2 ? all.open : all.await))
        return Effect.either(DatabaseError.refine(Db.withTransaction(Effect.all([insert(name), meet, inner]))))
      }
      const [took, both] = yield* Effect.timed(Effect.all([together("b"), together("c")], { concurrency: 2 }))
      assert.isBelow(Duration.toMillis(took), 3000)
      assert.deepStrictEqual(both.map((end) => (end._tag === "Left" ? end.left._tag : "a success")).sort(), [
        "PoolSelfDeadlock",
        "a success"
      ])
      yield* settled({ active: 0, waiting: 0 })
    }).pipe(Effect.provide([open(way, { maxConnections: 2 }), once]))
  )

  it.scopedLive("the strategy assertSingle fails a second checkout at once, and names the call site of the first", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      const first = yield* Effect.fork(
        Db.withTransaction(Effect.zipRight(insert("a"), Effect.zipRight(Effect.never, insert("b"))))
      )
      yield* told(facts, "CheckedOut")
      const error = yield* taggedFailure("PoolExhausted", pid)
      assert.strictEqual(error.reason, "single")
      assert.strictEqual(error.longestCheckout?.fiber, FiberId.threadName(first.id()))
      assert.include(error.message, "strategies.ts")
      assert.include(error.message, `fiber ${error.longestCheckout?.fiber}`)
      assert.lengthOf(yield* told(facts, "Exhausted"), 1)
      yield* Fiber.interrupt(first)
      yield* settled({ active: 0 })
      yield* insert("next")
      assert.deepStrictEqual(yield* stored, ["next"])
    }).pipe(Effect.provide([open(way, { strategy: "assertSingle", maxConnections: 1 }), once]))
  )

  it.scopedLive("the strategy assertSingle fails a second checkout while the first one waits for its connect", () =>
    Effect.gen(function* () {
      const network = yield* Network
      const asked = yield* network.when(({ type }) => type === "startup", "freeze")
      const first = yield* Effect.fork(insert("a"))
      yield* asked
      const error = yield* taggedFailure("PoolExhausted", pid)
      assert.strictEqual(error.reason, "single")
      assert.include(error.message, "databases.ts")
      yield* network.thaw
      yield* Fiber.join(first)
      assert.deepStrictEqual(yield* stored, ["a"])
    }).pipe(
      Effect.provide([openOverNetwork(way, { strategy: "assertSingle", maxConnections: 1, startup: "lazy" }), once])
    )
  )

  it.scopedLive("the strategy assertSingle accepts successive checkouts, and fibers that share a transaction", () =>
    Effect.gen(function* () {
      const first = yield* pid
      const [second, third] = yield* Db.withTransaction(Effect.all([pid, Db.withTransaction(pid)], { concurrency: 2 }))
      assert.deepStrictEqual([second, third], [first, first])
    }).pipe(Effect.provide(open(way, { strategy: "assertSingle", maxConnections: 1 })))
  )

  it.scopedLive("the strategy assertSingle does not count the check of a server at the start as a checkout", () =>
    Effect.gen(function* () {
      const reader = yield* Db.reader
      // the reader may still be under its check when the database is open
      assert.deepStrictEqual(yield* reader`SELECT 1 AS n`, [{ n: 1 }])
    }).pipe(Effect.provide([fresh({ strategy: "assertSingle" }), once]))
  )
}
