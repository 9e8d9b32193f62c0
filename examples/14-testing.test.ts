/** Tests on a real server: each runs in a transaction that is rolled back, with the transactions of the application inside. */
import { assert, layer } from "@effect/vitest"
import { Effect } from "effect"
import { DatabaseError, TestDatabase } from "effect-db"
import { DatabasesLive, Db } from "./databases.js"
import * as Todos from "./todos.js"

const milk = { title: "milk", done: false }

// The server is started once for the block, and each test has a sandbox of its own. Without the test services the clock is real: with a
// TestClock, pauses of retries and timeouts would never end.
layer(DatabasesLive, { timeout: "1 minute", excludeTestServices: true })("the todos", (it) => {
  const sandbox = Effect.provide(TestDatabase.layer(Db))

  it.effect("todos are stored in their order", () =>
    Effect.gen(function* () {
      yield* Todos.add(milk, { title: "eggs", done: true })
      const titles = (yield* Todos.list).map(({ title }) => title)
      assert.deepStrictEqual(titles, ["milk", "eggs"])
    }).pipe(sandbox)
  )

  it.effect("a title is refused the second time, and a transaction that fails stores nothing", () =>
    Effect.gen(function* () {
      // the rows of the other test are rolled back
      assert.deepStrictEqual(yield* Todos.list, [])
      const twice = Db.withTransaction(Effect.zipRight(Todos.add(milk), Todos.add(milk)))
      const error = yield* Effect.flip(DatabaseError.refine(twice))
      assert.strictEqual(error._tag, "UniqueViolation")
      assert.deepStrictEqual(yield* Todos.list, [])
    }).pipe(sandbox)
  )
})
