/** The validation of idle connections: when it happens, and what a missing answer causes. */
import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { Db, insert, Place, pid, stored } from "../../databases.js"
import { eventually } from "../../eventually.js"
import { query, terminateBackends } from "../../server.js"
import { warmUp } from "./connections.js"
import { figures, only, settled, told, watch } from "./observations.js"
import { halfOpen, Network, open, openOverNetwork, type Way } from "./way.js"

export const validation = (way: Way): void => {
  const count = way.strategy === "pooled" ? 3 : 1
  const { hasSessions } = way.route
  // a validation may take a pooler up to connectTimeout, because it needs a free server connection
  const patient = { startup: "lazy", validateAfterIdle: 0, connectTimeout: "1 second" } as const

  /** Returns the number of round trips of an effect. */
  const roundTrips = <A, E, R>(self: Effect.Effect<A, E, R>) =>
    Effect.gen(function* () {
      const network = yield* Network
      const before = network.roundTrips
      yield* self
      return network.roundTrips - before
    })

  it.scopedLive("a connection is validated only if it was idle for longer than validateAfterIdle", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      yield* pid
      assert.strictEqual(yield* roundTrips(pid), 1)
      yield* query(writer, "SELECT pg_sleep(0.11)")
      assert.strictEqual(yield* roundTrips(pid), 2)
      // the statement itself validated the connection
      assert.strictEqual(yield* roundTrips(pid), 1)
    }).pipe(Effect.provide(openOverNetwork(way, { validateAfterIdle: "100 millis" })))
  )

  it.scopedLive("a new connection is not validated", () =>
    Effect.gen(function* () {
      // behind a pooler, the check of the role is a round trip of its own
      assert.strictEqual(yield* roundTrips(pid), hasSessions ? 1 : 2)
    }).pipe(Effect.provide(openOverNetwork(way, { validateAfterIdle: 0, startup: "lazy" })))
  )

  it.scopedLive("validateAfterIdle 0 validates at each checkout, and infinity never", () =>
    Effect.gen(function* () {
      const twice = Effect.zipRight(pid, roundTrips(pid))
      assert.strictEqual(yield* Effect.provide(twice, openOverNetwork(way, { validateAfterIdle: 0 })), 2)
      assert.strictEqual(
        yield* Effect.provide(twice, openOverNetwork(way, { validateAfterIdle: Duration.infinity })),
        1
      )
    })
  )

  if (hasSessions) {
    it.scopedLive(
      "a connection that was unused for long during a checkout is validated before the next waiter gets it",
      () =>
        Effect.gen(function* () {
          const { writer } = yield* Place
          const sql = yield* Db.writer
          const scope = yield* Scope.make()
          const connection = yield* Scope.extend(sql.reserve, scope)
          yield* connection.execute("SELECT 1", [], undefined)
          const waiter = yield* Effect.fork(pid)
          yield* settled({ waiting: 1 })
          yield* query(writer, "SELECT pg_sleep(0.11)")
          const trips = yield* roundTrips(Effect.zipRight(Scope.close(scope, Exit.void), Fiber.join(waiter)))
          assert.strictEqual(trips, 2)
        }).pipe(Effect.provide(openOverNetwork(way, { maxConnections: 1, validateAfterIdle: "100 millis" })))
    )

    it.scopedLive(`idle connections that the server has ended are replaced without a failure (${count})`, () =>
      Effect.gen(function* () {
        const { name } = yield* Place
        const facts = yield* watch
        const before = yield* warmUp(count)
        yield* told(facts, "Connected", count)
        yield* terminateBackends(name)
        const after = yield* warmUp(count)
        for (const process of after) assert.notInclude(before, process)
        assert.lengthOf(yield* told(facts, "Connected", 2 * count), 2 * count)
        assert.isEmpty(only(facts, "ConnectFailed"))
      }).pipe(Effect.provide(open(way, { maxConnections: count, startup: "lazy" })))
    )
  }

  it.scopedLive(`half-open idle connections are replaced within 2 seconds, without a failure (${count})`, () =>
    Effect.gen(function* () {
      const facts = yield* watch
      yield* warmUp(count)
      yield* told(facts, "Connected", count)
      yield* halfOpen
      const start = performance.now()
      yield* Effect.forEach(Array.from({ length: count }), (_, i) => insert(`row ${i}`), { concurrency: "unbounded" })
      // a validation may take a second
      assert.isBelow(performance.now() - start, 2000)
      assert.lengthOf(yield* stored, count)
      for (const { reason } of yield* told(facts, "Closed", count)) assert.strictEqual(reason, "invalid")
      assert.isEmpty(only(facts, "ConnectFailed"))
    }).pipe(Effect.provide(openOverNetwork(way, { ...patient, maxConnections: count })))
  )

  if (way.strategy === "pooled") {
    it.scopedLive(
      "a validation that gets no answer replaces every older connection at once, not one after the other",
      () =>
        Effect.gen(function* () {
          const facts = yield* watch
          yield* warmUp(6)
          yield* halfOpen
          const start = performance.now()
          yield* insert("one")
          assert.isBelow(performance.now() - start, 2000)
          assert.lengthOf(yield* told(facts, "Closed", 6), 6)
          assert.lengthOf(only(facts, "Connected"), 7)
          assert.strictEqual((yield* eventually(figures, ({ total }) => total === 1)).idle, 1)
        }).pipe(Effect.provide(openOverNetwork(way, { ...patient, maxConnections: 6 })))
    )
  }
}
