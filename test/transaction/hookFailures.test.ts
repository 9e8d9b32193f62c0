/** Hooks that fail or interrupt themselves, and the reports of them. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { describe } from "vitest"
import { Db, fresh, insert, stored } from "../support/databases.js"

/** Runs an effect, and returns the kinds of the hooks that are reported as failed. */
const failedHooks = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const kinds: Array<string> = []
    const { observers } = yield* Db
    observers.add((observation) => {
      if (observation._tag === "HookFailed") kinds.push(observation.hook)
    })
    yield* self
    return kinds
  })

const logging = () => {
  const log: Array<string> = []
  return { log, note: (text: string) => Effect.sync(() => void log.push(text)) }
}

describe("hooks that fail", () => {
  it.scopedLive("hooks that interrupt themselves are reported, the others run, and the COMMIT stays a success", () =>
    Effect.gen(function* () {
      const { log, note } = logging()
      const kinds = yield* failedHooks(
        Db.withTransaction(
          Effect.all([
            insert("kept"),
            Db.afterCommit(Effect.interrupt),
            Db.afterCommit(Effect.interrupt),
            Db.afterCommit(note("third"))
          ])
        )
      )
      assert.deepStrictEqual(kinds, ["afterCommit", "afterCommit"])
      assert.deepStrictEqual(log, ["third"])
      assert.deepStrictEqual(yield* stored, ["kept"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a rollback hook that interrupts itself stops no other, and does not hide the failure", () =>
    Effect.gen(function* () {
      const { log, note } = logging()
      const hooks = [Db.afterRollback(Effect.interrupt), Db.afterRollback(note("undone"))]
      const failed = yield* Effect.flip(
        Db.withTransaction(Effect.all([insert("gone"), ...hooks, Effect.fail("the failure")]))
      )
      assert.strictEqual(failed, "the failure")
      const interrupted = yield* Effect.exit(
        Db.withTransaction(Effect.all([insert("gone"), ...hooks, Effect.interrupt]))
      )
      assert.isTrue(Exit.isInterrupted(interrupted))
      assert.deepStrictEqual(log, ["undone", "undone"])
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a beforeCommit hook that fails outside of a transaction is reported as beforeCommit", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(
        yield* failedHooks(Effect.zipRight(insert("before"), Db.beforeCommit(Effect.fail("too late")))),
        ["beforeCommit"]
      )
    }).pipe(Effect.provide(fresh()))
  )
})
