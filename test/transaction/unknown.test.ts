/**
 * A COMMIT without an answer: the report that a program receives, also if it has stopped waiting.
 */
import { HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import {
  type Database,
  DatabaseError,
  DatabaseRuntime,
  type Observation,
  RequestTransaction,
  UnitOfWork
} from "effect-db"
import { describe } from "vitest"
import { both, event, events } from "../support/audit.js"
import { Audit, collide, Db, fresh, freshTable, insert, stored } from "../support/databases.js"
import { throughProxy } from "../support/proxied.js"
import { answers, sends } from "../support/proxy.js"
import { query } from "../support/server.js"

/** A database behind a proxy. */
const behind = (options: Partial<Database.Options>) =>
  Effect.flatMap(freshTable, ({ writer }) => throughProxy(writer, options))

const behindProxy = behind({})
/** A database that does not ask for the outcome of a COMMIT without an answer. */
const unresolved = behind({ outcome: "unknown" })

/** Returns hooks of each kind, which record that they have run. */
const hooks = (log: Array<string>) => {
  const note = (text: string) => Effect.sync(() => void log.push(text))
  return Effect.all([
    Db.afterCommit(note("committed")),
    Db.afterRollback(note("rolled back")),
    Db.afterUnknown(note("unknown"))
  ])
}

const ended = Effect.gen(function* () {
  const seen: Array<Observation.Observation> = []
  yield* Db.observations.pipe(
    Stream.filter((observation) => observation._tag === "TransactionEnded"),
    Stream.runForEach((observation) => Effect.sync(() => void seen.push(observation))),
    Effect.forkScoped
  )
  yield* Effect.yieldNow()
  return seen
})

/** Returns the tags of the failures in a cause. */
const tags = (cause: Cause.Cause<unknown>): ReadonlyArray<string> =>
  Chunk.toReadonlyArray(Cause.failures(cause)).map((error) =>
    DatabaseError.isDatabaseError(error) ? error._tag : String(error)
  )

const wholes = [
  ["a transaction", <A, E>(self: Effect.Effect<A, E, Db>) => Db.withTransaction(self)],
  ["a unit of work", <A, E>(self: Effect.Effect<A, E, Db>) => UnitOfWork.run(self)],
  [
    "a transaction with a savepoint",
    <A, E>(self: Effect.Effect<A, E, Db>) => Db.withTransaction(Db.withTransaction(self))
  ]
] as const

const retried = [
  ["a transaction with retry", (self) => Db.withTransaction(self, { retry: true })],
  ["a unit of work with retry", (self) => UnitOfWork.run(self, { retry: true })],
  [
    "a unit of work with a part that has retry",
    (self) => UnitOfWork.run(Effect.zipLeft(self, UnitOfWork.run(Effect.void, { retry: true })))
  ]
] as const satisfies ReadonlyArray<
  readonly [string, <A, E>(self: Effect.Effect<A, E, Db>) => Effect.Effect<A, unknown, Db>]
>

describe("a COMMIT without an answer", () => {
  for (const [name, whole] of [...wholes, ...retried]) {
    it.scopedLive(`an interruption of ${name} during COMMIT has CommitOutcomeUnknown in its cause`, () =>
      Effect.gen(function* () {
        const { context, proxy } = yield* behindProxy
        const log: Array<string> = []
        const seen = yield* Effect.provide(ended, context)
        const committing = yield* proxy.when(sends("COMMIT"), "freeze")
        const work = whole(Effect.zipRight(hooks(log), insert("a")))
        const fiber = yield* Effect.fork(Effect.provide(work, context))
        yield* committing
        const exit = yield* Fiber.interrupt(fiber)
        assert.isTrue(Exit.isFailure(exit) && Cause.isInterrupted(exit.cause))
        assert.deepStrictEqual(Exit.isFailure(exit) ? tags(exit.cause) : [], ["CommitOutcomeUnknown"])
        assert.deepStrictEqual(log, ["unknown"])
        assert.deepStrictEqual(
          seen.map((observation) => observation._tag === "TransactionEnded" && observation.outcome),
          ["unknown"]
        )
      })
    )
  }

  for (const [name, whole] of retried) {
    it.scopedLive(`an interruption of ${name} during COMMIT after a collision reports CommitOutcomeUnknown`, () =>
      Effect.gen(function* () {
        const { context, proxy } = yield* behindProxy
        const committing = yield* proxy.when(sends("COMMIT"), "freeze")
        const work = whole(Effect.zipRight(Effect.ignore(Db.withTransaction(collide)), insert("a")))
        const fiber = yield* Effect.fork(Effect.provide(work, context))
        yield* committing
        const exit = yield* Fiber.interrupt(fiber)
        assert.isTrue(Exit.isFailure(exit) && Cause.isInterrupted(exit.cause))
        assert.deepStrictEqual(Exit.isFailure(exit) ? tags(exit.cause) : [], ["CommitOutcomeUnknown"])
      })
    )
  }

  for (const retry of [false, true]) {
    it.scopedLive(`an unanswered COMMIT of an interrupted request reaches onCommitFailed, with retry ${retry}`, () =>
      Effect.gen(function* () {
        const { context, proxy } = yield* behindProxy
        const received: Array<string> = []
        const middleware = RequestTransaction.middleware({
          retry,
          onCommitFailed: ({ _tag }) => {
            received.push(_tag)
            return HttpServerResponse.empty({ status: 504 })
          }
        })
        const handler = Effect.zipRight(Effect.ignore(Db.withTransaction(collide)), insert("a"))
        const request = HttpServerRequest.fromWeb(new Request("http://localhost/", { method: "POST" }))
        const committing = yield* proxy.when(sends("COMMIT"), "freeze")
        const fiber = yield* middleware(Effect.as(handler, HttpServerResponse.empty())).pipe(
          Effect.provideService(HttpServerRequest.HttpServerRequest, request),
          Effect.provide(context),
          Effect.scoped,
          Effect.fork
        )
        yield* committing
        assert.isTrue(Exit.isInterrupted(yield* Fiber.interrupt(fiber)))
        assert.deepStrictEqual(received, ["CommitOutcomeUnknown"])
      })
    )
  }

  it.scopedLive("a timeout during a COMMIT that the server has stored runs afterUnknown with an observation", () =>
    Effect.gen(function* () {
      const { context, proxy, writer } = yield* behindProxy
      const log: Array<string> = []
      const seen = yield* Effect.provide(ended, context)
      // the server has stored the row, and its answer does not arrive
      const answered = yield* proxy.when(answers("COMMIT"), "freeze")
      const fiber = yield* Effect.zipRight(hooks(log), insert("a")).pipe(
        Db.withTransaction(),
        Effect.raceFirst(Effect.zipRight(answered, Effect.fail("timed out"))),
        Effect.provide(context),
        Effect.fork
      )
      assert.isTrue(Exit.isFailure(yield* Fiber.await(fiber)))
      assert.deepStrictEqual(log, ["unknown"])
      assert.strictEqual(seen[0]?._tag === "TransactionEnded" && seen[0].outcome, "unknown")
      assert.deepStrictEqual(yield* query(writer, "SELECT name FROM item"), [{ name: "a" }])
    })
  )

  it.scopedLive("an unanswered COMMIT is not run again by retry, also if an undone savepoint has collided before", () =>
    Effect.gen(function* () {
      const { context, proxy, writer } = yield* unresolved
      for (const [name, whole] of retried) {
        yield* proxy.when(answers("COMMIT"), "cut")
        const work = Effect.zipRight(Effect.ignore(Db.withTransaction(collide)), insert(name))
        const error = yield* whole(work).pipe(Effect.provide(context), DatabaseError.refine, Effect.flip)
        assert.isTrue(DatabaseError.isDatabaseError(error) && error._tag === "CommitOutcomeUnknown", String(error))
      }
      assert.lengthOf(yield* query(writer, "SELECT name FROM item"), retried.length)
    })
  )

  it.scopedLive("a connection lost during COMMIT runs afterUnknown, and neither afterCommit nor afterRollback", () =>
    Effect.gen(function* () {
      const { context, proxy } = yield* unresolved
      for (const [name, whole] of wholes) {
        const log: Array<string> = []
        yield* proxy.when(answers("COMMIT"), "cut")
        const error = yield* whole(Effect.zipRight(hooks(log), insert(name))).pipe(
          Effect.provide(context),
          DatabaseError.refine,
          Effect.flip
        )
        assert.strictEqual(error._tag, "CommitOutcomeUnknown")
        assert.deepStrictEqual(log, ["unknown"])
      }
    })
  )

  it.scopedLive(
    "afterUnknown does not run after a commit, a rollback or an undone savepoint, nor outside of a transaction",
    () =>
      Effect.gen(function* () {
        const log: Array<string> = []
        yield* hooks(log)
        yield* Db.withTransaction(Effect.zipRight(hooks(log), insert("a")))
        yield* Effect.ignore(Db.withTransaction(Effect.all([hooks(log), insert("b"), Effect.fail("x")])))
        yield* Db.withTransaction(Effect.ignore(Db.withTransaction(Effect.zipRight(hooks(log), Effect.fail("x")))))
        assert.deepStrictEqual(log, ["committed", "committed", "rolled back", "rolled back"])
      }).pipe(Effect.provide(fresh()))
  )

  it.live("a hook that plain code registers by afterUnknown runs after an unanswered COMMIT", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { proxy } = yield* unresolved
        const runtime = DatabaseRuntime.make({ db: Db }, Db.layer({ writer: proxy.url, outcome: "unknown" }), {
          lazy: true
        })
        const { db } = runtime.databases
        const log: Array<string> = []
        yield* proxy.when(answers("COMMIT"), "cut")
        const error = yield* Effect.flip(
          Effect.tryPromise({
            try: () =>
              runtime.unitOfWork(async () => {
                await db.writer`INSERT INTO item (name) VALUES ('a')`
                await db.afterUnknown(() => log.push("unknown"))
              }),
            catch: (error) => error
          })
        )
        assert.isTrue(DatabaseError.isDatabaseError(error) && error._tag === "CommitOutcomeUnknown")
        assert.deepStrictEqual(log, ["unknown"])
        yield* Effect.promise(() => runtime.close())
      })
    )
  )
})

describe("hooks over two databases", () => {
  it.scopedLive("hooks over two databases run in the order of registration, after the end of all", () =>
    Effect.gen(function* () {
      const log: Array<string> = []
      const note = (text: string) =>
        Effect.flatMap(Effect.all([stored, events]), ([items, all]) =>
          Effect.sync(() => void log.push(`${text} (${items.length}, ${all.length})`))
        )
      const register = (kind: "afterRollback" | "afterCommit") =>
        Effect.all([Audit[kind](note("1")), Db[kind](note("2")), Audit[kind](note("3")), Db[kind](note("4"))])
      const work = (kind: "afterRollback" | "afterCommit") => Effect.all([insert(kind), event(kind), register(kind)])
      yield* Effect.ignore(UnitOfWork.run(Effect.zipRight(work("afterRollback"), Effect.fail("x"))))
      assert.deepStrictEqual(log, ["1 (0, 0)", "2 (0, 0)", "3 (0, 0)", "4 (0, 0)"])
      log.length = 0
      yield* UnitOfWork.run(work("afterCommit"))
      assert.deepStrictEqual(log, ["1 (1, 1)", "2 (1, 1)", "3 (1, 1)", "4 (1, 1)"])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("beforeCommit hooks and the hooks of a refused COMMIT run in the order of registration", () =>
    Effect.gen(function* () {
      const log: Array<string> = []
      const note = (text: string) => Effect.sync(() => void log.push(text))
      yield* UnitOfWork.run(
        Effect.all([
          insert("a"),
          event("a"),
          Audit.beforeCommit(note("1")),
          Db.beforeCommit(note("2")),
          Audit.beforeCommit(note("3"))
        ])
      )
      assert.deepStrictEqual(log, ["1", "2", "3"])
      log.length = 0
      yield* Effect.ignore(
        UnitOfWork.run(
          Effect.all([
            insert("b"),
            event("b", 13),
            Audit.afterRollback(note("1")),
            Db.afterRollback(note("2")),
            Audit.afterRollback(note("3"))
          ])
        )
      )
      assert.deepStrictEqual(log, ["1", "2", "3"])
    }).pipe(Effect.provide(both))
  )
})
