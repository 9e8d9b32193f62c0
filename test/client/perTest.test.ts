import { assert, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { TestDatabase } from "effect-db"
import { describe } from "vitest"
import { audit, event, events } from "../support/audit.js"
import { Audit, Db, fresh, insert, stored } from "../support/databases.js"

const names = Effect.flatMap(Db.reader, (sql) =>
  Effect.map(sql<{ name: string }>`SELECT name FROM item ORDER BY name`, (rows) => rows.map(({ name }) => name))
)

/** Inserts a row, which must be the only one. */
const insertOnly = Effect.zipRight(
  insert("only"),
  Effect.map(names, (found) => assert.deepStrictEqual(found, ["only"]))
)

describe("a layer for each test of a group", () => {
  layer(fresh(), { excludeTestServices: true })("sandboxes", (group) => {
    const each = TestDatabase.perTest(group, TestDatabase.layer(Db))

    each.effect("the first test finds the tables unchanged", () => insertOnly)
    each.effect("the second test finds the tables unchanged", () => insertOnly)
    each.effect.each([1, 2])("a test of several cases has a sandbox for each case", () => insertOnly)
    each.effect.skipIf(false)("a test by condition has a sandbox", () => insertOnly)
    // the subject is `fails` itself
    each.effect.fails("a test that fails has a sandbox", () => Effect.zipRight(insertOnly, Effect.fail("expected")))
    each.scoped("the scope of a test is closed before its sandbox", () =>
      Effect.acquireRelease(insertOnly, () =>
        Effect.orDie(Effect.map(names, (found) => assert.deepStrictEqual(found, ["only"])))
      )
    )
    each("a plain test is unchanged", () => assert.isFunction(each.flakyTest))
    group.effect("nothing of the tests is stored", () =>
      Effect.map(stored, (found) => assert.deepStrictEqual(found, []))
    )
  })

  layer(Layer.merge(fresh(), audit), { excludeTestServices: true })("two databases", (group) => {
    const each = TestDatabase.perTest(group, Layer.merge(TestDatabase.layer(Db), TestDatabase.layer(Audit)))

    each.effect.each([1, 2])("a test has a sandbox of each database", () =>
      Effect.gen(function* () {
        yield* Effect.all([insertOnly, event("only")])
        assert.deepStrictEqual(yield* events, ["only"])
      })
    )
  })

  // @ts-expect-error the group does not provide the database
  assert.isFunction(TestDatabase.perTest(it, TestDatabase.layer(Db)))
})
