import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { Consistency, type Database, RetryPolicy, TestDatabase, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { active, Db, insert, Place, run } from "../support/databases.js"
import { failure } from "../support/failures.js"
import { sends } from "../support/proxy.js"
import { a, b, fresh, here, stored, tagOf, there, watched } from "../support/schemas.js"
import { terminateBackends } from "../support/server.js"

const modes: ReadonlyArray<readonly [mode: "session" | "transactionPooler", name: string]> = [
  ["session", "in session mode"],
  ["transactionPooler", "in transactionPooler mode"]
]

for (const [mode, name] of modes) {
  describe(`a schema scope, ${name}`, () => {
    const given = (options: Partial<Database.Options> = {}) => fresh({ mode, ...options })

    it.scopedLive(
      "each statement outside of a transaction sees its own schema, and the connection keeps its search path",
      () =>
        Effect.gen(function* () {
          for (const _ of [1, 2]) {
            assert.deepStrictEqual(
              yield* Effect.all([here, a(here), b(here), here, a(there), there, b(there), there]),
              ["public", "a", "b", "public", "a", "public", "b", "public"]
            )
          }
          yield* Effect.all([insert("1"), a(insert("1")), b(insert("1"))])
          assert.deepStrictEqual(yield* stored, ["a: 1", "b: 1", "public: 1"])
          assert.deepStrictEqual(yield* run("SHOW search_path"), [{ search_path: '"$user", public' }])
        }).pipe(Effect.provide(given()))
    )

    it.scopedLive("a statement in a schema scope is one exchange, which begins and commits", () =>
      Effect.gen(function* () {
        const { context, proxy, sent } = yield* watched({ mode })
        yield* Effect.provide(here, context)
        const before = proxy.roundTrips
        sent.length = 0
        assert.strictEqual(yield* Effect.provide(a(here), context), "a")
        assert.strictEqual(proxy.roundTrips, before + 1)
        const commands = sent.flatMap((text) => text.match(/BEGIN|SET LOCAL search_path|SELECT|COMMIT/) ?? [])
        assert.deepStrictEqual(commands, ["BEGIN", "SET LOCAL search_path", "SELECT", "COMMIT"])
      })
    )

    it.scopedLive("no search path is sent when no statement is in a schema scope", () =>
      Effect.gen(function* () {
        const { context, sent } = yield* watched({ mode })
        yield* Effect.provide(
          Effect.all([
            here,
            Db.withTransaction(Effect.all([here, Db.withTransaction(here), here])),
            UnitOfWork.run(here)
          ]),
          context
        )
        assert.deepStrictEqual(
          sent.filter((text) => text.includes("search_path")),
          []
        )
      })
    )

    it.scopedLive("several commands in one text run in the schema scope", () =>
      Effect.gen(function* () {
        const several = "INSERT INTO item VALUES ('1'); INSERT INTO item VALUES ('2')"
        yield* a(run(several))
        assert.strictEqual(yield* here, "public")
        assert.strictEqual(yield* tagOf(b(run(`${several}; INSERT INTO item VALUES ('1')`))), "UniqueViolation")
        yield* Db.withTransaction(
          Effect.all([run(several), b(run(several)), run("SELECT 1; INSERT INTO item VALUES ('3')")])
        )
        assert.deepStrictEqual(yield* stored, ["a: 1", "a: 2", "b: 1", "b: 2", "public: 1", "public: 2", "public: 3"])
      }).pipe(Effect.provide(given()))
    )

    it.scopedLive("a statement that fails in a schema scope leaves the search path unchanged", () =>
      Effect.gen(function* () {
        yield* a(insert("1"))
        assert.strictEqual(yield* tagOf(a(insert("1"))), "UniqueViolation")
        assert.strictEqual(yield* tagOf(b(run("SELECT * FROM nowhere"))), "QueryFailed")
        assert.deepStrictEqual(yield* Effect.all([here, b(here)]), ["public", "b"])
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(given()))
    )

    it.scopedLive("each statement in a transaction sees the schema of its scope, and without one the default", () =>
      Effect.gen(function* () {
        const seen = yield* Db.withTransaction(
          Effect.gen(function* () {
            const all = yield* Effect.all([a(here), a(here), here, b(here), a(here), here, here])
            yield* Effect.all([insert("1"), a(insert("1")), b(insert("1"))])
            return all
          })
        )
        assert.deepStrictEqual(seen, ["a", "a", "public", "b", "a", "public", "public"])
        assert.deepStrictEqual(yield* stored, ["a: 1", "b: 1", "public: 1"])
        assert.strictEqual(yield* here, "public")
      }).pipe(Effect.provide(given()))
    )

    it.scopedLive("a schema scope around a transaction or a unit of work applies outside of inner scopes", () =>
      Effect.gen(function* () {
        assert.deepStrictEqual(yield* a(Db.withTransaction(Effect.all([here, b(here), here, there]))), [
          "a",
          "b",
          "a",
          "a"
        ])
        const unit = UnitOfWork.run(Effect.all([there, here, insert("1"), there, b(there), b(here), here]))
        assert.deepStrictEqual(yield* a(unit), ["a", "a", [], "a", "b", "b", "a"])
        assert.deepStrictEqual(yield* stored, ["a: 1"])
      }).pipe(Effect.provide(given()))
    )

    it.scopedLive("each statement sees the schema of its own scope after a savepoint is released or rolled back", () =>
      Effect.gen(function* () {
        const undone = <A>(self: Effect.Effect<A, unknown, Db>) =>
          Effect.ignore(Db.withTransaction(Effect.zipRight(self, Effect.fail("no"))))
        const seen = yield* Db.withTransaction(
          Effect.gen(function* () {
            const all: Array<unknown> = []
            const look = (self: Effect.Effect<unknown, unknown, Db>) => Effect.map(self, (one) => void all.push(one))
            // the savepoint is set while the search path is that of a scope
            yield* look(a(here))
            yield* undone(here)
            yield* look(here)
            yield* look(a(here))
            yield* undone(b(here))
            yield* look(a(here))
            yield* undone(Effect.all([here, b(here), here]))
            yield* look(here)
            // the savepoint is set while the search path is the default
            yield* undone(a(here))
            yield* look(here)
            yield* undone(a(here))
            yield* look(b(here))
            yield* look(here)
            // the savepoint is released
            yield* look(Db.withTransaction(a(here)))
            yield* look(here)
            yield* look(a(Db.withTransaction(Effect.all([here, b(here)]))))
            yield* look(here)
            // a statement's failure is undone with the savepoint around it
            yield* a(Effect.ignore(Db.withTransaction(run("SELECT * FROM nowhere"))))
            yield* look(here)
            yield* look(b(here))
            return all
          })
        )
        assert.deepStrictEqual(seen, [
          ...["a", "public", "a", "a", "public"],
          ...["public", "b", "public"],
          ...["a", "public", ["a", "b"], "public"],
          ...["public", "b"]
        ])
      }).pipe(Effect.provide(given()))
    )

    it.scopedLive("a search path that is set or rolled back by hand applies to the statements outside of scopes", () =>
      Effect.gen(function* () {
        const seen = yield* Db.withTransaction(
          Effect.gen(function* () {
            const all: Array<string> = []
            const look = (self: typeof here) => Effect.map(self, (one) => void all.push(one))
            yield* run("SET LOCAL search_path TO c")
            yield* look(here)
            yield* look(a(here))
            yield* look(here)
            yield* run("SAVEPOINT mine")
            yield* look(b(here))
            yield* run("ROLLBACK TO mine")
            yield* look(a(here))
            yield* look(here)
            yield* a(run("SAVEPOINT other"))
            yield* run("SET LOCAL search_path TO b")
            yield* look(here)
            yield* look(a(here))
            yield* run("ROLLBACK TO other")
            yield* look(here)
            // a scope's own statement may change the path; the next statement has that of the scope
            yield* a(run("SET LOCAL search_path TO b"))
            yield* look(a(here))
            yield* look(here)
            yield* a(run("RESET ALL"))
            yield* look(a(here))
            yield* look(here)
            return all
          })
        )
        assert.deepStrictEqual(seen, [
          ...["c", "a", "c"],
          ...["b", "a", "c"],
          ...["b", "a", "c"],
          ...["a", "c"],
          ...["a", "public"]
        ])
      }).pipe(Effect.provide(given()))
    )

    it.scopedLive(
      "reads are in the schema scope on a replica and in a transaction of the writer, and stay read-only",
      () =>
        Effect.gen(function* () {
          const standby = Effect.flatMap(Db.reader, (sql) =>
            Effect.map(
              sql<{ standby: boolean; name: string }>`SELECT pg_is_in_recovery() AS standby, name FROM mark`,
              ([row]) => [row?.standby, row?.name]
            )
          )
          assert.deepStrictEqual(yield* Effect.all([a(standby), standby]), [
            [true, "a"],
            [true, "public"]
          ])
          const reader = yield* Db.reader
          assert.deepStrictEqual(yield* reader.withTransaction(Effect.all([a(standby), standby, b(standby)])), [
            [true, "a"],
            [true, "public"],
            [true, "b"]
          ])
          yield* Db.withTransaction(
            Effect.gen(function* () {
              yield* a(insert("1"))
              assert.deepStrictEqual(yield* Effect.all([a(standby), standby, b(standby), here]), [
                [false, "a"],
                [false, "public"],
                [false, "b"],
                "public"
              ])
              assert.strictEqual(yield* tagOf(a(reader`INSERT INTO item VALUES ('2')`)), "ReadOnlyViolation")
              assert.deepStrictEqual(yield* Effect.all([here, b(there), there]), ["public", "b", "public"])
            })
          )
          const strong = Db.withConsistency(a(standby), Consistency.Strong())
          assert.deepStrictEqual(yield* strong, [false, "a"])
          assert.strictEqual(yield* tagOf(a(reader`INSERT INTO item VALUES ('2')`)), "ReadOnlyViolation")
        }).pipe(Effect.provide(given()))
    )

    it.scopedLive("a stream runs in the schema scope in which it is read, whatever runs between its rows", () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const rows = sql<{ n: number; name: string }>`
          SELECT n, seen(n) AS name FROM generate_series(1, 300) AS n`.pipe((_) => _.stream)
        const names = (self: Stream.Stream<{ readonly n: number; readonly name: string }, unknown, Db>) =>
          Effect.map(Stream.runCollect(self), (all) => [...new Set([...all].map(({ name }) => name))])
        // the function `seen` exists in public alone
        const both = ["a", "public"]
        const inA = Db.withSchema(["a", "public"])
        assert.deepStrictEqual(yield* inA(names(rows)), ["a"])
        assert.deepStrictEqual(yield* names(rows), ["public"])
        yield* Db.withTransaction(
          Effect.gen(function* () {
            const other = (n: number) => (n % 100 === 0 ? Effect.all([Db.withSchema(here, "b"), here]) : Effect.void)
            const between = Stream.tap(rows, ({ n }) => Db.withSchema(other(n), both))
            assert.deepStrictEqual(yield* names(between), ["public"])
            assert.deepStrictEqual(yield* inA(names(Stream.tap(rows, ({ n }) => b(other(n))))), ["a"])
            assert.strictEqual(yield* here, "public")
          })
        )
        const reader = yield* Db.reader
        const read = reader<{ n: number; name: string }>`SELECT n, seen(n) AS name FROM generate_series(1, 300) AS n`
        assert.deepStrictEqual(yield* inA(names(read.stream)), ["a"])
        assert.deepStrictEqual(yield* names(read.stream), ["public"])
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(given()))
    )

    it.scopedLive("forked fibers, independent work, hooks and detached work are in the schema scope", () =>
      Effect.gen(function* () {
        const started = yield* Deferred.make<void>()
        const late = yield* a(Effect.forkDaemon(Effect.zipRight(Deferred.await(started), here)))
        yield* Deferred.succeed(started, undefined)
        assert.strictEqual(yield* Fiber.join(late), "a")
        const both = Effect.all([a(here), here, b(here), here], { concurrency: "unbounded" })
        assert.deepStrictEqual(yield* both, ["a", "public", "b", "public"])
        assert.deepStrictEqual(yield* Db.withTransaction(both), ["a", "public", "b", "public"])
        const outside = Effect.all([a(UnitOfWork.outside(here)), a(Db.independent(here)), Db.independent(a(here))])
        assert.deepStrictEqual(yield* UnitOfWork.run(outside), ["a", "a", "a"])
        yield* UnitOfWork.run(
          Effect.all([
            a(Db.beforeCommit(insert("before"))),
            b(Db.afterCommit(insert("after"))),
            Db.beforeCommit(insert("before")),
            insert("1")
          ])
        )
        assert.deepStrictEqual(yield* stored, ["a: before", "b: after", "public: 1", "public: before"])
        const detached = yield* a(UnitOfWork.run(UnitOfWork.detach(Stream.fromEffect(here))))
        assert.deepStrictEqual([...(yield* Stream.runCollect(detached))], ["a"])
      }).pipe(Effect.provide(given({ maxConnections: 2 })))
    )

    it.scopedLive("a statement or transaction is retried in its schema scope", () =>
      Effect.gen(function* () {
        const { name } = yield* Place
        yield* a(here)
        yield* terminateBackends(name)
        assert.deepStrictEqual(yield* RetryPolicy.idempotent(Effect.all([a(there), a(here), here])), [
          "a",
          "a",
          "public"
        ])
        let attempt = 0
        const whole = Db.withTransaction(
          Effect.gen(function* () {
            yield* insert(`${++attempt}`)
            if (attempt === 1) yield* terminateBackends(name)
            return yield* Effect.all([here, b(here), here])
          }),
          { retry: true }
        )
        assert.deepStrictEqual(yield* a(whole), ["a", "b", "a"])
        assert.deepStrictEqual(yield* stored, ["a: 2"])
      }).pipe(Effect.provide(given()))
    )

    it.scopedLive("a statement that is interrupted in a schema scope leaves the search path unchanged", () =>
      Effect.gen(function* () {
        const { context, proxy } = yield* watched({ mode })
        yield* Effect.gen(function* () {
          const sleeping = yield* proxy.when(sends("pg_sleep"), "pass")
          const fiber = yield* Effect.fork(a(run("SELECT pg_sleep(600)")))
          yield* sleeping
          yield* Fiber.interrupt(fiber)
          assert.strictEqual(yield* here, "public")
        }).pipe(Effect.provide(context))
      })
    )

    it.scopedLive("a schema scope works in a sandbox as in the database, although no COMMIT ends its settings", () =>
      Effect.gen(function* () {
        yield* Effect.gen(function* () {
          const sql = yield* Db.writer
          assert.deepStrictEqual(yield* Effect.all([a(here), here, b(there), there, a(there), here]), [
            ...["a", "public", "b", "public", "a", "public"]
          ])
          assert.deepStrictEqual(yield* a(Db.withTransaction(Effect.all([here, b(here), there]))), ["a", "b", "a"])
          assert.deepStrictEqual(yield* UnitOfWork.run(Effect.all([here, a(insert("1")), there, a(there)])), [
            "public",
            [],
            "public",
            "a"
          ])
          assert.strictEqual(yield* tagOf(a(insert("1"))), "UniqueViolation")
          assert.deepStrictEqual(yield* Effect.all([here, b(here), here]), ["public", "b", "public"])
          const { reserve } = sql
          const reserved = Effect.scoped(
            Effect.flatMap(reserve, (one) => one.executeUnprepared("SELECT name FROM mark", [], undefined))
          )
          assert.deepStrictEqual(yield* reserved, [{ name: "public" }])
          assert.strictEqual((yield* failure(a(reserved)))._tag, "SchemaInvalid")
        }).pipe(Effect.provide(TestDatabase.layer(Db)))
        assert.deepStrictEqual(yield* stored, [])
      }).pipe(Effect.provide(given()))
    )
  })
}
