/**
 * Streams that end during a fetch, before their last row: their work is kept or undone, without a
 * failure and without a line in the log.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { describe } from "vitest"
import { active, Db, freshTable, insert, Place, stored } from "../support/databases.js"
import { type Message, makeProxy } from "../support/proxy.js"
import { query } from "../support/server.js"

/** Matches a fetch of a stream's portal. */
const fetches = ({ bytes, from, type }: Message) =>
  // the number in the name of a portal counts the portals of its connection, so any number matches
  from === "client" && type === "E" && /p\d+\0/.test(bytes.toString("latin1"))

/** The number of rows that the first two fetches store. */
const two = 256

/**
 * Opens a database behind a proxy, and makes a stream that stores an item for each of its rows. Its
 * second fetch takes the given time.
 */
const given = (seconds: number) =>
  Effect.gen(function* () {
    const place = yield* freshTable
    yield* query(
      place.writer,
      `CREATE FUNCTION keep(n int) RETURNS text LANGUAGE sql AS
       'INSERT INTO item (name) VALUES (''n'' || n) RETURNING name'`
    )
    const proxy = yield* makeProxy(place.writer)
    const said: Array<string> = []
    const logger = Logger.make(({ logLevel, message }) => void said.push(`${logLevel.label}: ${String(message)}`))
    const context = yield* Layer.build(Layer.merge(Db.layer({ writer: proxy.url }), Layer.succeed(Place, place)))
    const sql = yield* Effect.provide(Db.writer, context)
    const rows = sql<{ name: string }>`SELECT keep(n) AS name, CASE n WHEN 200 THEN pg_sleep(${seconds}) END
      FROM generate_series(1, 1000) AS n`.stream
    /** Registers for the second fetch; the effect that it returns waits until that is sent. */
    const second = Effect.zipRight(proxy.when(fetches, "pass"), proxy.when(fetches, "pass"))
    const watched = <A, E>(self: Effect.Effect<A, E, Db | Place>) =>
      self.pipe(
        Effect.provide(context),
        Effect.provide(Logger.replace(Logger.defaultLogger, logger)),
        Logger.withMinimumLogLevel(LogLevel.Info)
      )
    return { proxy, rows, said, watched, second }
  })

describe("a stream outside of a transaction that ends in the middle of a fetch", () => {
  it.scopedLive("a stream outside of a transaction whose consumer stops during a fetch keeps that fetch's writes", () =>
    Effect.gen(function* () {
      const { rows, said, second, watched } = yield* given(0.1)
      yield* Effect.gen(function* () {
        const fetching = yield* second
        yield* Stream.runDrain(Stream.interruptWhen(rows, fetching))
        assert.lengthOf(yield* stored, two)
        assert.strictEqual(yield* active, 0)
      }).pipe(watched)
      assert.deepStrictEqual(said, [])
    })
  )

  it.scopedLive(
    "a stream outside of a transaction whose fetch does not end soon is rolled back within a second, without a failure",
    () =>
      Effect.gen(function* () {
        const { rows, said, second, watched } = yield* given(60)
        yield* Effect.gen(function* () {
          const fetching = yield* second
          const fiber = yield* Effect.fork(Stream.runDrain(Stream.interruptWhen(rows, fetching)))
          yield* fetching
          yield* Effect.timeout(Fiber.join(fiber), "1 second")
          assert.deepStrictEqual(yield* stored, [])
          assert.strictEqual(yield* active, 0)
        }).pipe(watched)
        assert.deepStrictEqual(said, [])
      })
  )

  it.scopedLive("a stream outside of a transaction that is interrupted, or read ahead, is rolled back silently", () =>
    Effect.gen(function* () {
      const { proxy, rows, said, second, watched } = yield* given(60)
      yield* Effect.gen(function* () {
        const fetching = yield* second
        const fiber = yield* Effect.fork(Stream.runDrain(rows))
        yield* fetching
        yield* Fiber.interrupt(fiber)
        assert.deepStrictEqual(yield* stored, [])

        yield* proxy.forget
        const ahead = yield* second
        const enough = rows.pipe(
          Stream.buffer({ capacity: 1000 }),
          Stream.tap(() => ahead),
          Stream.take(1)
        )
        yield* Effect.timeout(Stream.runDrain(enough), "1 second")
        assert.deepStrictEqual(yield* stored, [])
        assert.strictEqual(yield* active, 0)
      }).pipe(watched)
      assert.deepStrictEqual(said, [])
    })
  )
})

describe("a stream in a transaction that ends in the middle of a fetch", () => {
  it.scopedLive("a stream in a transaction whose consumer stops during a fetch leaves the transaction usable", () =>
    Effect.gen(function* () {
      const { rows, said, second, watched } = yield* given(0.1)
      yield* Effect.gen(function* () {
        const fetching = yield* second
        yield* Db.withTransaction(
          Effect.zipRight(Stream.runDrain(Stream.interruptWhen(rows, fetching)), insert("goes on"))
        )
        assert.lengthOf(yield* stored, two + 1)
      }).pipe(watched)
      assert.deepStrictEqual(said, [])
    })
  )
})

describe("a stream that is pulled by hand", () => {
  it.scopedLive("a pull that is interrupted during a fetch leaves its rows to the next pull", () =>
    Effect.gen(function* () {
      const { rows, second, watched } = yield* given(0.1)
      yield* Effect.scoped(
        Effect.gen(function* () {
          const fetching = yield* second
          const pull = yield* Stream.toPull(rows)
          const first = yield* pull
          const fiber = yield* Effect.fork(pull)
          yield* fetching
          yield* Fiber.interrupt(fiber)
          const next = yield* pull
          assert.deepStrictEqual(
            [...first, ...next].map(({ name }) => name),
            Array.from({ length: two }, (_, i) => `n${i + 1}`)
          )
        }).pipe(Effect.mapError(Option.getOrThrow))
      ).pipe(watched)
    })
  )
})
