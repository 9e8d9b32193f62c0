/**
 * What goes wrong with plain clients and what becomes of it here, row by row of the README's table. `plain-client.test.ts` shows the
 * plain client in the same scenarios.
 */
import type { SqlError } from "@effect/sql/SqlError"
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { Database, DatabaseError, RetryPolicy } from "effect-db"
import { behindBouncer, hasBouncer, pooled } from "./fixtures/bouncer.js"
import { makeProxy, sends } from "./fixtures/proxy.js"
import * as KnownFailures from "./suites/knownFailures.js"

class App extends Database.Service<App>()("app") {}
class Audit extends Database.Service<Audit>()("audit") {}

const soon = Schedule.intersect(Schedule.spaced("2 millis"), Schedule.recurs(1000))

/** A database of effect-db; when the scope ends, no connection may be checked out. */
const open = <Self>(database: Database.Class<Self, string>, options: Database.Options) =>
  Effect.gen(function* () {
    const context = yield* Layer.build(database.layer(options))
    const active = Effect.map(Effect.provide(database.status, context), ({ servers }) =>
      servers.reduce((sum, { reads, writes }) => sum + reads.active + (writes?.active ?? 0), 0)
    )
    yield* Effect.addFinalizer(() =>
      // a connection that was lost counts until its socket is closed
      Effect.zipRight(Effect.repeat(active, { schedule: soon, until: (n) => n === 0 }), active).pipe(
        Effect.map((n) => assert.strictEqual(n, 0, "connections are still checked out"))
      )
    )
    return { context, sql: yield* Effect.provide(database.writer, context) }
  })

/** A database of effect-db and where it is. */
const given = <Self>(database: Database.Class<Self, string>, options: Partial<Database.Options> = {}) =>
  Effect.gen(function* () {
    const place = yield* KnownFailures.freshTables
    return { place, ...(yield* open(database, { writer: place.writer, ...options })) }
  })

/** The one failure that an effect ended with: a typed one, and beside it nothing else, least of all a defect. */
const failure = <Tag extends DatabaseError.DatabaseError["_tag"], A, E, R>(
  tag: Tag,
  self: Effect.Effect<A, E | SqlError, R>
) =>
  Effect.map(Effect.exit(DatabaseError.refine(self)), (exit) => {
    const isIt = (error: unknown): error is Extract<DatabaseError.DatabaseError, { readonly _tag: Tag }> =>
      DatabaseError.isDatabaseError(error) && error._tag === tag
    if (Exit.isFailure(exit) && Cause.isFailType(exit.cause) && isIt(exit.cause.error)) return exit.cause.error
    return assert.fail(`no ${tag}, but ${Exit.isSuccess(exit) ? "a success" : Cause.pretty(exit.cause)}`)
  })

describe("known failures", () => {
  it.scopedLive("1. inside A's transaction a statement of client B runs on B", () =>
    Effect.gen(function* () {
      const a = yield* given(App)
      const b = yield* given(Audit)
      const seen = yield* KnownFailures.statementOfAnother(a.sql, b.sql)
      assert.strictEqual(seen.a?.database, a.place.name)
      assert.strictEqual(seen.b?.database, b.place.name)
      assert.notStrictEqual(seen.b?.pid, seen.a?.pid)
    })
  )

  it.scopedLive("2. B.withTransaction inside A.withTransaction is a transaction on B, whatever becomes of A's", () =>
    Effect.gen(function* () {
      const a = yield* given(App)
      const b = yield* given(Audit)
      const exit = yield* Effect.exit(KnownFailures.transactionOfAnother(a.sql, b.sql))
      assert.deepStrictEqual(exit, Exit.fail("no"))
      assert.deepStrictEqual(yield* KnownFailures.stored(a.place), [])
      assert.deepStrictEqual(yield* KnownFailures.stored(b.place), ["b"])
    })
  )

  it.scopedLive("3. a refused COMMIT is CommitFailed, typed, with what was refused", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App)
      const error = yield* failure("CommitFailed", KnownFailures.commitRefused(sql))
      assert.strictEqual(error.database, "app")
      assert.strictEqual(error.sqlState, "23503")
      assert.instanceOf(error.cause, DatabaseError.ForeignKeyViolation)
      if (error.cause instanceof DatabaseError.ForeignKeyViolation) {
        assert.strictEqual(error.cause.table, "part")
        assert.strictEqual(error.cause.constraint, "part_item")
      }
      assert.deepStrictEqual(yield* KnownFailures.stored(place), [])
    })
  )

  it.scopedLive("4. a backend killed inside a transaction is Disconnected, undone, never a defect", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App)
      const before = yield* KnownFailures.where(sql)
      const error = yield* failure("Disconnected", KnownFailures.backendKilled(sql, place))
      assert.strictEqual(error.database, "app")
      assert.strictEqual(error.server, `127.0.0.1:${sql.config.port}`)
      assert.strictEqual(error.outcome, "undone")
      assert.deepStrictEqual(yield* KnownFailures.stored(place), [])
      // the same client goes on, on another connection
      yield* KnownFailures.oneInsert(sql)
      assert.notStrictEqual((yield* KnownFailures.where(sql))?.pid, before?.pid)
      assert.deepStrictEqual(yield* KnownFailures.stored(place), ["x"])
    })
  )

  it.scopedLive("5. a connection lost at BEGIN is tried again; when that does not help, Disconnected, notSent", () =>
    Effect.gen(function* () {
      const place = yield* KnownFailures.freshTables
      const proxy = yield* makeProxy(place.writer)
      const { sql } = yield* open(App, { writer: proxy.url })
      const twice = RetryPolicy.with({ acquire: Schedule.recurs(2) })
      yield* proxy.when(sends("BEGIN"), "cut", 3)
      const error = yield* failure("Disconnected", twice(KnownFailures.oneInsert(sql)))
      assert.strictEqual(error.database, "app")
      assert.strictEqual(error.server, `127.0.0.1:${proxy.port}`)
      assert.strictEqual(error.outcome, "notSent")
      assert.deepStrictEqual(yield* KnownFailures.stored(place), [])
      yield* proxy.when(sends("BEGIN"), "cut", 2)
      yield* twice(KnownFailures.oneInsert(sql))
      assert.deepStrictEqual(yield* KnownFailures.stored(place), ["x"])
    })
  )

  it.scopedLive("6. a failure that was ignored is RolledBackAtCommit, with that failure as its cause", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App)
      const error = yield* failure("RolledBackAtCommit", KnownFailures.failureIgnored(sql))
      assert.strictEqual(error.database, "app")
      assert.instanceOf(error.cause, DatabaseError.UniqueViolation)
      assert.deepStrictEqual(yield* KnownFailures.stored(place), [])
    })
  )

  it.scopedLive("7. two nested transactions at once take turns: one is kept, the other undone", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App)
      const [kept, undone] = yield* KnownFailures.siblings(sql)
      assert.deepStrictEqual(kept, Exit.void)
      assert.deepStrictEqual(undone, Exit.fail("no"))
      assert.deepStrictEqual(yield* KnownFailures.stored(place), ["kept"])
    })
  )

  it.scopedLive("8. 200 nested transactions hold one lock on a transaction id: each is released at its end", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App)
      assert.strictEqual(yield* KnownFailures.manyNested(sql), 1)
      assert.lengthOf(yield* KnownFailures.stored(place), 200)
    })
  )

  it.scopedLive("10. a fiber that outlives its transaction gets TransactionEnded, and touches nobody else's", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App, { maxConnections: 1 })
      const error = yield* failure("TransactionEnded", Effect.flatten(KnownFailures.daemon(sql)))
      assert.strictEqual(error.database, "app")
      assert.deepStrictEqual(yield* KnownFailures.stored(place), ["first"])
    })
  )

  it.scopedLive("15. a query inside a stream of the same transaction works", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App)
      yield* KnownFailures.queryInStream(sql)
      assert.lengthOf(yield* KnownFailures.stored(place), 200)
    })
  )

  it.scopedLive(
    "18. notify is delivered; inside a transaction on its commit, and not at all when it is rolled back",
    () =>
      Effect.gen(function* () {
        const { place, sql } = yield* given(App)
        const heard = yield* KnownFailures.notifications(sql, place)
        assert.deepStrictEqual(heard, ["plain", "before the commit", "inside", "last"])
      })
  )

  it.scopedLive("20. one of two listeners on a channel stops: the other keeps hearing", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App)
      assert.deepStrictEqual(yield* KnownFailures.oneListenerStops(sql, place), ["news", "end"])
    })
  )

  it.scopedLive("24. of two databases whose layers are merged both are there, each under its own tag", () =>
    Effect.gen(function* () {
      const a = yield* KnownFailures.freshTables
      const b = yield* KnownFailures.freshTables
      const both = Layer.merge(App.layer({ writer: a.writer }), Audit.layer({ writer: b.writer }))
      const seen = yield* Effect.flatMap(
        Effect.all([App.writer, Audit.writer]),
        Effect.forEach(KnownFailures.where)
      ).pipe(Effect.provide(both))
      assert.deepStrictEqual(
        seen.map((where) => where?.database),
        [a.name, b.name]
      )
    })
  )

  it.scopedLive.skipIf(!hasBouncer)(
    `27. ${behindBouncer} an interrupt stops its own statement, and nobody else's`,
    () =>
      Effect.gen(function* () {
        const place = yield* KnownFailures.freshTables
        const writer = pooled(place.name)?.writer ?? place.writer
        const { sql } = yield* open(App, { writer, mode: "transactionPooler" })
        assert.deepStrictEqual(yield* KnownFailures.interruptedBehindPooler(sql, place), ["bystander"])
      })
  )

  it.scopedLive("28. a transaction has isolation, access mode and timeouts of its own", () =>
    Effect.gen(function* () {
      const { context, sql } = yield* given(App, { maxConnections: 1 })
      const seen = yield* KnownFailures.settings(sql).pipe(
        App.withTransaction({
          isolation: "serializable",
          access: "read only",
          deferrable: true,
          statementTimeout: "2 seconds",
          lockTimeout: "1 second"
        }),
        Effect.provide(context)
      )
      assert.deepStrictEqual(seen, ["serializable", "on", "on", "2s", "1s"])
      // the next transaction on that connection is as if nothing had been
      const after = yield* sql.withTransaction(KnownFailures.settings(sql))
      assert.deepStrictEqual(after, ["read committed", "off", "off", "0", "0"])
    })
  )

  it.scopedLive(
    "30. requests batched by SqlResolver in a transaction run in it; from two transactions they are kept apart",
    () =>
      Effect.gen(function* () {
        const { place, sql } = yield* given(App)
        const { statements, transactions } = yield* KnownFailures.batches(sql)
        assert.strictEqual(statements, 2)
        for (const { names, own, seen } of transactions) {
          assert.deepStrictEqual(
            seen,
            names.map((name) => ({ name, pid: own }))
          )
        }
        assert.lengthOf(yield* KnownFailures.stored(place), 6)
        // a batch goes on in another fiber, and still nothing of a transaction is left after it
        yield* KnownFailures.oneInsert(sql)
        assert.lengthOf(yield* KnownFailures.stored(place), 7)
      })
  )
})
