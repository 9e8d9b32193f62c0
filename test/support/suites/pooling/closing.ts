/**
 * The close of a pool: work may end within `shutdownTimeout`, new callers are refused, and no
 * connection is left.
 */
import { SqlClient } from "@effect/sql/SqlClient"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { Db, insert, Place, pid, stored } from "../../databases.js"
import { eventually } from "../../eventually.js"
import { taggedFailure } from "../../failures.js"
import type { Proxy } from "../../proxy.js"
import { query } from "../../server.js"
import { hold } from "./connections.js"
import { figures, settled } from "./observations.js"
import { connects, once, openToClose, type Way } from "./way.js"

/** Returns the duration of an effect, in ms. */
const took = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const start = performance.now()
    return Effect.map(self, () => performance.now() - start)
  })

/** Waits until no client is connected; the proxy may notice a close a moment later. */
const isEmpty = (network: Proxy) =>
  eventually(
    Effect.sync(() => network.connections),
    (n) => n === 0
  )

export const closing = (way: Way): void => {
  const one = { maxConnections: 1, startup: "lazy" } as const

  it.scopedLive("work that is under way at the close may end, and later callers fail with DatabaseClosed", () =>
    Effect.gen(function* () {
      const { close, context, network } = yield* openToClose(way, { maxConnections: 2, shutdownTimeout: "20 seconds" })
      yield* Effect.gen(function* () {
        const letGo = yield* Deferred.make<void>()
        const arrived = yield* Deferred.make<void>()
        const work = yield* insert("first").pipe(
          Effect.zipRight(Deferred.succeed(arrived, undefined)),
          Effect.zipRight(Deferred.await(letGo)),
          Effect.zipRight(insert("last")),
          Db.withTransaction(),
          Effect.fork
        )
        yield* Deferred.await(arrived)
        const closed = yield* Effect.fork(close)
        yield* taggedFailure(
          "DatabaseClosed",
          eventually(Effect.zipRight(pid, figures), () => false)
        )
        yield* Deferred.succeed(letGo, undefined)
        yield* Fiber.join(work)
        yield* Fiber.join(closed)
        assert.deepStrictEqual(yield* stored, ["first", "last"])
        yield* isEmpty(network)
      }).pipe(Effect.provide(context))
    })
  )

  it.scopedLive("work that takes longer than shutdownTimeout fails with Disconnected, undone", () =>
    Effect.gen(function* () {
      const { close, context, network } = yield* openToClose(way, { maxConnections: 3, shutdownTimeout: "50 millis" })
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const count = way.strategy === "pooled" ? 3 : 1
        const later = Effect.unsafeMakeLatch(false)
        const works = [
          sql`SELECT pg_sleep(1000)`,
          Db.withTransaction(Effect.zipRight(insert("a"), sql`SELECT pg_sleep(1000)`)),
          Db.withTransaction(Effect.zipRight(insert("b"), Effect.zipRight(later.await, insert("c"))))
        ].slice(0, count)
        const fibers = yield* Effect.forEach(works, (work) => Effect.fork(taggedFailure("Disconnected", work)))
        yield* settled({ active: count, connecting: 0 })
        assert.isBelow(yield* took(close), 3000)
        yield* later.open
        for (const { outcome } of yield* Fiber.joinAll(fibers)) assert.strictEqual(outcome, "undone")
        assert.deepStrictEqual(yield* stored, [])
        yield* isEmpty(network)
      }).pipe(Effect.provide(context), Effect.provide(once))
    })
  )

  it.scopedLive("a close on a silent network takes less than 3 seconds", () =>
    Effect.gen(function* () {
      const { close, context, network } = yield* openToClose(way, { maxConnections: 3, shutdownTimeout: "50 millis" })
      yield* Effect.gen(function* () {
        const idle = way.strategy === "pooled" ? yield* hold : undefined
        const begun = yield* Deferred.make<void>()
        const later = Effect.unsafeMakeLatch(false)
        const statements = Effect.all([pid, Deferred.succeed(begun, undefined), later.await, pid])
        const work = yield* Effect.fork(taggedFailure("Disconnected", Db.withTransaction(statements)))
        yield* Deferred.await(begun)
        yield* settled({ active: idle === undefined ? 1 : 2, connecting: 0 })
        if (idle !== undefined) yield* idle.release
        yield* network.freeze
        assert.isBelow(yield* took(close), 3000)
        yield* later.open
        assert.strictEqual((yield* Fiber.join(work)).outcome, "undone")
      }).pipe(Effect.provide(context), Effect.provide(once))
    })
  )

  it.scopedLive("waiters fail at the close before the connection in use is checked in", () =>
    Effect.gen(function* () {
      const { close, context } = yield* openToClose(way, { ...one, shutdownTimeout: "20 seconds" })
      yield* Effect.gen(function* () {
        const holder = yield* hold
        const waiter = yield* Effect.fork(taggedFailure("DatabaseClosed", pid))
        yield* settled({ waiting: 1 })
        const closed = yield* Effect.fork(close)
        yield* Fiber.join(waiter)
        assert.isTrue(Exit.isSuccess(yield* holder.release))
        yield* Fiber.join(closed)
      }).pipe(Effect.provide(context))
    })
  )

  it.scopedLive("a close does not wait for a connect that is under way, and its waiter fails with DatabaseClosed", () =>
    Effect.gen(function* () {
      const { close, context, network } = yield* openToClose(way, { ...one, connectTimeout: "20 seconds" })
      yield* Effect.gen(function* () {
        const asked = yield* network.when(connects, "freeze")
        const waiter = yield* Effect.fork(taggedFailure("DatabaseClosed", pid))
        yield* asked
        assert.isBelow(yield* took(close), 3000)
        yield* Fiber.join(waiter)
        yield* isEmpty(network)
      }).pipe(Effect.provide(context))
    })
  )

  for (const task of ["onConnect", "onCheckout", "resetOnReturn"] as const) {
    it.scopedLive(`the close does not wait for ${task}, which is interrupted`, () => {
      const arrived = Effect.unsafeMakeLatch(false)
      const stopped = Effect.unsafeMakeLatch(false)
      const slow = Effect.onInterrupt(Effect.zipRight(arrived.open, Effect.never), () => stopped.open)
      return Effect.gen(function* () {
        const { close, context, network } = yield* openToClose(way, {
          ...one,
          [task]: slow,
          connectTimeout: "20 seconds",
          shutdownTimeout: "20 seconds"
        })
        yield* Effect.gen(function* () {
          const waiter = yield* Effect.fork(Effect.exit(pid))
          yield* arrived.await
          assert.isBelow(yield* took(close), 3000)
          yield* stopped.await
          yield* Fiber.join(waiter)
          yield* isEmpty(network)
        }).pipe(Effect.provide(context))
      })
    })
  }

  for (const task of ["onConnect", "onCheckout", "resetOnReturn"] as const) {
    it.scopedLive(`a statement of ${task} that is under way at the close is cancelled on the server`, () =>
      Effect.gen(function* () {
        const { close, context } = yield* openToClose(way, {
          ...one,
          [task]: Effect.flatMap(SqlClient, (sql) => sql`SELECT 1 FROM pg_sleep(60) AS long`),
          connectTimeout: "20 seconds"
        })
        yield* Effect.gen(function* () {
          const { name, writer } = yield* Place
          const running = query(writer, "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND query LIKE '%AS long'", [
            name
          ])
          const waiter = yield* Effect.fork(Effect.exit(pid))
          yield* eventually(running, (all) => all.length === 1)
          yield* close
          yield* Fiber.join(waiter)
          yield* eventually(running, (all) => all.length === 0)
        }).pipe(Effect.provide(context))
      })
    )
  }

  it.scopedLive("no connection is opened after the close", () =>
    Effect.gen(function* () {
      const { close, context, network } = yield* openToClose(way, { maxConnections: 1, minConnections: 1 })
      yield* Effect.gen(function* () {
        const { writer } = yield* Place
        yield* settled({ idle: 1 })
        yield* network.refuse
        yield* network.cut
        // the pool keeps trying to open its minConnections
        yield* eventually(figures, ({ lastConnectFailure }) => lastConnectFailure !== undefined)
        yield* close
        yield* network.accept
        const { accepted } = network
        // longer than the pause before the next attempt, at most 250 ms while no connection is open
        yield* query(writer, "SELECT pg_sleep(0.6)")
        assert.strictEqual(network.accepted, accepted)
      }).pipe(Effect.provide(context))
    })
  )
}
