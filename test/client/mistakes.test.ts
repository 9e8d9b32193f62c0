/**
 * Mistakes of programs: each is seen in the mode of a test database that promises it, and the guide on
 * testing lists them.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { Database, DatabaseError, TestDatabase } from "effect-db"
import { describe } from "vitest"
import { Db, fresh, insert, Place, run } from "../support/databases.js"

const failure = <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.flip(DatabaseError.refine(self))

const migrate = Effect.zipRight(
  run("CREATE TABLE parent (id int PRIMARY KEY)"),
  run("CREATE TABLE child (parent int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
)

const template = TestDatabase.layerTemplate(Db, { migrate })
const sandbox = Layer.provideMerge(Layer.effectDiscard(migrate), TestDatabase.layer(Db))

const inMode = <A, E, E2>(mode: Layer.Layer<Db, E2, Db>, test: Effect.Effect<A, E, Db | Place>) =>
  Effect.provide(Effect.provide(test, mode), fresh())

describe("mistakes that a test must see", () => {
  it.scopedLive("a row without its parent is seen in a sandbox and in a copy of a template", () =>
    Effect.gen(function* () {
      const mistake = failure(Db.withTransaction(run("INSERT INTO child VALUES (1)")))
      assert.strictEqual((yield* inMode(sandbox, mistake))._tag, "CommitFailed")
      assert.strictEqual((yield* inMode(template, mistake))._tag, "CommitFailed")
    })
  )

  it.scopedLive("a hook that fails after a real commit is seen in a copy of a template alone", () =>
    Effect.gen(function* () {
      class Worker extends Database.Service<Worker>()("worker") {}
      /** The worker that the hook starts has a connection of its own, and fails for each row. */
      const failures = Effect.gen(function* () {
        const sql = yield* Db.writer
        const [row] = yield* sql<{ name: string }>`SELECT current_database() AS name`
        const { writer } = yield* Place
        const live = Worker.layer({ writer: { url: writer, database: row?.name ?? "" } })
        // 1 / 0 for the row of this test
        const work = Effect.flatMap(Worker.writer, (other) => other`SELECT 1 / (length(name) - 1) FROM item`)
        let isFailed = false
        const hook = Effect.onError(Effect.provide(work, live), () =>
          Effect.sync(() => {
            isFailed = true
          })
        )
        yield* Db.withTransaction(Effect.zipRight(insert("a"), Db.afterCommit(hook)))
        return isFailed
      })
      assert.isFalse(yield* inMode(TestDatabase.layer(Db), failures))
      const copy = TestDatabase.layerTemplate(Db, { migrate: run("CREATE TABLE item (name text)") })
      assert.isTrue(yield* inMode(copy, failures))
    })
  )

  it.scopedLive("a missing ORDER BY is seen in another order of rows", () =>
    Effect.gen(function* () {
      const first = Effect.gen(function* () {
        yield* Effect.forEach(["a", "b"], insert)
        const sql = yield* Db.reader
        const [row] = yield* sql<{ name: string }>`SELECT name FROM item`
        return row?.name
      })
      assert.strictEqual(yield* inMode(TestDatabase.layer(Db), first), "a")
      const shuffled = Layer.provide(TestDatabase.layerShuffled(Db), TestDatabase.layer(Db))
      assert.strictEqual(yield* inMode(shuffled, first), "b")
    })
  )

  it.scopedLive(
    "a transaction that is still open at the end of a test fails, and leaves nothing for the next one",
    () =>
      Effect.gen(function* () {
        const names = Effect.flatMap(Db.reader, (sql) => sql`SELECT name FROM item`)
        const test = Effect.provide(
          Effect.forkDaemon(Db.withTransaction(Effect.zipRight(insert("leaked"), Effect.never))),
          TestDatabase.layer(Db)
        )
        const left = yield* test
        assert.deepStrictEqual(yield* Effect.provide(names, TestDatabase.layer(Db)), [])
        yield* Fiber.interrupt(left)
        assert.deepStrictEqual(yield* names, [])
      }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("N+1 queries are seen in a recording", () =>
    Effect.gen(function* () {
      const each = Effect.forEach([1, 2, 3, 4, 5, 6], (n) =>
        Effect.flatMap(Db.reader, (sql) => sql`SELECT name FROM item WHERE amount = ${n}`)
      )
      const error = yield* Effect.flip(TestDatabase.expectNoNPlusOne(each, Db))
      assert.strictEqual("_tag" in error && error._tag, "NPlusOne")
    }).pipe(
      Effect.provide(TestDatabase.layerRecorded(Db)),
      Effect.provide(TestDatabase.layer(Db)),
      Effect.provide(fresh())
    )
  )
})
