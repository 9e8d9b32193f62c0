/** `SqlPersistedQueue` of `@effect/sql`, unchanged, on `Db.layerSqlClient`. */
import * as PersistedQueue from "@effect/experimental/PersistedQueue"
import * as SqlPersistedQueue from "@effect/sql/SqlPersistedQueue"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { UnitOfWork } from "effect-db"
import { Db, fresh, insert, Place, stored } from "../support/databases.js"
import { query, terminateBackends } from "../support/server.js"

const Job = Schema.Struct({ n: Schema.Number, words: Schema.Array(Schema.String) })

const job = (n: number): typeof Job.Type => ({ n, words: ["it's", 'a "word"', "\\"] })

/** The queue of one process: an element that it has taken is not given to another process. */
const worker = PersistedQueue.layer.pipe(
  Layer.provide(SqlPersistedQueue.layerStore({ pollInterval: "5 millis" })),
  Layer.provide(Db.layerSqlClient)
)

const jobs = PersistedQueue.make({ name: "jobs", schema: Job })

const open = () => Layer.provideMerge(worker, fresh({ readers: [] }))

const rows = Effect.flatMap(Place, ({ writer }) =>
  query<{ id: string; completed: boolean; attempts: number; held: boolean }>(
    writer,
    "SELECT id, completed, attempts, acquired_by IS NOT NULL AS held FROM effect_queue ORDER BY sequence"
  )
)

const no = Effect.fail("no")

describe("SqlPersistedQueue", () => {
  it.scopedLive("a queue gives each element to one taker, in order, and marks it as completed", () =>
    Effect.gen(function* () {
      const queue = yield* jobs
      for (const n of [1, 2, 3]) yield* queue.offer(job(n), { id: `id ${n}` })
      const taken = yield* Effect.replicateEffect(
        queue.take((value, { attempts, id }) => Effect.succeed([value, id, attempts] as const)),
        3
      )
      assert.deepStrictEqual(
        taken,
        [1, 2, 3].map((n) => [job(n), `id ${n}`, 0] as const)
      )
      assert.deepStrictEqual(
        yield* rows,
        [1, 2, 3].map((n) => ({ id: `id ${n}`, completed: true, attempts: 1, held: false }))
      )
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("an element that is offered twice under one id is stored once", () =>
    Effect.gen(function* () {
      const queue = yield* jobs
      yield* Effect.forEach([1, 2, 3, 4], () => queue.offer(job(1), { id: "same" }), { concurrency: "unbounded" })
      assert.lengthOf(yield* rows, 1)
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("two workers share the elements of a queue: none is taken twice, and none is left", () =>
    Effect.gen(function* () {
      const all = Array.from({ length: 40 }, (_, n) => n)
      const queue = yield* jobs
      for (const n of all) yield* queue.offer(job(n))
      const seen: Array<number> = []
      const work = Effect.flatMap(jobs, (own) =>
        Effect.replicateEffect(
          own.take(({ n }) => Effect.sync(() => void seen.push(n))),
          all.length / 2,
          { concurrency: 5 }
        )
      )
      const other = Effect.provide(work, Layer.fresh(worker))
      yield* Effect.all([work, other], { concurrency: "unbounded" })
      assert.deepStrictEqual(
        seen.sort((a, b) => a - b),
        all
      )
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("a failed element is retried, and an interrupted one is returned without counting an attempt", () =>
    Effect.gen(function* () {
      const queue = yield* jobs
      yield* queue.offer(job(1), { id: "1" })
      assert.deepStrictEqual(yield* Effect.exit(queue.take(() => no)), Exit.fail("no"))
      assert.deepStrictEqual(yield* rows, [{ id: "1", completed: false, attempts: 1, held: false }])
      const taken = yield* Deferred.make<void>()
      const fiber = yield* Effect.fork(
        queue.take(() => Effect.zipRight(Deferred.succeed(taken, undefined), Effect.never))
      )
      yield* Deferred.await(taken)
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(yield* rows, [{ id: "1", completed: false, attempts: 1, held: false }])
      assert.strictEqual(yield* queue.take((_, { attempts }) => Effect.succeed(attempts)), 1)
      assert.deepStrictEqual(yield* rows, [{ id: "1", completed: true, attempts: 2, held: false }])
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("an offer joins the unit of work around it: it is stored with its rows or not at all", () =>
    Effect.gen(function* () {
      const queue = yield* jobs
      const both = (n: number) => Effect.zipRight(insert(`row ${n}`), queue.offer(job(n), { id: `${n}` }))
      yield* UnitOfWork.run(both(1))
      yield* Effect.exit(UnitOfWork.run(Effect.zipRight(both(2), no)))
      yield* Effect.exit(Db.withTransaction(Effect.zipRight(both(3), no)))
      yield* Db.withTransaction(both(4))
      assert.deepStrictEqual(yield* stored, ["row 1", "row 4"])
      assert.deepStrictEqual(
        (yield* rows).map(({ id }) => id),
        ["1", "4"]
      )
      // a waiting taker receives an element after its COMMIT
      const waiting = yield* Effect.fork(
        Effect.replicateEffect(
          queue.take(({ n }) => Effect.succeed(n)),
          3
        )
      )
      yield* UnitOfWork.run(both(5))
      assert.deepStrictEqual(yield* Fiber.join(waiting), [1, 4, 5])
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("a taker survives the loss of every connection", () =>
    Effect.gen(function* () {
      const queue = yield* jobs
      const { name } = yield* Place
      const waiting = yield* Effect.fork(queue.take(({ n }) => Effect.succeed(n)))
      yield* terminateBackends(name)
      yield* queue.offer(job(7)).pipe(Effect.retry({ times: 3 }))
      assert.strictEqual(yield* Fiber.join(waiting), 7)
    }).pipe(Effect.provide(open()))
  )
})
