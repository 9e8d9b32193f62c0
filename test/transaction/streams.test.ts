/** Streams in and outside of transactions. */
import { assert, it } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { DatabaseError } from "effect-db"
import { describe } from "vitest"
import { active, Db, fresh, insert, stored } from "../support/databases.js"

describe("Transaction", () => {
  describe("streams in and outside of transactions", () => {
    it.scopedLive("streams hold a portal while other statements of the transaction run in between", () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const seen = yield* Db.withTransaction(
          sql<{ n: number }>`SELECT n FROM generate_series(1, 1000) AS n`.stream.pipe(
            Stream.mapEffect(({ n }) => (n % 100 === 0 ? Effect.as(insert(`row ${n}`), n) : Effect.succeed(n))),
            Stream.runCollect
          )
        )
        assert.deepStrictEqual(
          Chunk.toReadonlyArray(seen),
          Array.from({ length: 1000 }, (_, i) => i + 1)
        )
        assert.strictEqual((yield* stored).length, 10)
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("streams outside of a transaction have one of their own, which ends with them however they end", () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const numbers = sql<{ n: number }>`SELECT n FROM generate_series(1, 1000) AS n`.stream
        assert.strictEqual(yield* Stream.runCount(numbers), 1000)
        assert.strictEqual(yield* numbers.pipe(Stream.take(10), Stream.runCount), 10)
        assert.strictEqual(yield* active, 0)
        const inserted = sql`INSERT INTO item (name) SELECT 'n' || n FROM generate_series(1, 300) AS n RETURNING name`
          .stream
        yield* inserted.pipe(Stream.take(5), Stream.runDrain)
        assert.strictEqual((yield* stored).length, 300)
        yield* Effect.ignore(
          inserted.pipe(
            Stream.mapEffect(() => Effect.fail("no")),
            Stream.runDrain
          )
        )
        const failing = yield* sql`SELECT 1 / (500 - n) FROM generate_series(1, 1000) AS n`.stream.pipe(
          Stream.runDrain,
          DatabaseError.refine,
          Effect.flip
        )
        assert.strictEqual(failing._tag, "InvalidInput")
        assert.strictEqual(yield* active, 0)
        assert.strictEqual((yield* stored).length, 300)
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("streams of a reader run on the replica, or are kept read-only inside a writing transaction", () =>
      Effect.gen(function* () {
        const reader = yield* Db.reader
        const [row] = yield* reader<{ yes: boolean }>`SELECT pg_is_in_recovery() AS yes`.stream.pipe(
          Stream.runCollect,
          Effect.map(Chunk.toReadonlyArray)
        )
        assert.strictEqual(row?.yes, true)
        const error = yield* Db.withTransaction(
          Effect.gen(function* () {
            yield* insert("written")
            assert.strictEqual(yield* Stream.runCount(reader`SELECT * FROM item`.stream), 1)
            const refused = yield* reader`INSERT INTO item (name) VALUES ('no') RETURNING id`.stream.pipe(
              Stream.runDrain,
              DatabaseError.refine,
              Effect.flip
            )
            yield* insert("goes on")
            return refused
          })
        )
        assert.strictEqual(error._tag, "ReadOnlyViolation")
        assert.deepStrictEqual(yield* stored, ["goes on", "written"])
      }).pipe(Effect.provide(fresh()))
    )
  })
})
