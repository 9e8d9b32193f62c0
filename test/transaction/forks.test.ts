/**
 * The end of a transaction, of a unit of work and of a request while a fork is still in it.
 */
import { HttpClient, HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { DatabaseError, RequestTransaction, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { audit, event, events } from "../support/audit.js"
import { Audit, active, Db, fresh, idle, insert, Place, stored } from "../support/databases.js"
import { terminateBackends } from "../support/server.js"

const hurried = fresh({ acquireTimeout: "200 millis" })

/**
 * Forks a nested transaction that sends a statement, and another after `go`; returns its fiber and
 * `go` once the first is answered.
 */
const forkNested = <R>(nested: <A, E>(self: Effect.Effect<A, E, Db>) => Effect.Effect<A, unknown, Db | R>) =>
  Effect.gen(function* () {
    const sent = yield* Deferred.make<void>()
    const go = yield* Deferred.make<void>()
    const fiber = yield* insert("fork").pipe(
      Effect.zipRight(Deferred.succeed(sent, undefined)),
      Effect.zipRight(Deferred.await(go)),
      Effect.zipRight(insert("fork, later")),
      nested,
      Effect.flip,
      Effect.forkDaemon
    )
    yield* Deferred.await(sent)
    return { fiber, go }
  })

/**
 * Forks a statement in a nested transaction that fails while the statement waits; returns the fiber
 * of its failure.
 */
const lateIn = (nested: <A, E>(self: Effect.Effect<A, E, Db>) => Effect.Effect<A, unknown, Db>) =>
  Effect.gen(function* () {
    const forked = yield* Deferred.make<Fiber.RuntimeFiber<DatabaseError.DatabaseError, unknown>>()
    const late = Effect.flip(DatabaseError.refine(insert("late")))
    yield* Effect.forkDaemon(late).pipe(
      Effect.tap((fiber) => Deferred.succeed(forked, fiber)),
      Effect.zipLeft(Effect.yieldNow()),
      Effect.zipRight(Effect.fail("x")),
      nested,
      Effect.flip
    )
    return yield* Deferred.await(forked)
  })

/** The nested transactions that a fork begins: a savepoint and a nested part. */
const ways = [
  ["Db.withTransaction", (self) => Db.withTransaction(self)],
  ["UnitOfWork.nested", (self) => UnitOfWork.nested(self)]
] as const satisfies ReadonlyArray<
  readonly [string, <A, E>(self: Effect.Effect<A, E, Db>) => Effect.Effect<A, unknown, Db>]
>

describe("the end of a transaction with a running fork", () => {
  for (const [name, nested] of ways) {
    it.scopedLive(`COMMIT waits for a fork's ${name} for acquireTimeout, then fails with TransactionBusy`, () =>
      Effect.gen(function* () {
        const work = Effect.zipRight(insert("outer"), forkNested(nested))
        for (const whole of [Db.withTransaction(work), UnitOfWork.run(work)]) {
          const error = yield* whole.pipe(DatabaseError.refine, Effect.flip)
          assert.strictEqual(error._tag, "TransactionBusy")
          assert.strictEqual(error._tag === "TransactionBusy" && error.waitedMillis, 200)
          yield* idle
          assert.deepStrictEqual(yield* stored, [])
        }
      }).pipe(Effect.provide(hurried))
    )
  }

  it.scopedLive("RELEASE with a fork inside fails with TransactionBusy, and the transaction around it goes on", () =>
    Effect.gen(function* () {
      const error = yield* Db.withTransaction(
        Effect.zipRight(
          insert("inner"),
          forkNested((self) => Db.withTransaction(self))
        )
      ).pipe(DatabaseError.refine, Effect.flip, Effect.zipLeft(insert("outer")), Db.withTransaction())
      assert.strictEqual(error._tag, "TransactionBusy")
      yield* idle
      assert.deepStrictEqual(yield* stored, ["outer"])
    }).pipe(Effect.provide(hurried))
  )

  it.scopedLive("the check before the first COMMIT fails with TransactionBusy for a fork, and nothing is stored", () =>
    Effect.gen(function* () {
      for (const order of [
        [Db, Audit],
        [Audit, Db]
      ]) {
        const error = yield* Effect.zipRight(
          event("outer"),
          forkNested((self) => Db.withTransaction(self))
        ).pipe(UnitOfWork.run({ order }), DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag, "TransactionBusy")
        yield* idle
        assert.deepStrictEqual([yield* stored, yield* events], [[], []])
      }
    }).pipe(Effect.provide(Layer.merge(hurried, audit)))
  )

  for (const [name, nested] of ways) {
    it.scopedLive(`a fork's statement that waits in a ${name} fails when that ends, and the whole goes on`, () =>
      Effect.gen(function* () {
        yield* UnitOfWork.run(
          Effect.gen(function* () {
            yield* insert("outer")
            const { fiber: beside, go } = yield* forkNested(nested)
            const late = yield* lateIn(nested)
            assert.strictEqual((yield* Fiber.join(late))._tag, "TransactionEnded")
            yield* Deferred.succeed(go, undefined)
            yield* Fiber.await(beside)
            yield* insert("after")
          })
        )
        assert.deepStrictEqual(yield* stored, ["after", "fork", "fork, later", "outer"])
      }).pipe(Effect.provide(fresh()))
    )
  }

  it.scopedLive("a fork's statement that waits for a connection fails when its transaction ends", () =>
    Effect.gen(function* () {
      const { fiber: holder, go } = yield* forkNested((self) => Db.withTransaction(self))
      const late = yield* lateIn((self) => Db.withTransaction(self))
      assert.strictEqual((yield* Fiber.join(late))._tag, "TransactionEnded")
      yield* Deferred.succeed(go, undefined)
      yield* Fiber.await(holder)
      assert.deepStrictEqual(yield* stored, ["fork", "fork, later"])
    }).pipe(Effect.provide(fresh({ readers: [], maxConnections: 1 })))
  )

  it.scopedLive("a statement whose nested part waits for its turn fails as undone if the connection is lost", () =>
    Effect.gen(function* () {
      const { name } = yield* Place
      const failed = yield* Deferred.make<DatabaseError.DatabaseError>()
      const work = Effect.gen(function* () {
        const { go } = yield* forkNested((self) => UnitOfWork.nested(self))
        const waiting = yield* insert("waiting").pipe(
          UnitOfWork.nested(),
          DatabaseError.refine,
          Effect.flip,
          Effect.fork
        )
        yield* Effect.yieldNow()
        yield* terminateBackends(name)
        yield* Deferred.succeed(failed, yield* Fiber.join(waiting))
        yield* Deferred.succeed(go, undefined)
      })
      yield* Effect.flip(UnitOfWork.run(work))
      const error = yield* Deferred.await(failed)
      assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
    }).pipe(Effect.provide(fresh({ readers: [], acquireTimeout: "5 seconds" })))
  )

  it.scopedLive("COMMIT does not wait for a fork if the server has ended the session", () =>
    Effect.gen(function* () {
      const { name } = yield* Place
      const error = yield* Db.withTransaction(
        Effect.zipRight(
          forkNested((self) => Db.withTransaction(self)),
          terminateBackends(name)
        )
      ).pipe(DatabaseError.refine, Effect.flip)
      assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
      assert.deepStrictEqual(yield* stored, [])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh({ readers: [] })))
  )

  it.scopedLive("COMMIT stops waiting for a fork if the server ends the session meanwhile", () =>
    Effect.gen(function* () {
      const { name } = yield* Place
      const error = yield* Db.withTransaction(
        Effect.zipRight(
          forkNested((self) => Db.withTransaction(self)),
          Effect.forkDaemon(Effect.zipRight(Effect.yieldNow(), terminateBackends(name)))
        )
      ).pipe(DatabaseError.refine, Effect.flip)
      assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh({ readers: [] })))
  )

  it.scopedLive("the end of a unit fails with TransactionBusy if the hook of a fork's commit does not end", () =>
    Effect.gen(function* () {
      const begun = yield* Deferred.make<void>()
      const error = yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* insert("a")
          yield* Db.beforeCommit(Effect.zipRight(Deferred.succeed(begun, undefined), Effect.never))
          yield* Effect.forkDaemon(Effect.either(UnitOfWork.commit))
          yield* Deferred.await(begun)
        })
      ).pipe(DatabaseError.refine, Effect.flip)
      assert.strictEqual(error._tag, "TransactionBusy")
      assert.deepStrictEqual(yield* stored, [])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(hurried))
  )

  for (const [name, nested] of ways) {
    it.scopedLive(`a request is answered and stored without waiting for a fork's ${name}, which is undone`, () =>
      Effect.gen(function* () {
        let forked: Effect.Effect.Success<ReturnType<typeof forkNested>> | undefined
        const app = Effect.gen(function* () {
          yield* insert("request")
          forked = yield* forkNested(nested)
          return HttpServerResponse.empty({ status: 201 })
        })
        const router = HttpRouter.empty.pipe(HttpRouter.post("/", app), HttpRouter.use(RequestTransaction.middleware()))
        yield* Layer.build(HttpServer.serve(router))
        assert.strictEqual((yield* HttpClient.post("/")).status, 201)
        assert.deepStrictEqual(yield* stored, ["request"])
        assert.strictEqual(yield* active, 0)
        if (forked === undefined) return assert.fail("the handler has forked nothing")
        yield* Deferred.succeed(forked.go, undefined)
        const error = yield* Effect.flatten(Fiber.await(forked.fiber)).pipe(Effect.map(String))
        assert.include(error, "the transaction has ended")
        assert.deepStrictEqual(yield* stored, ["request"])
      }).pipe(Effect.provide(Layer.merge(NodeHttpServer.layerTest, fresh())))
    )
  }

  it.scopedLive("a hook of a request may run statements although a fork has left a nested transaction open", () =>
    Effect.gen(function* () {
      const app = Effect.gen(function* () {
        yield* Effect.zipRight(insert("request"), Db.beforeCommit(insert("hook")))
        yield* forkNested((self) => Db.withTransaction(self))
        return HttpServerResponse.empty({ status: 201 })
      })
      const router = HttpRouter.empty.pipe(HttpRouter.post("/", app), HttpRouter.use(RequestTransaction.middleware()))
      yield* Layer.build(HttpServer.serve(router))
      assert.strictEqual((yield* HttpClient.post("/")).status, 201)
      assert.deepStrictEqual(yield* stored, ["hook", "request"])
    }).pipe(Effect.provide(Layer.merge(NodeHttpServer.layerTest, fresh())))
  )
})
