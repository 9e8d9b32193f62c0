/**
 * Scenarios in which plain clients fail, row by row of the table in `examples/guides/sql-pg.md`. `plainClient.test.ts` shows the plain client
 * in the same scenarios.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { Database, DatabaseError, Migrations, RetryPolicy } from "effect-db"
import { withRealClock } from "../../src/internal/embedded/realClock.js"
import { behindBouncer, hasBouncer, pooled } from "../support/bouncer.js"
import { eventually, until } from "../support/eventually.js"
import { taggedFailure } from "../support/failures.js"
import { makeProxy, sends } from "../support/proxy.js"
import { anonymous, freshRole } from "../support/roles.js"
import * as KnownFailures from "../support/suites/knownFailures.js"
import { batches, batchesKeptApart } from "../support/suites/requestBatches.js"

class App extends Database.Service<App>()("app") {}
class Audit extends Database.Service<Audit>()("audit") {}

/** Opens a database of effect-db, and asserts at the end of the scope that no connection is checked out. */
const open = <Self>(database: Database.Class<Self, string>, options: Database.Options) =>
  Effect.gen(function* () {
    const context = yield* Layer.build(database.layer(options))
    const active = Effect.map(Effect.provide(database.status, context), ({ servers }) =>
      servers.reduce((sum, { reads, writes }) => sum + reads.active + (writes?.active ?? 0), 0)
    )
    yield* Effect.addFinalizer(() =>
      // a connection that was lost counts until its socket is closed
      withRealClock(eventually(active, (n) => n === 0))
    )
    return { context, sql: yield* Effect.provide(database.writer, context) }
  })

/** Creates a database and opens it with effect-db; returns its address as well. */
const given = <Self>(database: Database.Class<Self, string>, options: Partial<Database.Options> = {}) =>
  Effect.gen(function* () {
    const place = yield* KnownFailures.freshTables
    return { place, ...(yield* open(database, { writer: place.writer, ...options })) }
  })

/** Opens a new database behind a proxy. */
const givenProxy = (options: Partial<Database.Options> = {}) =>
  Effect.gen(function* () {
    const place = yield* KnownFailures.freshTables
    const proxy = yield* makeProxy(place.writer)
    return { place, proxy, ...(yield* open(App, { writer: proxy.url, ...options })) }
  })

/** Returns the exit of an effect, or throws if the effect has not ended in time. */
const inTime = <A, E>(exit: Option.Option<Exit.Exit<A, E>>): Exit.Exit<A, E> =>
  Option.getOrThrowWith(exit, () => new Error("the effect has not ended in time"))

/** Asserts that an effect ended with the TimeoutException of its time limit. */
const timedOut = <A, E>(exit: Exit.Exit<A, E>) =>
  assert.isTrue(Exit.isFailure(exit) && Cause.pretty(exit.cause).startsWith("TimeoutException"), String(exit))

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

  it.scopedLive("2. B.withTransaction inside A.withTransaction is a transaction on B, kept if A's is undone", () =>
    Effect.gen(function* () {
      const a = yield* given(App)
      const b = yield* given(Audit)
      const exit = yield* Effect.exit(KnownFailures.transactionOfAnother(a.sql, b.sql))
      assert.deepStrictEqual(exit, Exit.fail("no"))
      assert.deepStrictEqual(yield* KnownFailures.stored(a.place), [])
      assert.deepStrictEqual(yield* KnownFailures.stored(b.place), ["b"])
    })
  )

  it.scopedLive("3. a refused COMMIT fails with CommitFailed, whose cause is the violation", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App)
      const error = yield* taggedFailure("CommitFailed", KnownFailures.commitRefused(sql))
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

  it.scopedLive("4. a transaction whose backend is killed fails as Disconnected with the outcome undone", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App)
      const before = yield* KnownFailures.where(sql)
      const error = yield* taggedFailure("Disconnected", KnownFailures.backendKilled(sql, place))
      assert.strictEqual(error.database, "app")
      assert.strictEqual(error.server, `127.0.0.1:${sql.config.port}`)
      assert.strictEqual(error.outcome, "undone")
      assert.deepStrictEqual(yield* KnownFailures.stored(place), [])
      // the same client continues on another connection
      yield* KnownFailures.oneInsert(sql)
      assert.notStrictEqual((yield* KnownFailures.where(sql))?.pid, before?.pid)
      assert.deepStrictEqual(yield* KnownFailures.stored(place), ["x"])
    })
  )

  it.scopedLive("5. a connection lost at BEGIN is retried, and at last fails as Disconnected with notSent", () =>
    Effect.gen(function* () {
      const place = yield* KnownFailures.freshTables
      const proxy = yield* makeProxy(place.writer)
      const { sql } = yield* open(App, { writer: proxy.url })
      const twice = RetryPolicy.with({ acquire: Schedule.recurs(2) })
      yield* proxy.when(sends("BEGIN"), "cut", 3)
      const error = yield* taggedFailure("Disconnected", twice(KnownFailures.oneInsert(sql)))
      assert.strictEqual(error.database, "app")
      assert.strictEqual(error.server, `127.0.0.1:${proxy.port}`)
      assert.strictEqual(error.outcome, "notSent")
      assert.deepStrictEqual(yield* KnownFailures.stored(place), [])
      yield* proxy.when(sends("BEGIN"), "cut", 2)
      yield* twice(KnownFailures.oneInsert(sql))
      assert.deepStrictEqual(yield* KnownFailures.stored(place), ["x"])
    })
  )

  it.scopedLive("6. a transaction in which a failure is ignored fails with RolledBackAtCommit and its cause", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App)
      const error = yield* taggedFailure("RolledBackAtCommit", KnownFailures.failureIgnored(sql))
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

  it.scopedLive("9. a transaction that waits for a connection times out after its 300 ms", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App, { maxConnections: 1 })
      timedOut(inTime(yield* KnownFailures.fullPool(sql)))
      assert.deepStrictEqual(yield* KnownFailures.stored(place), ["held"])
    })
  )

  it.scopedLive("10. a fiber that outlives its transaction fails with TransactionEnded, and affects no other", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App, { maxConnections: 1 })
      const error = yield* taggedFailure("TransactionEnded", Effect.flatten(KnownFailures.daemon(sql)))
      assert.strictEqual(error.database, "app")
      assert.deepStrictEqual(yield* KnownFailures.stored(place), ["first"])
    })
  )

  it.scoped("11. a cancel request that arrives late cancels no other statement", () =>
    Effect.gen(function* () {
      const { place, proxy, sql } = yield* givenProxy({ maxConnections: 2 })
      const exit = yield* KnownFailures.lateCancel(sql, place, proxy, ({ type }) => type === "cancel")
      assert.isTrue(Exit.isSuccess(exit), String(exit))
    })
  )

  it.scopedLive("12. an interruption with every connection in use ends in less than a second", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App, { maxConnections: 1 })
      const interrupted = yield* inTime(yield* KnownFailures.interruptInFullPool(sql, place))
      assert.isTrue(Exit.isInterrupted(interrupted))
    })
  )

  it.scopedLive("13. a stream and a reserve that stop waiting for a connection leak none", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App, { maxConnections: 1 })
      yield* inTime(yield* KnownFailures.streamGivesUp(sql))
      assert.deepStrictEqual(yield* KnownFailures.stored(place), ["held", "next"])
      yield* sql`DELETE FROM item`
      yield* inTime(yield* KnownFailures.reserveGivesUp(sql))
      assert.deepStrictEqual(yield* KnownFailures.stored(place), ["held", "next"])
    })
  )

  it.scopedLive("14. a backend that dies in the middle of a stream fails the stream in less than a second", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App)
      const exit = inTime(yield* KnownFailures.backendDiesInStream(sql, place))
      assert.strictEqual((yield* taggedFailure("Disconnected", exit)).outcome, "undone")
    })
  )

  it.scopedLive("15. a query inside a stream of the same transaction works", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App)
      yield* KnownFailures.queryInStream(sql)
      assert.lengthOf(yield* KnownFailures.stored(place), 200)
    })
  )

  it.scopedLive("16. a connection that went silent is destroyed, and the next query works", () =>
    Effect.gen(function* () {
      const { proxy, sql } = yield* givenProxy()
      yield* yield* KnownFailures.halfOpen(sql, proxy)
      yield* until(() => proxy.connections === 1)
      assert.strictEqual(proxy.connections, 1)
    })
  )

  it.scopedLive("17. a transaction with 300 ms on a connection that went silent ends within a second more", () =>
    Effect.gen(function* () {
      const { place, proxy, sql } = yield* givenProxy()
      timedOut(inTime(yield* KnownFailures.halfOpenTransaction(sql, proxy)))
      assert.deepStrictEqual(yield* KnownFailures.stored(place), [])
    })
  )

  it.scopedLive("18. notify is delivered, inside a transaction at its COMMIT, and not after a rollback", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App)
      const heard = yield* KnownFailures.notifications(sql, place)
      assert.deepStrictEqual(heard, ["plain", "before the commit", "inside", "last"])
    })
  )

  it.scopedLive("19. a LISTEN connection that dies is replaced, and a Gap reports that messages may be missing", () =>
    Effect.gen(function* () {
      const { context, place, sql } = yield* given(App)
      const listening = App.listen("news").pipe(
        Stream.map((one) => (one._tag === "Message" ? one.payload : one._tag)),
        Stream.provideContext(context)
      )
      const { ended, heard } = yield* KnownFailures.listenerKilled(listening, place)
      assert.isTrue(Option.isNone(ended))
      assert.deepStrictEqual(heard, ["Listening", "Gap", "after"])
      // a stream of payloads cannot contain a Gap, so it fails; with a retry it listens again
      const plain = yield* KnownFailures.listenerKilled(sql.listen("news"), place)
      assert.deepStrictEqual(plain.heard, [])
      const error = yield* taggedFailure("ListenFailed", Effect.flatten(plain.ended))
      assert.strictEqual(error.reason, "disconnected")
      const again = yield* KnownFailures.listenerKilled(Stream.retry(sql.listen("news"), Schedule.recurs(1)), place)
      assert.isTrue(Option.isNone(again.ended))
      assert.deepStrictEqual(again.heard, ["after"])
    })
  )

  it.scopedLive("20. one of two listeners on a channel stops: the other still receives messages", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App)
      assert.deepStrictEqual(yield* KnownFailures.oneListenerStops(sql, place), ["news", "end"])
    })
  )

  it.scopedLive("21. the server ends an idle connection: the program continues on another connection", () =>
    Effect.gen(function* () {
      const { code, lines, stderr } = yield* KnownFailures.idleConnectionEnded("effect-db")
      assert.strictEqual(code, 0, stderr)
      assert.lengthOf(lines, 2)
      assert.notStrictEqual(lines[0], lines[1])
    })
  )

  it.scoped("22. a server accepts and never answers: the connect fails as unresponsive at connectTimeout", () =>
    Effect.gen(function* () {
      const exit = inTime(
        yield* KnownFailures.silentServer((writer) => Layer.build(App.layer({ writer, connectTimeout: "300 millis" })))
      )
      assert.strictEqual((yield* taggedFailure("ConnectFailed", exit)).reason, "unresponsive")
    })
  )

  it.scopedLive("23. with idleTimeout infinity an idle connection is kept", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App, { idleTimeout: Duration.infinity })
      const [before, after] = yield* KnownFailures.idleForAMoment(sql, place)
      assert.strictEqual(after, before)
    })
  )

  it.scopedLive("24. two databases whose layers are merged are both provided, each under its own tag", () =>
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

  it.scopedLive("25. several clients migrate at once: all succeed, and each migration runs once", () =>
    Effect.gen(function* () {
      const place = yield* KnownFailures.freshTables
      const databases = yield* Effect.replicateEffect(open(App, { writer: place.writer }), 5)
      const exits = yield* KnownFailures.migrateAtOnce(
        place,
        databases.map(
          ({ context }) =>
            (loader) =>
              Effect.provide(Migrations.run(App, { loader }), context)
        ),
        // the other runs wait for the holder of the lock
        1
      )
      const applied = exits.map((exit) => (Exit.isSuccess(exit) ? JSON.stringify(exit.value) : String(exit.cause)))
      assert.deepStrictEqual(applied.sort(), ['[[1,"first"],[2,"second"]]', "[]", "[]", "[]", "[]"])
    })
  )

  it.scopedLive("26. a migration with a lower id that is added later is an error that names it", () =>
    Effect.gen(function* () {
      const { context, place } = yield* given(App)
      const { exit, isApplied } = yield* KnownFailures.lowerIdLater(place, (loader) =>
        Effect.provide(Migrations.run(App, { loader }), context)
      )
      const error = yield* Effect.flip(exit)
      assert.strictEqual(error._tag === "MigrationFailed" && error.reason, "outOfOrder")
      assert.include(error.message, "1_first")
      assert.isFalse(isApplied)
    })
  )

  it.scopedLive.skipIf(!hasBouncer)(`27. ${behindBouncer} an interruption cancels its own statement alone`, () =>
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
      // the next transaction on that connection has its usual settings
      const after = yield* sql.withTransaction(KnownFailures.settings(sql))
      assert.deepStrictEqual(after, ["read committed", "off", "off", "0", "0"])
    })
  )

  it.scopedLive("29. the password is requested for each new connection, so that a changed one is used", () =>
    Effect.gen(function* () {
      const place = yield* KnownFailures.freshTables
      const role = yield* freshRole(place.writer)
      const { sql } = yield* open(App, {
        writer: anonymous(place.writer),
        credentials: Effect.sync(() => role.credentials)
      })
      assert.strictEqual((yield* KnownFailures.passwordChanges(sql, role))?.database, place.name)
    })
  )

  it.scopedLive(
    "30. requests that SqlResolver batches run in their transaction, and those of two transactions are kept apart",
    () =>
      Effect.gen(function* () {
        const { place, sql } = yield* given(App)
        yield* batchesKeptApart(yield* batches(sql), place)
        // a batch runs in another fiber; no transaction is left open there
        yield* KnownFailures.oneInsert(sql)
        assert.lengthOf(yield* KnownFailures.stored(place), 7)
      })
  )

  it.scopedLive("31. a reserved connection is returned in a transaction: its work is rolled back", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given(App, { maxConnections: 1 })
      assert.deepStrictEqual(yield* KnownFailures.leftOpen(sql), [])
      assert.deepStrictEqual(yield* KnownFailures.stored(place), ["next"])
    })
  )
})
