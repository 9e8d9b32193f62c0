/**
 * `Reactivity` in a transaction: queries run again when the rows that they read are stored, and not
 * before.
 */
import * as Reactivity from "@effect/experimental/Reactivity"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Mailbox from "effect/Mailbox"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { audit } from "../support/audit.js"
import { Audit, Db, fresh, insert } from "../support/databases.js"

const place = Layer.mergeAll(fresh(), audit, Reactivity.layer)

const names = Effect.flatMap(Db.writer, (sql) =>
  Effect.map(sql<{ name: string }>`SELECT name FROM item ORDER BY id`, (rows) => rows.map(({ name }) => name))
)

/**
 * Watches a query that runs again after each invalidation, through a client or through the service
 * itself; `next` waits for the result of its next run.
 */
const watch = (by: "sql.reactiveMailbox" | "Reactivity.query") =>
  Effect.gen(function* () {
    const sql = yield* Db.writer
    let runs = 0
    const query = Effect.suspend(() => {
      runs++
      return names
    })
    const mailbox: Mailbox.ReadonlyMailbox<ReadonlyArray<string>, unknown> = by === "sql.reactiveMailbox"
      ? yield* sql.reactiveMailbox(["items"], query)
      : yield* Reactivity.query(query, ["items"])
    assert.deepStrictEqual(yield* mailbox.take, [])
    return { next: mailbox.take, runs: () => runs }
  })

const add = (name: string) => Reactivity.mutation(insert(name), ["items"])

const wholes = [
  ["withTransaction", (self) => Db.withTransaction(self)],
  ["a unit of work", (self) => UnitOfWork.run(self)],
  ["a nested transaction", (self) => Db.withTransaction(Db.withTransaction(self))],
  ["a nested part", (self) => UnitOfWork.run(UnitOfWork.nested(self))],
  ["a part that joins", (self) => UnitOfWork.run(UnitOfWork.run(self))],
  ["a unit in a transaction", (self) => Db.withTransaction(UnitOfWork.run(self))]
] as const satisfies ReadonlyArray<
  readonly [string, <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, unknown, R | Db>]
>

describe("an invalidation in a transaction", () => {
  for (const by of ["sql.reactiveMailbox", "Reactivity.query"] as const) {
    for (const [name, whole] of wholes) {
      it.scopedLive(`an invalidation of ${by} in ${name} waits for its commit, and is dropped on rollback`, () =>
        Effect.gen(function* () {
          const { next, runs } = yield* watch(by)
          yield* whole(
            Effect.gen(function* () {
              yield* add("a")
              // runs after any query that the invalidation might have forked
              yield* Db.independent(names)
              assert.strictEqual(runs(), 1)
            })
          )
          assert.deepStrictEqual(yield* next, ["a"])
          yield* Effect.exit(whole(Effect.zipRight(add("undone"), Effect.fail("x"))))
          yield* Db.independent(names)
          assert.strictEqual(runs(), 2)
          yield* add("b")
          assert.deepStrictEqual(yield* next, ["a", "b"])
          assert.strictEqual(runs(), 3)
        }).pipe(Effect.provide(place))
      )
    }
  }

  it.scopedLive("an invalidation in an undone savepoint, or nested part, is dropped although the unit commits", () =>
    Effect.gen(function* () {
      const { next, runs } = yield* watch("sql.reactiveMailbox")
      const undone = Effect.zipRight(add("undone"), Effect.fail("x"))
      yield* UnitOfWork.run(
        Effect.all([
          Effect.ignore(Db.withTransaction(undone)),
          Effect.ignore(UnitOfWork.nested(undone)),
          Effect.ignore(UnitOfWork.nested(Effect.zipRight(Reactivity.invalidate(["items"]), Effect.fail("x"))))
        ])
      )
      yield* names
      assert.strictEqual(runs(), 1)
      yield* add("a")
      assert.deepStrictEqual(yield* next, ["a"])
    }).pipe(Effect.provide(place))
  )

  it.scopedLive("an invalidation in a unit without a statement, or of another database, waits for the unit's end", () =>
    Effect.gen(function* () {
      const { next, runs } = yield* watch("sql.reactiveMailbox")
      const { unsafeInvalidate } = yield* Reactivity.Reactivity
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* Audit.withTransaction(Effect.sync(() => unsafeInvalidate(["items"])))
          yield* Db.independent(names)
          assert.strictEqual(runs(), 1)
          yield* insert("a")
        })
      )
      assert.deepStrictEqual(yield* next, ["a"])
      yield* Effect.ignore(UnitOfWork.run(Effect.zipRight(Reactivity.invalidate({ items: [1] }), Effect.fail("x"))))
      yield* names
      assert.strictEqual(runs(), 2)
    }).pipe(Effect.provide(place))
  )

  it.scopedLive("an invalidation takes effect after an early commit, and one of independent work at once", () =>
    Effect.gen(function* () {
      const { next } = yield* watch("sql.reactiveMailbox")
      yield* Effect.ignore(
        UnitOfWork.run(
          Effect.gen(function* () {
            yield* add("early")
            yield* Db.commit
            assert.deepStrictEqual(yield* next, ["early"])
            yield* Db.independent(add("independent"))
            assert.deepStrictEqual(yield* next, ["early", "independent"])
            return yield* Effect.fail("x")
          })
        )
      )
    }).pipe(Effect.provide(place))
  )

  it.scopedLive("an invalidation is dropped by a rollback by hand, with a statement before it or without", () =>
    Effect.gen(function* () {
      const { next, runs } = yield* watch("sql.reactiveMailbox")
      for (const rollback of [UnitOfWork.rollback, Db.rollback]) {
        yield* UnitOfWork.run(Effect.zipRight(add("undone"), rollback))
      }
      yield* UnitOfWork.run(Effect.zipRight(Reactivity.invalidate(["items"]), UnitOfWork.rollback))
      yield* names
      assert.strictEqual(runs(), 1)
      // a rollback of one database leaves an invalidation of a unit that also uses another
      yield* UnitOfWork.run(
        Effect.all([Audit.notify("c"), Reactivity.invalidate(["items"]), insert("undone"), Db.rollback])
      )
      assert.deepStrictEqual(yield* next, [])
      yield* UnitOfWork.run(Effect.all([add("undone"), UnitOfWork.rollback, add("a")]))
      assert.deepStrictEqual(yield* next, ["a"])
      assert.strictEqual(runs(), 3)
    }).pipe(Effect.provide(place))
  )

  it.scopedLive("an invalidation of committed or surrounding work is not dropped by a rollback by hand", () =>
    Effect.gen(function* () {
      const { next } = yield* watch("sql.reactiveMailbox")
      const committed = (name: string) => Reactivity.mutation(Effect.zipRight(insert(name), Db.commit), ["items"])
      yield* UnitOfWork.run(Effect.all([committed("a"), insert("undone"), Db.rollback]))
      assert.deepStrictEqual(yield* next, ["a"])
      yield* UnitOfWork.run(Effect.all([committed("b"), UnitOfWork.rollback]))
      assert.deepStrictEqual(yield* next, ["a", "b"])
      yield* Db.withTransaction(
        UnitOfWork.run(Effect.all([insert("c"), Reactivity.invalidate(["items"]), Audit.rollback]))
      )
      assert.deepStrictEqual(yield* next, ["a", "b", "c"])
    }).pipe(Effect.provide(place))
  )

  it.scopedLive("an invalidation of committed work is not dropped by the failure of the rest of the unit", () =>
    Effect.gen(function* () {
      const { next, runs } = yield* watch("sql.reactiveMailbox")
      const committed = Reactivity.mutation(Effect.zipRight(insert("a"), Db.commit), ["items"])
      yield* Effect.ignore(UnitOfWork.run(Effect.all([committed, insert("undone"), Effect.fail("x")])))
      assert.deepStrictEqual(yield* next, ["a"])
      // a unit that fails inside of a transaction drops its invalidation
      const part = UnitOfWork.run(Effect.zipRight(add("undone"), Effect.fail("x")))
      yield* Effect.ignore(Db.withTransaction(Effect.ignore(part)))
      yield* names
      assert.strictEqual(runs(), 2)
    }).pipe(Effect.provide(place))
  )

  type Late = Fiber.RuntimeFiber<void>

  interface Whole {
    readonly part: Effect.Effect<Late, unknown, Db | Reactivity.Reactivity>
    readonly rest: (late: Late) => Effect.Effect<void, unknown, Db>
  }

  const parts: ReadonlyArray<
    readonly [string, (whole: Whole) => Effect.Effect<void, unknown, Db | Reactivity.Reactivity>]
  > = [
    ["a nested part", ({ part, rest }) => UnitOfWork.run(Effect.flatMap(UnitOfWork.nested(part), rest))],
    ["a savepoint", ({ part, rest }) => Db.withTransaction(Effect.flatMap(Db.withTransaction(part), rest))],
    ["a unit in a transaction", ({ part, rest }) => Db.withTransaction(Effect.flatMap(UnitOfWork.run(part), rest))]
  ]

  for (const [name, whole] of parts) {
    it.scopedLive(`an invalidation of a fiber that outlives ${name} waits for the outermost commit`, () =>
      Effect.gen(function* () {
        const { next, runs } = yield* watch("sql.reactiveMailbox")
        const go = yield* Deferred.make<void>()
        const late = Effect.zipRight(Deferred.await(go), Reactivity.invalidate(["items"]))
        yield* whole({
          part: Effect.zipRight(insert("a"), Effect.forkDaemon(late)),
          rest: (fiber) =>
            Effect.gen(function* () {
              yield* Deferred.succeed(go, undefined)
              yield* Fiber.join(fiber)
              yield* Db.independent(names)
              assert.strictEqual(runs(), 1)
            })
        })
        assert.deepStrictEqual(yield* next, ["a"])
      }).pipe(Effect.provide(place))
    )
  }

  it.scopedLive("a query that was begun in a transaction runs again outside of it, once that has ended", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const seen = yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* insert("a")
          const mailbox = yield* sql.reactiveMailbox(["items"], names)
          assert.deepStrictEqual(yield* mailbox.take, ["a"])
          yield* add("b")
          return mailbox
        })
      )
      assert.deepStrictEqual(yield* seen.take, ["a", "b"])
      assert.deepStrictEqual(yield* Stream.runHead(sql.reactive(["items"], names)), Option.some(["a", "b"]))
    }).pipe(Effect.provide(place))
  )
})
