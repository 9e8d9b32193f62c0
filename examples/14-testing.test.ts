/** Tests on a real server: each runs in a transaction that is rolled back, with the transactions of the application inside. */
import { assert, layer } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { DatabaseError, TestDatabase } from "effect-db"
import { DatabasesLive, Db } from "./databases.js"
import * as Todos from "./todos.js"

const milk = { title: "milk", done: false }

// a sandbox, whose statements are recorded, and whose rows have an order only if a statement has an ORDER BY
const Sandbox = TestDatabase.layerRecorded(Db).pipe(
  Layer.provide(TestDatabase.layerShuffled(Db)),
  Layer.provide(TestDatabase.layer(Db))
)

// The server is started once for the block, and each test has a sandbox of its own. Without the test services the clock is real: with a
// TestClock, pauses of retries and timeouts would never end.
layer(DatabasesLive, { timeout: "1 minute", excludeTestServices: true })("the todos", (group) => {
  const it = TestDatabase.perTest(group, Sandbox)

  it.effect("todos are stored in their order", () =>
    Effect.gen(function* () {
      yield* Todos.add(milk, { title: "eggs", done: true })
      const titles = (yield* Todos.list).map(({ title }) => title)
      assert.deepStrictEqual(titles, ["milk", "eggs"])
    })
  )

  it.effect("a title is refused the second time, and a transaction that fails stores nothing", () =>
    Effect.gen(function* () {
      // the rows of the other test are rolled back
      assert.deepStrictEqual(yield* Todos.list, [])
      const twice = Db.withTransaction(Effect.zipRight(Todos.add(milk), Todos.add(milk)))
      const error = yield* Effect.flip(DatabaseError.refine(twice))
      assert.strictEqual(error._tag, "UniqueViolation")
      assert.deepStrictEqual(yield* Todos.list, [])
      const { statements, transactions } = yield* TestDatabase.recording(Db)
      assert.deepStrictEqual([statements.length, transactions[0]?.outcome], [4, "rolledBack"])
    })
  )

  it.effect("a hundred todos are one statement", () =>
    Todos.add(...Array.from({ length: 100 }, (_, n) => ({ title: `todo ${n}`, done: false }))).pipe(
      TestDatabase.expectAtMost(Db, { statements: 1, roundTrips: 1 }),
      TestDatabase.expectNoNPlusOne(Db)
    )
  )
})
