/** The number of connections, and the effects of failed connects. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { Db, insert, pid, stored } from "../../databases.js"
import { eventually } from "../../eventually.js"
import { taggedFailure } from "../../failures.js"
import { hold, holdAll, processes } from "./connections.js"
import { figures, settled, told, watch } from "./observations.js"
import { connects, once, open, openOverWire, type Way, Wire } from "./way.js"

export const limits = (way: Way): void => {
  const { hasSessions } = way.route
  // a second connect can begin while the first one hangs
  const patient = {
    maxConnections: 2,
    acquireTimeout: "8 seconds",
    connectTimeout: "20 seconds",
    startup: "lazy"
  } as const

  if (way.strategy === "pooled") {
    it.scopedLive(
      "a pool has at most maxConnections and maxOverflow connections, and the overflow is closed on return",
      () =>
        Effect.gen(function* () {
          const holders = yield* holdAll(15)
          const waiter = yield* Effect.fork(insert("sixteenth"))
          yield* settled({ total: 15, active: 15, waiting: 1 })
          if (hasSessions) {
            const all = yield* processes
            assert.deepStrictEqual(
              all,
              holders.map((holder) => holder.pid).sort((a, b) => a - b)
            )
          }
          for (const { release } of holders) yield* release
          yield* Fiber.join(waiter)
          yield* settled({ total: 5, idle: 5, waiting: 0 })
          if (hasSessions) yield* eventually(processes, (all) => all.length === 5)
        }).pipe(Effect.provide(open(way, { maxConnections: 5, maxOverflow: 10 })))
    )

    it.scopedLive("the overflow of a pool is not closed as long as a caller waits for it", () =>
      Effect.gen(function* () {
        const facts = yield* watch
        const [first, second] = yield* Effect.all([hold, hold])
        const waiter = yield* Effect.fork(pid)
        yield* settled({ waiting: 1 })
        yield* second.release
        assert.strictEqual(yield* Fiber.join(waiter), second.pid)
        yield* told(facts, "Closed")
        yield* first.release
        yield* settled({ total: 1, idle: 1 })
      }).pipe(Effect.provide(open(way, { maxConnections: 1, maxOverflow: 1 })))
    )

    it.scopedLive("a connect that hangs does not delay the others, within the overflow", () =>
      Effect.gen(function* () {
        const wire = yield* Wire
        yield* wire.when(connects, "freeze")
        const fibers = yield* Effect.forEach(["a", "b"], (name) => Effect.fork(insert(name)))
        yield* Fiber.joinAll(fibers)
        assert.deepStrictEqual(yield* stored, ["a", "b"])
        assert.strictEqual((yield* figures).connecting, 1)
      }).pipe(
        Effect.provide(
          openOverWire(way, { maxConnections: 1, maxOverflow: 1, connectTimeout: "20 seconds", startup: "lazy" })
        )
      )
    )

    it.scopedLive("a single caller whose connect hangs gets another one beside it", () =>
      Effect.gen(function* () {
        const wire = yield* Wire
        yield* wire.when(connects, "freeze")
        yield* insert("a")
        assert.deepStrictEqual(yield* stored, ["a"])
        assert.strictEqual((yield* figures).connecting, 1)
      }).pipe(Effect.provide([openOverWire(way, patient), once]))
    )

    it.scopedLive("no caller inherits a hanging connect from a caller that gave up", () =>
      Effect.gen(function* () {
        const wire = yield* Wire
        const asked = yield* wire.when(connects, "freeze")
        const first = yield* Effect.fork(insert("nobody"))
        yield* asked
        yield* Fiber.interrupt(first)
        yield* insert("next")
        assert.deepStrictEqual(yield* stored, ["next"])
      }).pipe(Effect.provide([openOverWire(way, patient), once]))
    )

    it.scopedLive("a server that lets every connect hang does not receive more and more of them", () =>
      Effect.gen(function* () {
        const wire = yield* Wire
        yield* wire.freeze
        yield* taggedFailure("PoolExhausted", insert("a"))
        assert.strictEqual(wire.accepted, 2)
      }).pipe(
        Effect.provide([
          openOverWire(way, { acquireTimeout: "1500 millis", connectTimeout: "20 seconds", startup: "lazy" }),
          once
        ])
      )
    )
  } else {
    it.scopedLive("all callers take turns on the one connection", () =>
      Effect.gen(function* () {
        const facts = yield* watch
        const first = yield* pid
        const all = yield* Effect.all(
          Array.from({ length: 20 }, (_, i) => (i % 2 === 0 ? pid : Db.withTransaction(pid))),
          { concurrency: "unbounded" }
        )
        if (hasSessions) assert.deepStrictEqual([...new Set(all)], [first])
        yield* told(facts, "CheckedIn", 21)
        assert.strictEqual((yield* figures).total, 1)
        if (hasSessions) assert.deepStrictEqual(yield* processes, [first])
      }).pipe(Effect.provide(open(way)))
    )
  }

  it.scopedLive("a failed connect frees its slot", () =>
    Effect.gen(function* () {
      const wire = yield* Wire
      yield* wire.refuse
      for (const name of ["a", "b", "c"]) {
        const error = yield* taggedFailure("ConnectFailed", insert(name))
        assert.strictEqual(error.reason, "unreachable")
      }
      const { active, connecting, total, waiting } = yield* figures
      assert.deepStrictEqual([total, active, connecting, waiting], [0, 0, 0, 0])
      yield* wire.accept
      yield* insert("d")
      assert.deepStrictEqual(yield* stored, ["d"])
    }).pipe(Effect.provide([openOverWire(way, { maxConnections: 1, startup: "lazy" }), once]))
  )

  it.scopedLive("a connect that takes too long is ConnectFailed, unresponsive, and frees its slot", () =>
    Effect.gen(function* () {
      const wire = yield* Wire
      yield* wire.when(connects, "freeze")
      const error = yield* taggedFailure("ConnectFailed", insert("a"))
      assert.strictEqual(error.reason, "unresponsive")
      yield* insert("b")
      assert.deepStrictEqual(yield* stored, ["b"])
    }).pipe(
      Effect.provide([openOverWire(way, { maxConnections: 1, connectTimeout: "1 second", startup: "lazy" }), once])
    )
  )
}
