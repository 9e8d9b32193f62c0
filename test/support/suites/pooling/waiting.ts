/** The waiters for a connection: their order, timeout and failure. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type { Database } from "effect-db"
import { Db, insert, pid, stored } from "../../databases.js"
import { eventually } from "../../eventually.js"
import { taggedFailure } from "../../failures.js"
import { hold, kill, warmUp } from "./connections.js"
import { figures, only, settled, watch } from "./observations.js"
import { connects, Network, once, open, openOverNetwork, type Way } from "./way.js"

/** Returns the phases in which a caller may wait after it has requested a connection. */
const phases = (): ReadonlyArray<{
  readonly name: string
  readonly options: Partial<Database.Options>
  /**
   * Makes the next caller wait in this phase. The effect inside returns when a caller is waiting;
   * its result is the effect that ends the wait.
   */
  readonly stop: Effect.Effect<Effect.Effect<Effect.Effect<unknown>>, never, Db | Network>
}> => {
  const gate = () => {
    const latch = Effect.unsafeMakeLatch(true)
    const arrived = Effect.unsafeMakeLatch(false)
    return {
      task: Effect.zipRight(arrived.open, latch.await),
      close: Effect.as(Effect.zipRight(latch.close, arrived.close), Effect.as(arrived.await, latch.open))
    }
  }
  const waits = Effect.asVoid(settled({ waiting: 1 }))
  const [connect, checkout, reset] = [gate(), gate(), gate()]
  return [
    {
      name: "in the queue",
      options: {},
      stop: Effect.gen(function* () {
        const database = yield* Db
        const { release } = yield* hold
        return Effect.as(Effect.provideService(waits, Db, database), release)
      })
    },
    {
      name: "for a connect",
      options: { startup: "lazy" },
      stop: Effect.gen(function* () {
        const network = yield* Network
        return Effect.as(yield* network.when(connects, "freeze"), network.thaw)
      })
    },
    {
      name: "for a validation",
      options: { validateAfterIdle: 0 },
      stop: Effect.gen(function* () {
        const network = yield* Network
        return Effect.as(yield* network.when(({ from }) => from === "client", "freeze"), network.thaw)
      })
    },
    { name: "for onConnect", options: { startup: "lazy", onConnect: connect.task }, stop: connect.close },
    { name: "for onCheckout", options: { onCheckout: checkout.task }, stop: checkout.close },
    {
      name: "for the reset on return",
      options: { resetOnReturn: reset.task },
      stop: Effect.gen(function* () {
        const unblock = yield* reset.close
        const database = yield* Db
        yield* Effect.ignore(pid)
        return Effect.zipLeft(unblock, Effect.provideService(waits, Db, database))
      })
    }
  ]
}

export const waiting = (way: Way): void => {
  it.scopedLive("waiters are served in the order in which they came", () =>
    Effect.gen(function* () {
      const order: Array<number> = []
      const holder = yield* hold
      const waiters = yield* Effect.forEach([1, 2, 3, 4, 5], (n) =>
        Effect.zipLeft(
          Effect.fork(Effect.tap(n % 2 === 0 ? pid : Db.withTransaction(pid), () => Effect.sync(() => order.push(n)))),
          settled({ waiting: n })
        )
      )
      yield* holder.release
      yield* Fiber.joinAll(waiters)
      assert.deepStrictEqual(order, [1, 2, 3, 4, 5])
    }).pipe(Effect.provide(open(way, { maxConnections: 1 })))
  )

  it.scopedLive("a waiter is served when the only connection is invalidated", () =>
    Effect.gen(function* () {
      const holder = yield* hold
      const waiter = yield* Effect.fork(pid)
      yield* settled({ waiting: 1 })
      yield* Db.invalidate({ mode: "hard" })
      const served = yield* Fiber.join(waiter)
      if (way.route.hasSessions) assert.notStrictEqual(served, holder.pid)
      yield* holder.release
    }).pipe(Effect.provide(open(way, { maxConnections: 1 })))
  )

  if (way.route.hasSessions) {
    it.scopedLive("a waiter is served when the server ends the only connection", () =>
      Effect.gen(function* () {
        const holder = yield* hold
        const waiter = yield* Effect.fork(pid)
        yield* settled({ waiting: 1 })
        yield* kill(holder.pid)
        assert.notStrictEqual(yield* Fiber.join(waiter), holder.pid)
        yield* holder.release
      }).pipe(Effect.provide(open(way, { maxConnections: 1 })))
    )
  }

  it.scopedLive("a waiter is served after the connect for the waiter before it has failed", () =>
    Effect.gen(function* () {
      const network = yield* Network
      const asked = yield* network.when(connects, "freeze")
      const first = yield* Effect.fork(taggedFailure("ConnectFailed", insert("first")))
      yield* asked
      const second = yield* Effect.fork(insert("second"))
      yield* settled({ waiting: 2 })
      yield* network.cut
      yield* Fiber.join(first)
      yield* Fiber.join(second)
      assert.deepStrictEqual(yield* stored, ["second"])
    }).pipe(Effect.provide([openOverNetwork(way, { maxConnections: 1, startup: "lazy" }), once]))
  )

  it.scopedLive("a caller that came after the begin of a connect does not fail with that connect", () =>
    Effect.gen(function* () {
      const network = yield* Network
      const asked = yield* network.when(connects, "freeze")
      const first = yield* Effect.fork(insert("first"))
      yield* asked
      yield* Fiber.interrupt(first)
      const second = yield* Effect.fork(insert("second"))
      yield* settled({ waiting: 1 })
      yield* network.cut
      yield* Fiber.join(second)
      assert.deepStrictEqual(yield* stored, ["second"])
    }).pipe(Effect.provide([openOverNetwork(way, { maxConnections: 1, startup: "lazy" }), once]))
  )

  it.scopedLive("no caller times out early", () =>
    Effect.gen(function* () {
      const holder = yield* hold
      for (let i = 0; i < 10; i++) {
        const start = performance.now()
        const { waitedMillis: waited } = yield* taggedFailure("PoolExhausted", pid)
        assert.isAtLeast(performance.now() - start, 33.3)
        assert.isAtLeast(waited, 33)
      }
      yield* holder.release
    }).pipe(Effect.provide(open(way, { maxConnections: 1, acquireTimeout: 33.3 })))
  )

  it.scopedLive("a timeout reports how many connections are open, in use and idle, and how many callers wait", () =>
    Effect.gen(function* () {
      const holder = yield* hold
      const other = yield* Effect.fork(taggedFailure("PoolExhausted", pid))
      yield* settled({ waiting: 1 })
      const error = yield* taggedFailure("PoolExhausted", pid)
      const { active, idle, reason, total } = error
      assert.deepStrictEqual({ active, idle, reason, total }, { active: 1, idle: 0, reason: "timeout", total: 1 })
      assert.strictEqual((yield* Fiber.join(other)).waiting, 2)
      assert.include(error.message, "(total 1, active 1, idle 0, waiting 1)")
      assert.include(error.message, "hold connections for less time")
      // no checkout was recorded
      assert.strictEqual(error.longestCheckout, undefined)
      assert.strictEqual(error.lastConnectFailure, undefined)
      assert.strictEqual(error.connecting, undefined)
      yield* holder.release
    }).pipe(Effect.provide(open(way, { maxConnections: 1, acquireTimeout: "50 millis" })))
  )

  it.scopedLive("a timeout reports how the last connect failed", () =>
    Effect.gen(function* () {
      const network = yield* Network
      yield* network.refuse
      const { cause } = yield* taggedFailure("ConnectFailed", pid)
      yield* network.accept
      yield* network.freeze
      const error = yield* taggedFailure("PoolExhausted", pid)
      assert.strictEqual(error.lastConnectFailure, cause instanceof Error ? cause.message : undefined)
      assert.include(error.message, `the last connect failed: ${error.lastConnectFailure}`)
      // no connection is open, so the advice is not to hold connections for less time
      assert.include(error.message, "the server may not be answering")
    }).pipe(
      Effect.provide([openOverNetwork(way, { maxConnections: 1, acquireTimeout: "50 millis", startup: "lazy" }), once])
    )
  )

  it.scopedLive("a timeout reports how many connects are under way, and for how long", () =>
    Effect.gen(function* () {
      const network = yield* Network
      yield* network.freeze
      const { connecting, message, waitedMillis: waited } = yield* taggedFailure("PoolExhausted", pid)
      assert.strictEqual(connecting?.count, 1)
      assert.closeTo(connecting?.longestMillis ?? 0, waited, 50)
      assert.include(
        message,
        `connects in progress: 1, the longest for ${Math.round(connecting?.longestMillis ?? 0)} ms`
      )
      assert.strictEqual((yield* figures).connecting, 1)
    }).pipe(
      Effect.provide([
        openOverNetwork(way, {
          maxConnections: 1,
          acquireTimeout: "50 millis",
          connectTimeout: "20 seconds",
          startup: "lazy"
        }),
        once
      ])
    )
  )

  it.scopedLive("every caller times out after acquireTimeout while all permitted connects hang", () =>
    Effect.gen(function* () {
      const network = yield* Network
      yield* network.freeze
      const fibers = yield* Effect.forEach(Array.from({ length: 20 }), () =>
        Effect.fork(taggedFailure("PoolExhausted", pid))
      )
      const most = way.strategy === "pooled" ? 4 : 1
      for (const { connecting, waitedMillis: waited } of yield* Fiber.joinAll(fibers)) {
        assert.isAtLeast(waited, 800)
        assert.isBelow(waited, 1300)
        assert.strictEqual(connecting?.count, most)
      }
    }).pipe(
      Effect.provide([
        openOverNetwork(way, {
          maxConnections: 4,
          acquireTimeout: "800 millis",
          connectTimeout: "20 seconds",
          startup: "lazy"
        }),
        once
      ])
    )
  )

  it.scopedLive("a timeout reports the longest checkout if checkouts are recorded", () =>
    Effect.gen(function* () {
      const holder = yield* hold
      const { message, longestCheckout } = yield* taggedFailure("PoolExhausted", pid)
      assert.include(longestCheckout?.location, "connections.ts")
      assert.match(longestCheckout?.fiber ?? "", /^#\d+$/)
      assert.isAtLeast(longestCheckout?.heldMillis ?? 0, 50)
      assert.include(message, `by fiber ${longestCheckout?.fiber} at ${longestCheckout?.location}`)
      yield* holder.release
    }).pipe(Effect.provide(open(way, { maxConnections: 1, acquireTimeout: "50 millis", leakThreshold: "1 hour" })))
  )

  for (const phase of phases()) {
    if (phase.name === "in the queue" || phase.name === "for a connect") continue
    it.scopedLive(`a connection whose waiter left while waiting ${phase.name} counts as active until it is free`, () =>
      Effect.gen(function* () {
        const stopped = yield* phase.stop
        const waiter = yield* Effect.fork(insert("nobody"))
        const unblock = yield* stopped
        yield* Fiber.interrupt(waiter)
        const before = performance.now()
        const { active, idle, total, waiting } = yield* figures
        assert.deepStrictEqual({ active, idle, total, waiting }, { active: 1, idle: 0, total: 1, waiting: 0 })
        // the next caller waits for that connection, because no other one is allowed; then the same
        // work runs for this caller
        const next = yield* Effect.fork(Effect.exit(insert("next")))
        let most = 0
        const look = Effect.map(figures, (seen) => {
          most = Math.max(most, seen.total)
          return seen.active + seen.waiting
        })
        yield* eventually(look, (left) => left === 0)
        assert.isBelow(performance.now() - before, 3500)
        assert.strictEqual(most, 1)
        yield* unblock
        const exit = yield* Fiber.join(next)
        if (Exit.isFailure(exit)) {
          assert.strictEqual((yield* taggedFailure("ConnectFailed", exit)).reason, "setup")
          yield* insert("next")
        }
        assert.deepStrictEqual(yield* stored, ["next"])
      }).pipe(
        Effect.provide([
          openOverNetwork(way, { maxConnections: 1, connectTimeout: "1 second", ...phase.options }),
          once
        ])
      )
    )
  }

  if (way.strategy === "pooled") {
    it.scopedLive("a connection whose waiter left during onCheckout delays no caller while another one is idle", () => {
      const arrived = Effect.unsafeMakeLatch(false)
      let hangsNext = false
      const onCheckout = Effect.suspend(() => {
        const hangs = hangsNext
        hangsNext = false
        return hangs ? Effect.zipRight(arrived.open, Effect.never) : Effect.void
      })
      return Effect.gen(function* () {
        yield* warmUp(2)
        yield* settled({ idle: 2 })
        hangsNext = true
        const waiter = yield* Effect.fork(insert("nobody"))
        yield* arrived.await
        yield* Fiber.interrupt(waiter)
        yield* insert("next")
        assert.deepStrictEqual(yield* stored, ["next"])
        assert.strictEqual((yield* figures).active, 1)
      }).pipe(
        Effect.provide(open(way, { maxConnections: 2, onCheckout, connectTimeout: "5 seconds", startup: "lazy" }))
      )
    })
  }

  // the next caller needs a login in this time, and through a pooler two
  const acquireTimeout = way.route.hasSessions ? "250 millis" : "500 millis"

  for (const how of ["interrupted", "timed out"] as const) {
    for (const phase of phases()) {
      it.scopedLive(`a waiter that is ${how} while it waits ${phase.name} leaves nothing behind`, () =>
        Effect.gen(function* () {
          const facts = yield* watch
          const stopped = yield* phase.stop
          const waiter = yield* Effect.fork(insert("nobody"))
          const unblock = yield* stopped
          if (how === "interrupted") yield* Fiber.interrupt(waiter)
          else yield* taggedFailure("PoolExhausted", Fiber.join(waiter))
          assert.strictEqual((yield* figures).waiting, 0)
          yield* unblock
          yield* insert("next")
          assert.deepStrictEqual(yield* stored, ["next"])
          yield* settled({ active: 0, waiting: 0, connecting: 0 })
          yield* eventually(
            Effect.sync(() => [only(facts, "CheckedOut").length, only(facts, "CheckedIn").length] as const),
            ([out, back]) => out > 0 && out === back
          )
        }).pipe(
          Effect.provide([
            openOverNetwork(way, {
              maxConnections: 1,
              ...phase.options,
              ...(how === "timed out" ? { acquireTimeout } : {})
            }),
            once
          ])
        )
      )
    }
  }
}
