/** The proofs of COMMITs whose answers were lost, while the pool is paused or busy. */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { type Database, DatabaseError } from "effect-db"
import { Db, idle, run } from "../support/databases.js"
import { answers, type Message, makeProxy, sends } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"
import { settled } from "../support/suites/pooling/observations.js"

const given = (options: Partial<Database.Options> = {}) =>
  Effect.gen(function* () {
    const { writer } = yield* freshDatabase
    yield* query(writer, "CREATE TABLE item (name text)")
    const proxy = yield* makeProxy(writer)
    const scope = yield* Scope.make()
    yield* Effect.addFinalizer((exit) => Scope.close(scope, exit))
    const layer = Db.layer({ writer: proxy.url, resolveWithin: "20 seconds", acquireTimeout: "20 seconds", ...options })
    const context = Context.pick(Db)(yield* Layer.buildWithScope(layer, scope))
    const stored = Effect.map(query(writer, "SELECT name FROM item ORDER BY name"), (rows) =>
      rows.map((row) => row.name)
    )
    return { proxy, context, stored, close: Scope.close(scope, Exit.void) }
  })

/** Inserts a row in a transaction, and returns its outcome. */
const insert = (name: string) =>
  Db.withTransaction(Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO item VALUES (${name})`)).pipe(
    DatabaseError.refine,
    Effect.match({
      onFailure: (error) => ("outcome" in error ? error.outcome : error._tag),
      onSuccess: () => "stored"
    })
  )

const isLogin = ({ type }: Message) => type === "startup"

const outcomes = [
  ["stored", answers("COMMIT")],
  ["undone", sends("COMMIT")]
] as const

describe("the proof of a COMMIT", () => {
  for (const by of ["status", "marker"] as const) {
    for (const [outcome, point] of outcomes) {
      it.scopedLive(
        `a pause does not hold back the proof by ${by} that a COMMIT is ${outcome}, and drains after it`,
        () =>
          Effect.gen(function* () {
            const { context, proxy, stored } = yield* given({ outcome: by })
            yield* Effect.gen(function* () {
              const reached = yield* proxy.when(point, "freeze")
              const inserting = yield* Effect.fork(insert("a"))
              yield* reached
              const draining = yield* Effect.fork(Db.pause({ drain: "1 minute" }))
              const proves = yield* proxy.when(isLogin, "freeze")
              yield* proxy.cut
              yield* proves
              assert.strictEqual(yield* Db.pause(), 1)
              assert.strictEqual((yield* Fiber.poll(draining))._tag, "None")
              yield* proxy.thaw
              assert.strictEqual(yield* Fiber.join(inserting), outcome)
              assert.strictEqual(yield* Fiber.join(draining), 0)
              yield* Db.resume
              assert.strictEqual(yield* insert("b"), "stored")
              yield* idle
            }).pipe(Effect.provide(context))
            assert.deepStrictEqual(yield* stored, outcome === "stored" ? ["a", "b"] : ["b"])
          })
      )
    }

    it.scopedLive(`a proof by ${by} that waits for a connection of the pool goes on when that is paused`, () =>
      Effect.gen(function* () {
        const { context, proxy } = yield* given({ outcome: by, maxConnections: 1 })
        yield* Effect.gen(function* () {
          const waits = yield* proxy.when(isLogin, "freeze")
          yield* proxy.when(answers("COMMIT"), "cut")
          const inserting = yield* Effect.fork(insert("a"))
          yield* waits
          assert.strictEqual(yield* Db.pause({ drain: "1 minute" }), 0)
          assert.strictEqual(yield* Fiber.join(inserting), "stored")
        }).pipe(Effect.provide(context))
      })
    )
  }

  it.scopedLive("proofs during a pause do not wait for each other", () =>
    Effect.gen(function* () {
      const { context, proxy, stored } = yield* given({ outcome: "marker" })
      yield* Effect.gen(function* () {
        const reached = yield* proxy.when(answers("COMMIT"), "freeze")
        const first = yield* Effect.fork(insert("a"))
        yield* reached
        const second = yield* proxy.when(answers("COMMIT"), "freeze")
        const other = yield* Effect.fork(insert("b"))
        yield* second
        yield* Db.pause()
        const proves = yield* proxy.when(isLogin, "freeze")
        yield* proxy.cut
        yield* proves
        const ready = yield* Effect.raceFirst(Fiber.join(first), Fiber.join(other))
        assert.strictEqual(ready, "stored")
        yield* proxy.thaw
        assert.deepStrictEqual([yield* Fiber.join(first), yield* Fiber.join(other)], ["stored", "stored"])
      }).pipe(Effect.provide(context))
      assert.deepStrictEqual(yield* stored, ["a", "b"])
    })
  )

  it.scopedLive("the close of a paused database ends its proofs at once, with CommitOutcomeUnknown", () =>
    Effect.gen(function* () {
      const { close, context, proxy } = yield* given({ outcome: "marker", resolveWithin: "1 minute" })
      const reached = yield* proxy.when(answers("COMMIT"), "freeze")
      const inserting = yield* Effect.fork(Effect.provide(insert("a"), context))
      yield* reached
      yield* Effect.provide(Db.pause(), context)
      const proves = yield* proxy.when(isLogin, "freeze")
      yield* proxy.cut
      yield* proves
      yield* close
      const outcome = yield* Effect.timeoutFail(Fiber.join(inserting), {
        duration: "20 seconds",
        onTimeout: () => new Error("the proof still waits")
      })
      assert.strictEqual(outcome, "CommitOutcomeUnknown")
    })
  )

  it.scopedLive("a proof comes before the callers that wait for the pool", () =>
    Effect.gen(function* () {
      const { context, proxy } = yield* given({ outcome: "marker", maxConnections: 1 })
      yield* Effect.gen(function* () {
        const ended: Array<string> = []
        const insertAndRecord = (name: string) =>
          Effect.map(insert(name), (outcome) => ended.push(`${name} ${outcome}`))
        const reached = yield* proxy.when(answers("COMMIT"), "freeze")
        const proved = yield* Effect.fork(insertAndRecord("a"))
        yield* reached
        const waiting = yield* Effect.fork(Effect.forEach(["b", "c"], insertAndRecord, { concurrency: 2 }))
        yield* settled({ waiting: 2 })
        yield* proxy.cut
        yield* Fiber.join(proved)
        yield* Fiber.join(waiting)
        assert.deepStrictEqual(ended, ["a stored", "b stored", "c stored"])
      }).pipe(Effect.provide(context))
    })
  )

  it.scopedLive("without a pause, a proof uses an open connection of the pool", () =>
    Effect.gen(function* () {
      const { context, proxy } = yield* given({ outcome: "marker" })
      yield* Effect.gen(function* () {
        yield* Db.withTransaction(Effect.zipRight(run("SELECT 1"), Db.independent(run("SELECT 1"))))
        yield* settled({ idle: 2 })
        const before = proxy.accepted
        yield* proxy.when(answers("COMMIT"), "cut")
        assert.strictEqual(yield* insert("a"), "stored")
        assert.strictEqual(proxy.accepted, before)
      }).pipe(Effect.provide(context))
    })
  )
})
