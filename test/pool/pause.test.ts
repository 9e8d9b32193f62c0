/** The pause of a database: checkouts are held back, and connections in use are waited for. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { DatabaseError } from "effect-db"
import { Db, fresh, insert, stored } from "../support/databases.js"
import { settled } from "../support/suites/pooling/observations.js"

/** Begins a transaction that inserts a row, and commits when `end` is run. */
const transaction = (name: string) =>
  Effect.gen(function* () {
    const begun = yield* Deferred.make<void>()
    const end = yield* Deferred.make<void>()
    const fiber = yield* Effect.fork(
      Db.withTransaction(
        insert(name).pipe(Effect.zipRight(Deferred.succeed(begun, undefined)), Effect.zipRight(Deferred.await(end)))
      )
    )
    yield* Deferred.await(begun)
    return { end: Effect.zipRight(Deferred.succeed(end, undefined), Fiber.join(fiber)) }
  })

describe("a pause", () => {
  it.scopedLive("a pause waits for the open transaction, holds back further callers, and resume serves them", () =>
    Effect.gen(function* () {
      const open = yield* transaction("a")
      const pausing = yield* Effect.fork(Db.pause({ drain: "1 minute" }))
      yield* Effect.yieldNow()
      const waiting = yield* Effect.fork(Effect.forEach(["b", "c"], insert, { concurrency: 2, discard: true }))
      yield* settled({ active: 1, waiting: 2 })
      yield* open.end
      assert.strictEqual(yield* Fiber.join(pausing), 0)
      assert.deepStrictEqual((yield* stored).slice(), ["a"])
      yield* settled({ active: 0, waiting: 2 })
      yield* Db.resume
      yield* Fiber.join(waiting)
      assert.deepStrictEqual([...(yield* stored)].sort(), ["a", "b", "c"])
    }).pipe(Effect.provide(fresh({ readers: [] })))
  )

  it.scopedLive("a pause without a drain, or with one that is too short, returns the connections in use", () =>
    Effect.gen(function* () {
      const [first, second] = [yield* transaction("a"), yield* transaction("b")]
      assert.strictEqual(yield* Db.pause(), 2)
      assert.strictEqual(yield* Db.pause({ drain: "5 millis" }), 2)
      yield* first.end
      yield* second.end
      assert.strictEqual(yield* Db.pause({ drain: "1 minute" }), 0)
    }).pipe(Effect.provide(fresh({ readers: [] })))
  )

  it.scopedLive("a caller that waits for longer than acquireTimeout fails with PoolExhausted, as paused", () =>
    Effect.gen(function* () {
      yield* Db.pause()
      const error = yield* Effect.flip(DatabaseError.refine(insert("a")))
      assert.strictEqual(error._tag === "PoolExhausted" && error.reason, "paused")
      assert.include(error.message, "Db.resume")
      yield* Db.resume
      yield* insert("b")
    }).pipe(Effect.provide(fresh({ readers: [], acquireTimeout: "100 millis" })))
  )

  it.scopedLive("at most maxOutageWaiters callers wait for the end of a pause", () =>
    Effect.gen(function* () {
      yield* Db.pause()
      const waiting = yield* Effect.fork(Effect.forEach(["a", "b"], insert, { concurrency: 2, discard: true }))
      yield* settled({ waiting: 2 })
      const error = yield* Effect.flip(DatabaseError.refine(insert("c")))
      assert.strictEqual(error._tag === "PoolExhausted" && error.reason, "paused")
      yield* Db.resume
      yield* Fiber.join(waiting)
    }).pipe(Effect.provide(fresh({ readers: [], maxOutageWaiters: 2 })))
  )

  it.scopedLive("the interruption of a drain ends the pause", () =>
    Effect.gen(function* () {
      const open = yield* transaction("a")
      const pausing = yield* Effect.fork(Db.pause({ drain: "1 minute" }))
      yield* Effect.yieldNow()
      yield* Fiber.interrupt(pausing)
      yield* insert("b")
      yield* open.end
    }).pipe(Effect.provide(fresh({ readers: [] })))
  )

  it.scopedLive("a paused database can be closed, and the callers that it holds back fail with DatabaseClosed", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(fresh({ readers: [] }), scope)
      yield* Effect.gen(function* () {
        yield* Db.pause()
        const waiting = yield* Effect.fork(Effect.flip(DatabaseError.refine(insert("a"))))
        yield* settled({ waiting: 1 })
        yield* Scope.close(scope, yield* Effect.exit(Effect.void))
        assert.strictEqual((yield* Fiber.join(waiting))._tag, "DatabaseClosed")
      }).pipe(Effect.provide(context))
    })
  )

  it.scopedLive("resume without a pause changes nothing", () =>
    Effect.zipRight(Db.resume, insert("a")).pipe(Effect.provide(fresh({ readers: [] })))
  )
})
