/**
 * The end of a transaction on a network that fails: the stored rows, the failure, and the duration.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { DatabaseError } from "effect-db"
import { describe } from "vitest"
import { Db, insert } from "../support/databases.js"
import { freshItemsThroughProxy } from "../support/proxied.js"
import { answers, sends } from "../support/proxy.js"

/**
 * Timeout of operations that the library bounds to one second: longer than that, but so short that
 * a missing bound fails the test.
 */
const bound = "4 seconds"

describe("the end of a transaction", () => {
  it.scopedLive("a connection lost before COMMIT arrives fails as Disconnected, undone, and nothing is stored", () =>
    Effect.gen(function* () {
      const { context, proxy, stored } = yield* freshItemsThroughProxy()
      yield* proxy.when(sends("COMMIT"), "cut")
      const error = yield* Db.withTransaction(insert("a")).pipe(
        Effect.provide(context),
        DatabaseError.refine,
        Effect.flip
      )
      assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
      assert.deepStrictEqual(yield* stored, [])
    })
  )

  it.scopedLive("a COMMIT that is lost on its way is CommitOutcomeUnknown with the outcome unknown", () =>
    Effect.gen(function* () {
      const { context, proxy, stored } = yield* freshItemsThroughProxy({ outcome: "unknown" })
      yield* proxy.when(sends("COMMIT"), "cut")
      const error = yield* Db.withTransaction(insert("a")).pipe(
        Effect.provide(context),
        DatabaseError.refine,
        Effect.flip
      )
      assert.strictEqual(error._tag, "CommitOutcomeUnknown")
      assert.deepStrictEqual(yield* stored, [])
    })
  )

  it.scopedLive("a connection lost before the answer to COMMIT arrives is a success, and the hooks run", () =>
    Effect.gen(function* () {
      const { context, proxy, stored } = yield* freshItemsThroughProxy()
      const hooks: Array<string> = []
      yield* proxy.when(answers("COMMIT"), "cut")
      yield* insert("a").pipe(
        Effect.zipRight(Db.afterCommit(Effect.sync(() => void hooks.push("committed")))),
        Effect.zipRight(Db.afterRollback(Effect.sync(() => void hooks.push("rolled back")))),
        Effect.zipRight(Db.afterUnknown(Effect.sync(() => void hooks.push("unknown")))),
        Db.withTransaction({ retry: true }),
        Effect.provide(context)
      )
      assert.deepStrictEqual(yield* stored, ["a"])
      assert.deepStrictEqual(hooks, ["committed"])
    })
  )

  it.scopedLive(
    "with the outcome unknown, a transaction whose answer to COMMIT is lost is stored and is not run again",
    () =>
      Effect.gen(function* () {
        const { context, proxy, stored } = yield* freshItemsThroughProxy({ outcome: "unknown" })
        const hooks: Array<string> = []
        yield* proxy.when(answers("COMMIT"), "cut")
        const error = yield* insert("a").pipe(
          Effect.zipRight(Db.afterCommit(Effect.sync(() => void hooks.push("committed")))),
          Effect.zipRight(Db.afterRollback(Effect.sync(() => void hooks.push("rolled back")))),
          Db.withTransaction({ retry: true }),
          Effect.provide(context),
          DatabaseError.refine,
          Effect.flip
        )
        assert.strictEqual(error._tag, "CommitOutcomeUnknown")
        assert.deepStrictEqual(yield* stored, ["a"])
        assert.deepStrictEqual(hooks, [])
      })
  )

  it.scopedLive("a transaction that only reads is never in doubt", () =>
    Effect.gen(function* () {
      const { context, proxy } = yield* freshItemsThroughProxy()
      yield* proxy.when(answers("COMMIT"), "cut")
      const read = Effect.flatMap(Db.writer, (sql) => sql`SELECT * FROM item`)
      const error = yield* read.pipe(
        Db.withTransaction({ access: "read only" }),
        Effect.provide(context),
        DatabaseError.refine,
        Effect.flip
      )
      assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
      // so retry runs it again
      yield* proxy.when(answers("COMMIT"), "cut")
      assert.deepStrictEqual(
        yield* read.pipe(Db.withTransaction({ access: "read only", retry: true }), Effect.provide(context)),
        []
      )
    })
  )

  it.scopedLive("an interruption after COMMIT was sent waits for its answer; the row is stored, the hooks run", () =>
    Effect.gen(function* () {
      const { context, proxy, stored } = yield* freshItemsThroughProxy()
      const hooks: Array<string> = []
      const committing = yield* proxy.when(sends("COMMIT"), "freeze")
      const fiber = yield* Effect.fork(
        insert("a").pipe(
          Effect.zipRight(Db.afterCommit(Effect.sync(() => void hooks.push("committed")))),
          Db.withTransaction(),
          Effect.provide(context)
        )
      )
      yield* committing
      const interrupting = yield* Effect.fork(Fiber.interrupt(fiber))
      yield* Effect.yieldNow()
      yield* proxy.thaw
      const exit = yield* Fiber.join(interrupting)
      assert.isTrue(Exit.isInterrupted(exit))
      assert.deepStrictEqual(yield* stored, ["a"])
      assert.deepStrictEqual(hooks, ["committed"])
    })
  )

  it.scopedLive("an interruption during a COMMIT that is never answered settles within its bound", () =>
    Effect.gen(function* () {
      const { context, proxy, stored } = yield* freshItemsThroughProxy({ maxConnections: 1 })
      const committing = yield* proxy.when(sends("COMMIT"), "freeze")
      const fiber = yield* Effect.fork(Effect.provide(Db.withTransaction(insert("a")), context))
      yield* committing
      const exit = yield* Fiber.interrupt(fiber).pipe(Effect.timeout(bound))
      assert.isTrue(Exit.isInterrupted(exit))
      yield* Effect.provide(insert("next"), context)
      assert.deepStrictEqual(yield* stored, ["next"])
    })
  )

  it.scopedLive("a ROLLBACK that is never answered settles within its bound, with the failure that caused it", () =>
    Effect.gen(function* () {
      const { context, proxy, stored } = yield* freshItemsThroughProxy({ maxConnections: 1 })
      yield* proxy.when(sends("ROLLBACK"), "freeze")
      const error = yield* Effect.zipRight(insert("a"), Effect.fail("mine")).pipe(
        Db.withTransaction(),
        Effect.provide(context),
        Effect.timeout(bound),
        Effect.flip
      )
      assert.strictEqual(error, "mine")
      yield* Effect.provide(insert("next"), context)
      assert.deepStrictEqual(yield* stored, ["next"])
    })
  )

  it.scopedLive("an interruption of a statement that is never answered settles within its bound", () =>
    Effect.gen(function* () {
      const { context, proxy, stored } = yield* freshItemsThroughProxy({ maxConnections: 1 })
      const sent = yield* proxy.when(sends("INSERT"), "freeze")
      const fiber = yield* Effect.fork(Effect.provide(Db.withTransaction(insert("a")), context))
      yield* sent
      yield* Fiber.interrupt(fiber).pipe(Effect.timeout(bound))
      yield* Effect.provide(insert("next"), context)
      assert.deepStrictEqual(yield* stored, ["next"])
    })
  )

  it.scopedLive("an empty transaction takes no round trip, one of n statements n + 1, an autocommit statement 1", () =>
    Effect.gen(function* () {
      const { context, proxy } = yield* freshItemsThroughProxy()
      const trips = <A, E>(self: Effect.Effect<A, E, Db>) =>
        Effect.gen(function* () {
          const before = proxy.roundTrips
          yield* Effect.provide(self, context)
          return proxy.roundTrips - before
        })
      const sql = yield* Effect.provide(Db.writer, context)
      assert.strictEqual(yield* trips(insert("a")), 1)
      assert.strictEqual(yield* trips(sql`SELECT 1`), 1)
      assert.strictEqual(yield* trips(Db.withTransaction(Effect.void)), 0)
      assert.strictEqual(yield* trips(Db.withTransaction(insert("b"))), 2)
      assert.strictEqual(yield* trips(Db.withTransaction(Effect.all([insert("c"), insert("d"), sql`SELECT 1`]))), 4)
      assert.strictEqual(
        yield* trips(Db.withTransaction(insert("e"), { isolation: "serializable", statementTimeout: "1 second" })),
        2
      )
      assert.strictEqual(yield* trips(Db.withTransaction(Db.withTransaction(insert("f")))), 3)
      const reads = Effect.zipRight(sql`SELECT count(*) FROM item`, sql`SELECT name FROM item`)
      assert.strictEqual(yield* trips(Db.withTransaction(reads)), 3)
      // the id is queried before COMMIT, because a query after these commands could change their
      // meaning
      const lock = sql.unsafe("LOCK TABLE item")
      assert.strictEqual(yield* trips(Db.withTransaction(lock)), 3)
      assert.strictEqual(yield* trips(Db.withTransaction(Effect.zipRight(lock, insert("g")))), 3)
    })
  )
})
