/** The number of connections, and the effects of failed connects. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { Db, insert, pid, stored } from "../../databases.js"
import { eventually } from "../../eventually.js"
import { taggedFailure } from "../../failures.js"
import { hold, holdAll, processes } from "./connections.js"
import { figures, settled, told, watch } from "./observations.js"
import { connects, Network, once, open, openOverNetwork, type Way } from "./way.js"

export const limits = (way: Way): void => {
  const { hasSessions } = way.route
  // timeouts that are long enough for a second connect to begin while the first one hangs
  const patient = {
    maxConnections: 2,
    acquireTimeout: "8 seconds",
    connectTimeout: "20 seconds",
    startup: "lazy"
  } as const

  if (way.strategy === "pooled") {
    it.scopedLive(
      "a pool has at most maxConnections plus maxOverflow connections, and closes the overflow at check-in",
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

    it.scopedLive("a connection of the overflow is not closed at check-in while a caller waits", () =>
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

    it.scopedLive("a connect that hangs delays no caller as long as the overflow allows another connect", () =>
      Effect.gen(function* () {
        const network = yield* Network
        yield* network.when(connects, "freeze")
        const fibers = yield* Effect.forEach(["a", "b"], (name) => Effect.fork(insert(name)))
        yield* Fiber.joinAll(fibers)
        assert.deepStrictEqual(yield* stored, ["a", "b"])
        assert.strictEqual((yield* figures).connecting, 1)
      }).pipe(
        Effect.provide(
          openOverNetwork(way, { maxConnections: 1, maxOverflow: 1, connectTimeout: "20 seconds", startup: "lazy" })
        )
      )
    )

    it.scopedLive("a single caller whose connect hangs gets a second connect", () =>
      Effect.gen(function* () {
        const network = yield* Network
        yield* network.when(connects, "freeze")
        yield* insert("a")
        assert.deepStrictEqual(yield* stored, ["a"])
        assert.strictEqual((yield* figures).connecting, 1)
      }).pipe(Effect.provide([openOverNetwork(way, patient), once]))
    )

    it.scopedLive("a caller does not have to wait for the hanging connect of a caller that gave up", () =>
      Effect.gen(function* () {
        const network = yield* Network
        const asked = yield* network.when(connects, "freeze")
        const first = yield* Effect.fork(insert("nobody"))
        yield* asked
        yield* Fiber.interrupt(first)
        yield* insert("next")
        assert.deepStrictEqual(yield* stored, ["next"])
      }).pipe(Effect.provide([openOverNetwork(way, patient), once]))
    )

    it.scopedLive("a single caller begins only two connects at a server that lets each of them hang", () =>
      Effect.gen(function* () {
        const network = yield* Network
        yield* network.freeze
        yield* taggedFailure("PoolExhausted", insert("a"))
        assert.strictEqual(network.accepted, 2)
      }).pipe(
        Effect.provide([
          openOverNetwork(way, { acquireTimeout: "1500 millis", connectTimeout: "20 seconds", startup: "lazy" }),
          once
        ])
      )
    )
  } else {
    it.scopedLive("all callers of the strategy single take turns on one connection", () =>
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

  it.scopedLive("a failed connect makes room for another one", () =>
    Effect.gen(function* () {
      const network = yield* Network
      yield* network.refuse
      for (const name of ["a", "b", "c"]) {
        const error = yield* taggedFailure("ConnectFailed", insert(name))
        assert.strictEqual(error.reason, "unreachable")
      }
      const { active, connecting, total, waiting } = yield* figures
      assert.deepStrictEqual([total, active, connecting, waiting], [0, 0, 0, 0])
      yield* network.accept
      yield* insert("d")
      assert.deepStrictEqual(yield* stored, ["d"])
    }).pipe(Effect.provide([openOverNetwork(way, { maxConnections: 1, startup: "lazy" }), once]))
  )

  it.scopedLive("a connect that takes too long is ConnectFailed, unresponsive, and makes room for another one", () =>
    Effect.gen(function* () {
      const network = yield* Network
      yield* network.when(connects, "freeze")
      const error = yield* taggedFailure("ConnectFailed", insert("a"))
      assert.strictEqual(error.reason, "unresponsive")
      yield* insert("b")
      assert.deepStrictEqual(yield* stored, ["b"])
    }).pipe(
      Effect.provide([openOverNetwork(way, { maxConnections: 1, connectTimeout: "1 second", startup: "lazy" }), once])
    )
  )
}
