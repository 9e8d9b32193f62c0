/** Tests on a real server: each in a transaction that is rolled back, around whatever the application commits. */
import { assert, layer } from "@effect/vitest"
import { Effect } from "effect"
import { DatabaseError, TestDatabase } from "effect-db"
import { DatabasesLive, Db } from "./databases.js"
import * as Todos from "./todos.js"

const milk = { title: "milk", done: false }

// The server is started once for the block, and each test is provided with a sandbox of its own. Without the test services the clock is
// the real one: under a TestClock no pause of a retry and no timeout ends.
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
      // nothing is there of the other test
      assert.deepStrictEqual(yield* Todos.list, [])
      const twice = Db.withTransaction(Effect.zipRight(Todos.add(milk), Todos.add(milk)))
      const error = yield* Effect.flip(DatabaseError.refine(twice))
      assert.strictEqual(error._tag, "UniqueViolation")
      assert.deepStrictEqual(yield* Todos.list, [])
    }).pipe(sandbox)
  )
})
