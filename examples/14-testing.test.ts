/** Tests on a real server: each in a transaction that is rolled back, around whatever the application commits. */
import { assert, layer } from "@effect/vitest"
import { Effect } from "effect"
import { DatabaseError, TestDatabase } from "effect-db"
import { DatabasesLive, Db } from "./databases.js"
import * as Todos from "./todos.js"

const milk = { title: "milk", done: false }

// The server is started once for the block. What is provided to a test is a sandbox of its own.
layer(DatabasesLive, { timeout: "1 minute" })("todos", (it) => {
  const sandbox = Effect.provide(TestDatabase.layer(Db))

  it.effect("are stored in their order", () =>
    Effect.gen(function* () {
      yield* Todos.add(milk, { title: "eggs", done: true })
      const titles = (yield* Todos.list).map(({ title }) => title)
      assert.deepStrictEqual(titles, ["milk", "eggs"])
    }).pipe(sandbox)
  )

  it.effect("have no title twice, and a transaction that fails leaves nothing", () =>
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
