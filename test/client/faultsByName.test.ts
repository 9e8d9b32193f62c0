/**
 * The failures of plain clients that a network or a server causes, by their numbers in the guide on
 * guarantees, each reproduced by an injected fault, with the outcome that a program receives.
 */
import { assert, it } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import type { DatabaseError } from "effect-db"
import { describe } from "vitest"
import { active, Db, insert, look, pid, run } from "../support/databases.js"
import { failure, faulty } from "../support/faulty.js"

const tagAndOutcome = (error: DatabaseError.DatabaseError) => [
  error._tag,
  "outcome" in error ? error.outcome : undefined
]

const count = Effect.map(look<{ n: number }>("SELECT count(*)::int AS n FROM item"), ([row]) => row?.n)

describe("failures that a server causes", () => {
  it.scopedLive("failure 3: a COMMIT that fails is CommitFailed, and nothing is stored", () =>
    faulty((faults) =>
      Effect.gen(function* () {
        yield* faults.refuse({ statement: "COMMIT" }, { sqlState: "23503", message: "violates foreign key" })
        assert.strictEqual((yield* failure(Db.withTransaction(insert("a"))))._tag, "CommitFailed")
        assert.deepStrictEqual([yield* count, yield* active], [0, 0])
      })
    )
  )

  it.scopedLive("failure 4: a backend that dies inside of a transaction is Disconnected, undone", () =>
    faulty((faults) =>
      Effect.gen(function* () {
        yield* faults.disconnect({ statement: "pg_sleep" })
        const work = Effect.zipRight(insert("a"), run("SELECT pg_sleep(0)"))
        assert.deepStrictEqual(tagAndOutcome(yield* failure(Db.withTransaction(work))), ["Disconnected", "undone"])
        assert.strictEqual(yield* count, 0)
        assert.isNumber(yield* pid)
      })
    )
  )

  it.scopedLive("failure 5: a BEGIN that fails is retried, and is notSent if no attempt succeeds", () =>
    faulty(
      (faults) =>
        Effect.gen(function* () {
          const once = yield* faults.disconnect({ statement: "BEGIN" })
          yield* Db.withTransaction(insert("a"))
          assert.strictEqual(yield* once.count, 1)
          yield* faults.disconnect({ statement: "BEGIN", times: Number.POSITIVE_INFINITY })
          const error = yield* failure(Db.withTransaction(insert("b")))
          assert.deepStrictEqual(tagAndOutcome(error), ["Disconnected", "notSent"])
          assert.strictEqual(yield* count, 1)
        }),
      { acquireTimeout: "3 seconds" }
    )
  )

  it.scopedLive("failure 14: a backend that dies in the middle of a stream fails the stream", () =>
    faulty((faults) =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const seen = yield* Deferred.make<void>()
        const rows = sql`SELECT n FROM generate_series(1, 100000) AS n`.stream.pipe(
          Stream.mapEffect((row) =>
            Effect.as(Effect.zipRight(Deferred.succeed(seen, undefined), Effect.yieldNow()), row)
          )
        )
        const fiber = yield* Effect.fork(failure(Stream.runDrain(rows)))
        yield* Deferred.await(seen)
        yield* faults.disconnect()
        assert.strictEqual((yield* Fiber.join(fiber))._tag, "Disconnected")
        assert.strictEqual(yield* active, 0)
      })
    )
  )

  it.scopedLive("failure 21: the end of idle connections fails no later statement", () =>
    faulty((faults) =>
      Effect.gen(function* () {
        const before = yield* pid
        yield* faults.disconnect()
        assert.notStrictEqual(yield* pid, before)
      })
    )
  )
})

describe("failures that a network causes", () => {
  const half = { statementTimeout: "5 seconds", detectionTime: "300 millis" } as const

  it.scopedLive("failure 16: a half-open socket is closed, and the next statement works", () =>
    faulty(
      (faults) =>
        Effect.gen(function* () {
          const before = yield* pid
          yield* faults.freeze({ statement: "INSERT" })
          const exit = yield* Effect.exit(Effect.timeout(insert("a"), 300))
          assert.isTrue(Exit.isFailure(exit))
          assert.notStrictEqual(yield* pid, before)
        }),
      half
    )
  )

  it.scopedLive("failure 17: a transaction on a half-open socket settles, without its connection", () =>
    faulty(
      (faults) =>
        Effect.gen(function* () {
          yield* faults.freeze({ statement: "pg_sleep" })
          const work = Db.withTransaction(Effect.zipRight(insert("a"), run("SELECT pg_sleep(0)")))
          assert.isTrue(Exit.isFailure(yield* Effect.exit(Effect.timeout(work, 300))))
          assert.deepStrictEqual([yield* active, yield* count], [0, 0])
        }),
      half
    )
  )

  it.scopedLive("failure 19: a LISTEN connection that dies listens again, and reports a gap", () =>
    faulty((faults) =>
      Effect.gen(function* () {
        const listening = yield* Deferred.make<void>()
        const fiber = yield* Db.listen("app").pipe(
          Stream.tap(({ _tag }) => (_tag === "Listening" ? Deferred.succeed(listening, undefined) : Effect.void)),
          Stream.takeUntil(({ _tag }) => _tag === "Gap"),
          Stream.runCollect,
          Effect.fork
        )
        yield* Deferred.await(listening)
        yield* faults.disconnect({ server: "writer" })
        const tags = Chunk.toReadonlyArray(yield* Fiber.join(fiber)).map(({ _tag }) => _tag)
        assert.deepStrictEqual(tags, ["Listening", "Gap"])
      })
    )
  )

  it.scopedLive("failure 22: a server that accepts and never answers is ConnectFailed, unresponsive", () =>
    faulty(
      (faults) =>
        Effect.gen(function* () {
          yield* faults.freeze({ server: "writer" })
          yield* Effect.ignore(Effect.timeout(insert("a"), 50))
          yield* faults.disconnect({ server: "writer" })
          const error = yield* failure(insert("b"))
          assert.deepStrictEqual(
            [error._tag, "reason" in error ? error.reason : undefined],
            ["ConnectFailed", "unresponsive"]
          )
        }),
      { connectTimeout: "1500 millis", acquireTimeout: "4 seconds" }
    )
  )
})

describe("failures of a pool", () => {
  it.scopedLive("failure 9: a caller of an exhausted pool leaves at its own timeout", () =>
    faulty(
      (faults) =>
        Effect.gen(function* () {
          yield* Effect.scoped(
            Effect.gen(function* () {
              yield* faults.exhaustPool({ server: "writer" })
              assert.isTrue(Exit.isFailure(yield* Effect.exit(Effect.timeout(Db.withTransaction(insert("a")), 100))))
            })
          )
          yield* insert("b")
          assert.strictEqual(yield* count, 1)
        }),
      { maxConnections: 2 }
    )
  )

  it.scopedLive("failures 12 and 13: interruptions with every connection in use lose no connection", () =>
    faulty(
      (faults) =>
        Effect.gen(function* () {
          const sql = yield* Db.writer
          const sleeping = yield* faults.delay("20 millis", { statement: "pg_sleep", times: 2 })
          const busy = yield* Effect.fork(
            Effect.all([run("SELECT pg_sleep(60)"), run("SELECT pg_sleep(60)")], { concurrency: 2 })
          )
          yield* sleeping.happened
          const waiting = yield* Effect.fork(
            Effect.all([Stream.runDrain(sql`SELECT 1`.stream), Effect.scoped(sql.reserve)], { concurrency: 2 })
          )
          yield* Effect.yieldNow()
          yield* Fiber.interrupt(waiting)
          yield* Fiber.interrupt(busy)
          yield* Effect.all([insert("a"), insert("b")], { concurrency: 2 })
          assert.deepStrictEqual([yield* count, yield* active], [2, 0])
        }),
      { maxConnections: 2 }
    )
  )
})
