/** Tests with real commits: each has a database of its own, for what a sandbox does not show, such as deferred constraints. */
import { assert, layer } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { DatabaseError, EmbeddedPostgres } from "effect-db"
import { Db } from "./databases.js"
import * as Todos from "./todos.js"

const createTables = Effect.gen(function* () {
  const sql = yield* Db.writer
  yield* sql`
    CREATE TABLE todo (
      id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
      title text NOT NULL UNIQUE DEFERRABLE INITIALLY DEFERRED,
      done boolean NOT NULL DEFAULT false
    )`
})

let count = 0

/** A new database on the server of the block, with its tables. */
const Fresh = Layer.unwrapScoped(
  Effect.gen(function* () {
    const server = yield* EmbeddedPostgres.EmbeddedPostgres
    const name = `todos_${++count}`
    yield* Effect.acquireRelease(server.createDatabase(name), () => Effect.orDie(server.dropDatabase(name)))
    return Layer.provideMerge(Layer.effectDiscard(createTables), Db.layer(server.settings(name)))
  })
)

// the server is started once for the block
layer(EmbeddedPostgres.EmbeddedPostgres.layer(), { timeout: "1 minute", excludeTestServices: true })(
  "the todos",
  (it) => {
    const fresh = Effect.provide(Fresh)

    it.effect("a title that is there already is refused at COMMIT", () =>
      Effect.gen(function* () {
        const milk = { title: "milk", done: false }
        yield* Todos.add(milk)
        const error = yield* Effect.flip(DatabaseError.refine(Db.withTransaction(Todos.add(milk))))
        assert.strictEqual(error._tag, "CommitFailed")
        assert.strictEqual((yield* Todos.list).length, 1)
      }).pipe(fresh)
    )

    it.effect("the rows of other tests are in other databases", () =>
      Effect.map(Todos.list, (found) => assert.deepStrictEqual(found, [])).pipe(fresh)
    )
  }
)
