/**
 * Two database classes with the same name. They have the same tag, so in one context the statements
 * of one class could run in the database of the other.
 */
import { inspect } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import { Database, DatabaseError, DatabaseRuntime, TestDatabase } from "effect-db"
import { describe } from "vitest"
import { freshDatabase } from "../support/server.js"

class A extends Database.Service<A>()("twins") {}
class B extends Database.Service<B>()("twins") {}
class Other extends Database.Service<Other>()("other") {}

/** Returns the name of the database in which the statements of a class run. */
const home = (of: typeof A | typeof B) =>
  Effect.flatMap(of.writer as typeof A.writer, (sql) =>
    Effect.map(sql<{ name: string }>`SELECT current_database() AS name`, ([row]) => row?.name)
  )

const given = Effect.all([freshDatabase, freshDatabase])

/** Asserts that the error is a `ConfigInvalid` for two classes with the name of the database. */
const isRefused = (error: unknown) => {
  assert.isTrue(DatabaseError.isDatabaseError(error) && error._tag === "ConfigInvalid", inspect(error))
  assert.include(String(error), 'database "twins"')
  assert.include(String(error), "two classes")
}

describe("two classes with the same name", () => {
  it.scopedLive("two classes with the same name are refused when they are built together, in either order", () =>
    Effect.gen(function* () {
      const [one, two] = yield* given
      const a = A.layer({ writer: one.writer })
      const b = B.layer({ writer: two.writer })
      const other = Other.layer({ writer: one.writer })
      for (const layers of [
        Layer.merge(a, b),
        Layer.merge(b, a),
        Layer.mergeAll(other, Layer.provideMerge(b, other), a)
      ]) {
        isRefused(yield* Effect.flip(Effect.scoped(Layer.build(layers))))
      }
      // each of them can be opened alone afterwards
      assert.strictEqual(yield* Effect.provide(home(B), b), two.name)
      assert.strictEqual(yield* Effect.provide(home(A), a), one.name)
    })
  )

  it.scopedLive("two classes with the same name are refused when one is built inside the other", () =>
    Effect.gen(function* () {
      const [one, two] = yield* given
      const inner = Effect.provide(home(A), A.layer({ writer: one.writer }))
      isRefused(yield* Effect.flip(Effect.provide(inner, B.layer({ writer: two.writer }))))
      const above = Layer.provide(A.layer({ writer: one.writer }), B.layer({ writer: two.writer }))
      isRefused(yield* Effect.flip(Effect.scoped(Layer.build(above))))
    })
  )

  it.scopedLive("two classes with the same name are refused by a runtime for plain code", () =>
    Effect.gen(function* () {
      const [one, two] = yield* given
      const layers = Layer.merge(A.layer({ writer: one.writer }), B.layer({ writer: two.writer }))
      const runtime = DatabaseRuntime.make({ a: A, b: B }, layers)
      isRefused(yield* Effect.flip(Effect.tryPromise({ try: () => runtime.open(), catch: (error) => error })))
    })
  )

  it.scopedLive("two classes with the same name in a context made by hand run nothing in the wrong database", () =>
    Effect.gen(function* () {
      const [one, two] = yield* given
      const a = yield* Layer.build(A.layer({ writer: one.writer }))
      const b = yield* Layer.build(B.layer({ writer: two.writer }))
      for (const [both, wrong, right, name] of [
        [Context.merge(a, b), A, B, two.name],
        [Context.merge(b, a), B, A, one.name]
      ] as const) {
        const exit = yield* Effect.exit(Effect.provide(home(wrong), both))
        isRefused(Exit.isFailure(exit) ? Cause.squash(exit.cause) : exit)
        const begun = Effect.provide((wrong as typeof A).withTransaction(Effect.void), both)
        isRefused(Cause.squash(yield* Effect.flip(Effect.sandbox(begun))))
        assert.strictEqual(yield* Effect.provide(home(right), both), name)
      }
    })
  )

  it.scopedLive("two classes with the same name that are provided apart are two databases, also in two runtimes", () =>
    Effect.gen(function* () {
      const [one, two] = yield* given
      const apart = [
        Effect.provide(home(A), A.layer({ writer: one.writer })),
        Effect.provide(home(B), B.layer({ writer: two.writer })),
        Effect.provide(Effect.provide(home(B), TestDatabase.layer(B)), Layer.fresh(B.layer({ writer: two.writer })))
      ]
      assert.deepStrictEqual(yield* Effect.all(apart, { concurrency: "unbounded" }), [one.name, two.name, two.name])
      const runtimes = [
        DatabaseRuntime.make({ db: A }, A.layer({ writer: one.writer })),
        DatabaseRuntime.make({ db: B }, B.layer({ writer: two.writer }))
      ]
      yield* Effect.promise(() => Promise.all(runtimes.map((runtime) => runtime.open())))
      const names = yield* Effect.promise(() =>
        Promise.all(
          runtimes.map(async ({ databases }) => {
            const [row] = await databases.db.writer<{ name: string }>`SELECT current_database() AS name`
            return row?.name
          })
        )
      )
      assert.deepStrictEqual(names, [one.name, two.name])
      yield* Effect.promise(() => Promise.all(runtimes.map((runtime) => runtime.close())))
    })
  )

  it.scopedLive("a class that is loaded anew under the same name is the same database in a shared runtime", () =>
    Effect.gen(function* () {
      const [one] = yield* given
      /** Makes the class and its runtime again, as the reload of a module does. */
      const load = () => {
        class Db extends Database.Service<Db>()("reloaded") {}
        const runtime = DatabaseRuntime.shared(`names ${one.name}`, () =>
          DatabaseRuntime.make({ db: Db }, Db.layer({ writer: one.writer }), { lazy: true })
        )
        return { name: () => runtime.runPromise(home(Db as unknown as typeof A) as Effect.Effect<string>), runtime }
      }
      const first = load()
      const second = load()
      assert.strictEqual(yield* Effect.promise(first.name), one.name)
      assert.strictEqual(yield* Effect.promise(second.name), one.name)
      yield* Effect.promise(() => second.runtime.open())
      yield* Effect.promise(() => second.runtime.close())
    })
  )
})
