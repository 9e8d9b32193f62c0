/** Tests with promises, in sandboxes and on recorded databases. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { DatabaseRuntime, TestDatabase } from "effect-db"
import { both } from "../support/audit.js"
import { Audit, Db, insert } from "../support/databases.js"
import { fresh, rejectionOf } from "../support/freshRuntime.js"

const sandbox = TestDatabase.layer(Db)

describe("a test with promises", () => {
  it.scopedLive("its statements, units, transactions and effects run in the sandbox, and nothing is stored", () =>
    Effect.gen(function* () {
      const { db, runtime, stored } = yield* fresh({ lazy: true })
      const add = (name: string) => db.writer`INSERT INTO item (name) VALUES (${name})`
      const names = () => db.reader<{ name: string }>`SELECT name FROM item ORDER BY name`
      const test = async () => {
        await add("a")
        const later = await runtime.unitOfWork(async () => {
          await add("b")
          await db.independent(() => add("c"))
          await runtime.nested(() => add("e"))
          return { outside: runtime.outside(() => add("d")) }
        })
        await later.outside
        await db.withTransaction(() => add("f"))
        await runtime.unitOfWork(() => add("g").then(() => Promise.reject("no"))).catch(() => {})
        await runtime.runPromise(insert("h"))
        const handle = runtime.handler(async () => {
          await add("i")
          return new Response()
        })
        assert.strictEqual((await handle(new Request("http://localhost/"))).status, 200)
        return (await names()).map(({ name }) => name).join("")
      }
      assert.strictEqual(yield* Effect.promise(() => TestDatabase.runPromise(runtime, sandbox, test)), "abcdefhi")
      assert.deepStrictEqual(yield* stored, [])
      // a second test finds the tables unchanged, and outside of tests the database is the real one
      assert.strictEqual(yield* Effect.promise(() => TestDatabase.runPromise(runtime, sandbox, test)), "abcdefhi")
      yield* Effect.promise(() => add("stored").then(() => undefined))
      assert.deepStrictEqual(yield* stored, ["stored"])
    })
  )

  it.scopedLive("tests at the same time have sandboxes of their own, and do not see each other", () =>
    Effect.gen(function* () {
      const { db, runtime, stored } = yield* fresh({ lazy: true })
      const test = (amount: number) =>
        TestDatabase.runPromise(runtime, sandbox, async () => {
          await db.writer`INSERT INTO item (name, amount) VALUES (${`item ${amount}`}, ${amount})`
          return await db.reader`SELECT amount FROM item`
        })
      const found = yield* Effect.promise(() => Promise.all([test(1), test(2), test(3)]))
      assert.deepStrictEqual(found, [[{ amount: 1 }], [{ amount: 2 }], [{ amount: 3 }]])
      assert.deepStrictEqual(yield* stored, [])
    })
  )

  it.scopedLive("a test of two databases has a sandbox of each", () =>
    Effect.gen(function* () {
      const opened = DatabaseRuntime.make({ db: Db, audit: Audit }, both, { lazy: true })
      yield* Effect.addFinalizer(() => Effect.promise(() => opened.close()))
      const { audit, db } = opened.databases
      const layer = Layer.merge(sandbox, TestDatabase.layer(Audit))
      const events = () => audit.writer<{ what: string }>`SELECT what FROM event`
      const inside = yield* Effect.promise(() =>
        TestDatabase.runPromise(opened, layer, async () => {
          await opened.unitOfWork(async () => {
            await db.writer`INSERT INTO item (name) VALUES ('a')`
            await audit.writer`INSERT INTO event (what) VALUES ('a')`
          })
          return events()
        })
      )
      assert.deepStrictEqual([inside.length, (yield* Effect.promise(() => events().then((_) => _))).length], [1, 0])
    })
  )

  it.scopedLive("a test that throws rejects with its exception, and is rolled back", () =>
    Effect.gen(function* () {
      const { db, runtime, stored } = yield* fresh({ lazy: true })
      const reason = new Error("the assertion")
      const test = TestDatabase.runPromise(runtime, sandbox, async () => {
        await db.writer`INSERT INTO item (name) VALUES ('a')`
        throw reason
      })
      assert.strictEqual(yield* rejectionOf(test), reason)
      assert.deepStrictEqual(yield* stored, [])
    })
  )

  it.scopedLive("a test may run on a recorded sandbox", () =>
    Effect.gen(function* () {
      const { db, runtime } = yield* fresh({ lazy: true })
      const layer = Layer.provide(TestDatabase.layerRecorded(Db), sandbox)
      const ran = yield* Effect.promise(() =>
        TestDatabase.runPromise(runtime, layer, async () => {
          await runtime.unitOfWork(async () => {
            await db.writer`INSERT INTO item (name) VALUES ('a')`
            for await (const _ of db.writer`SELECT * FROM item`.stream()) break
          })
          return runtime.runPromise(TestDatabase.recording(Db))
        })
      )
      assert.deepStrictEqual(
        ran.statements.map(({ location, outcome }) => [outcome, location?.includes("testDatabase.test.ts")]),
        [
          ["committed", true],
          ["committed", true]
        ]
      )
      assert.strictEqual(ran.transactions.length, 1)
    })
  )
})
