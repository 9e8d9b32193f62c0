/**
 * The results of the plain `@effect/sql-pg` client in the scenarios of `knownFailures.test.ts`. If a
 * test fails here, a new version of the client may have fixed that row of the table in
 * examples/guides/sql-pg.md.
 */
import * as Migrator from "@effect/sql/Migrator"
import * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import pg from "pg"
import { behindBouncer, hasBouncer, pooled } from "../support/bouncer.js"
import { makeProxy, sends } from "../support/proxy.js"
import { freshRole, loggedIn } from "../support/roles.js"
import { query } from "../support/server.js"
import * as KnownFailures from "../support/suites/knownFailures.js"
import { batches } from "../support/suites/requestBatches.js"

const open = (options: PgClient.PgClientConfig) =>
  Effect.map(Layer.build(PgClient.layer(options)), (context) => Context.get(context, PgClient.PgClient))

/** Opens a plain client and its database. */
const given = (options: PgClient.PgClientConfig = {}) =>
  Effect.gen(function* () {
    const place = yield* KnownFailures.freshTables
    return { place, sql: yield* open({ url: place.writer, ...options }) }
  })

/** Opens a plain client behind a proxy. */
const givenProxy = (options: PgClient.PgClientConfig = {}) =>
  Effect.gen(function* () {
    const place = yield* KnownFailures.freshTables
    const proxy = yield* makeProxy(place.writer)
    return { place, proxy, sql: yield* open({ url: proxy.url, ...options }) }
  })

/** Returns the driver's error from the only defect with which an effect ended. */
const defect = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<Error, never, R> =>
  Effect.map(Effect.exit(self), (exit) => {
    assert.isTrue(Exit.isFailure(exit))
    const cause = Exit.isFailure(exit) ? exit.cause : Cause.empty
    assert.deepStrictEqual(Chunk.toReadonlyArray(Cause.failures(cause)), [])
    const [error, ...others] = Cause.defects(cause)
    assert.deepStrictEqual(others, [])
    assert.instanceOf(error, SqlError)
    const said = error instanceof SqlError ? error.cause : undefined
    assert.instanceOf(said, Error)
    return said instanceof Error ? said : new Error("no cause")
  })

const migrator = Migrator.make({})

const migrateOn = (sql: PgClient.PgClient) => (loader: Migrator.Loader) =>
  Effect.provideService(migrator({ loader }), SqlClient.SqlClient, sql)

const codeOf = (error: unknown) => (error instanceof pg.DatabaseError ? error.code : undefined)

describe("plain client", () => {
  it.scopedLive("1. inside A's transaction a statement of client B runs on A's connection, in A's database", () =>
    Effect.gen(function* () {
      const a = yield* given()
      const b = yield* given()
      const seen = yield* KnownFailures.statementOfAnother(a.sql, b.sql)
      assert.strictEqual(seen.b?.database, a.place.name)
      assert.strictEqual(seen.b?.pid, seen.a?.pid)
    })
  )

  it.scopedLive("2. B.withTransaction inside A.withTransaction is a savepoint on A, undone with it", () =>
    Effect.gen(function* () {
      const a = yield* given()
      const b = yield* given()
      const error = yield* Effect.flip(KnownFailures.transactionOfAnother(a.sql, b.sql))
      assert.strictEqual(error, "no")
      assert.deepStrictEqual(yield* KnownFailures.stored(a.place), [])
      assert.deepStrictEqual(yield* KnownFailures.stored(b.place), [])
    })
  )

  it.scopedLive("3. a refused COMMIT is a defect", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given()
      assert.strictEqual(codeOf(yield* defect(KnownFailures.commitRefused(sql))), "23503")
      assert.deepStrictEqual(yield* KnownFailures.stored(place), [])
    })
  )

  it.scopedLive("4. a backend is killed inside a transaction: ROLLBACK fails, and its defect hides the cause", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given()
      const error = yield* defect(KnownFailures.backendKilled(sql, place))
      assert.match(error.message, /not queryable/)
      assert.deepStrictEqual(yield* KnownFailures.stored(place), [])
    })
  )

  it.scopedLive("5. a connection lost at BEGIN is a defect", () =>
    Effect.gen(function* () {
      const place = yield* KnownFailures.freshTables
      const proxy = yield* makeProxy(place.writer)
      const sql = yield* open({ url: proxy.url })
      yield* proxy.when(sends("BEGIN"), "cut")
      const error = yield* defect(KnownFailures.oneInsert(sql))
      assert.match(error.message, /not queryable/)
      assert.deepStrictEqual(yield* KnownFailures.stored(place), [])
    })
  )

  it.scopedLive("6. a transaction in which a failure is ignored succeeds, and stores nothing", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given()
      yield* KnownFailures.failureIgnored(sql)
      assert.deepStrictEqual(yield* KnownFailures.stored(place), [])
    })
  )

  it.scopedLive("7. two nested transactions at once: the row of the one that succeeded is lost", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given()
      const [kept, undone] = yield* KnownFailures.siblings(sql)
      assert.isTrue(Exit.isSuccess(kept))
      assert.isTrue(Exit.isFailure(undone))
      assert.deepStrictEqual(yield* KnownFailures.stored(place), [])
    })
  )

  it.scopedLive("8. 200 nested transactions hold 201 locks on transaction ids", () =>
    Effect.gen(function* () {
      const { sql } = yield* given()
      assert.strictEqual(yield* KnownFailures.manyNested(sql), 201)
    })
  )

  it.scopedLive("9. a transaction that waits for a connection does not time out after its 300 ms", () =>
    Effect.gen(function* () {
      const { sql } = yield* given({ maxConnections: 1 })
      assert.isTrue(Option.isNone(yield* KnownFailures.fullPool(sql)))
    })
  )

  it.scopedLive("10. a fiber that outlives its transaction writes into another one, and is rolled back with it", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given({ maxConnections: 1 })
      assert.isTrue(Exit.isSuccess(yield* KnownFailures.daemon(sql)))
      assert.deepStrictEqual(yield* KnownFailures.stored(place), ["first"])
    })
  )

  it.scoped("11. a cancel request that arrives late cancels another fiber's statement", () =>
    Effect.gen(function* () {
      const { place, proxy, sql } = yield* givenProxy({ maxConnections: 2 })
      const exit = yield* KnownFailures.lateCancel(sql, place, proxy, sends("pg_cancel_backend"))
      const error = yield* Effect.flip(exit)
      assert.strictEqual(codeOf(error instanceof SqlError ? error.cause : undefined), "57014")
    })
  )

  it.scopedLive("12. an interruption with every connection in use waits for a connection to cancel with", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given({ maxConnections: 1 })
      assert.isTrue(Option.isNone(yield* KnownFailures.interruptInFullPool(sql, place)))
    })
  )

  it.scopedLive("13. a stream or a reserve that stops waiting for a connection leaks it", () =>
    Effect.gen(function* () {
      const first = yield* given({ maxConnections: 1 })
      assert.isTrue(Option.isNone(yield* KnownFailures.streamGivesUp(first.sql)))
      const second = yield* given({ maxConnections: 1 })
      assert.isTrue(Option.isNone(yield* KnownFailures.reserveGivesUp(second.sql)))
    })
  )

  it.scopedLive("14. a backend dies in the middle of a stream: the stream's finalizer waits for ever", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given()
      assert.isTrue(Option.isNone(yield* KnownFailures.backendDiesInStream(sql, place)))
    })
  )

  it.scopedLive("15. a query inside a stream of the same transaction waits for ever", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given()
      const error = yield* Effect.flip(Effect.timeout(KnownFailures.queryInStream(sql), "1 second"))
      assert.strictEqual(error._tag, "TimeoutException")
      assert.deepStrictEqual(yield* KnownFailures.stored(place), [])
    })
  )

  it.scopedLive("16. a connection that went silent returns to the pool, and the next query times out as well", () =>
    Effect.gen(function* () {
      const { proxy, sql } = yield* givenProxy()
      const error = yield* Effect.flip(yield* KnownFailures.halfOpen(sql, proxy))
      assert.strictEqual(error._tag, "TimeoutException")
    })
  )

  it.scopedLive("17. a transaction with 300 ms on a connection that went silent has not ended a second later", () =>
    Effect.gen(function* () {
      const { proxy, sql } = yield* givenProxy()
      assert.isTrue(Option.isNone(yield* KnownFailures.halfOpenTransaction(sql, proxy)))
    })
  )

  it.scopedLive("18. notify sends invalid SQL", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given()
      const error = yield* Effect.flip(KnownFailures.notifications(sql, place))
      assert.instanceOf(error, SqlError)
      assert.strictEqual(codeOf(error instanceof SqlError ? error.cause : undefined), "42601")
    })
  )

  it.scopedLive("19. the LISTEN connection dies: the listener receives neither messages nor a failure", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given()
      const { ended, heard } = yield* KnownFailures.listenerKilled(sql.listen("news"), place)
      assert.deepStrictEqual(heard, [])
      assert.isTrue(Option.isNone(ended))
      // the server has no LISTEN connection any more, so the stream receives nothing for ever
      const left = yield* query(
        place.writer,
        "SELECT FROM pg_stat_activity WHERE datname = $1 AND query LIKE 'LISTEN%'",
        [place.name]
      )
      assert.lengthOf(left, 0)
    })
  )

  it.scopedLive("20. one of two listeners on a channel stops: the other receives no messages any more", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given()
      assert.deepStrictEqual(yield* KnownFailures.oneListenerStops(sql, place), [])
    })
  )

  it.scopedLive("21. the server ends an idle connection of a pool that was passed in: the process crashes", () =>
    Effect.gen(function* () {
      const { code, lines, stderr } = yield* KnownFailures.idleConnectionEnded("plain")
      assert.notStrictEqual(code, 0)
      assert.match(stderr, /Unhandled 'error' event/)
      assert.lengthOf(lines, 1)
    })
  )

  it.scoped("22. a server that accepts and never answers: the timeout of 5 s does not end the wait", () =>
    Effect.gen(function* () {
      const exit = yield* KnownFailures.silentServer((url) => Layer.build(PgClient.layer({ url })))
      assert.isTrue(Option.isNone(exit))
    })
  )

  it.scopedLive("23. with idleTimeout infinity connections are closed at once", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given({ idleTimeout: Duration.infinity })
      const [before, after] = yield* KnownFailures.idleForAMoment(sql, place)
      assert.notStrictEqual(after, before)
    })
  )

  it.scopedLive("24. two client layers are merged: both tags give the client of the last, without an error", () =>
    Effect.gen(function* () {
      const a = yield* KnownFailures.freshTables
      const b = yield* KnownFailures.freshTables
      const both = Layer.merge(PgClient.layer({ url: a.writer }), PgClient.layer({ url: b.writer }))
      const clients = yield* Effect.all([SqlClient.SqlClient, PgClient.PgClient]).pipe(Effect.provide(both))
      assert.strictEqual(clients[0], clients[1])
      const seen = yield* Effect.flatMap(PgClient.PgClient, KnownFailures.where).pipe(Effect.provide(both))
      assert.strictEqual(seen?.database, b.name)
    })
  )

  it.scopedLive("25. several clients migrate at once: all but one fail", () =>
    Effect.gen(function* () {
      const place = yield* KnownFailures.freshTables
      const clients = yield* Effect.replicateEffect(open({ url: place.writer }), 5)
      const exits = yield* KnownFailures.migrateAtOnce(place, clients.map(migrateOn), 5)
      assert.lengthOf(exits.filter(Exit.isSuccess), 1)
    })
  )

  it.scopedLive("26. a migration with a lower id that is added later is skipped without an error", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given()
      const { exit, isApplied } = yield* KnownFailures.lowerIdLater(place, migrateOn(sql))
      assert.deepStrictEqual(exit, Exit.succeed([]))
      assert.isFalse(isApplied)
    })
  )

  it.scopedLive.skipIf(!hasBouncer)(
    `27. ${behindBouncer} an interrupted statement runs on: its process id belongs to no process`,
    () =>
      Effect.gen(function* () {
        const place = yield* KnownFailures.freshTables
        const sql = yield* open({ url: pooled(place.name)?.writer ?? place.writer })
        assert.deepStrictEqual(yield* KnownFailures.interruptedBehindPooler(sql, place), ["bystander", "interrupted"])
      })
  )

  it.scopedLive("28. a transaction has no options", () =>
    Effect.gen(function* () {
      const { sql } = yield* given()
      const options = { isolation: "serializable", access: "read only", statementTimeout: "2 seconds" }
      // @ts-expect-error it takes an effect and nothing else
      const seen: ReadonlyArray<string> = yield* sql.withTransaction(KnownFailures.settings(sql), options)
      assert.deepStrictEqual(seen, ["read committed", "off", "off", "0", "0"])
    })
  )

  it.scopedLive(
    "29. user and password are fixed at the start: when they have changed, no new connection can be made",
    () =>
      Effect.gen(function* () {
        const place = yield* KnownFailures.freshTables
        const role = yield* freshRole(place.writer)
        const sql = yield* open({ url: loggedIn(place.writer, role) })
        const error = yield* Effect.flip(KnownFailures.passwordChanges(sql, role))
        assert.strictEqual(codeOf(error.cause), "28P01")
      })
  )

  it.scopedLive("30. requests that SqlResolver batches run in the transaction that they belong to", () =>
    Effect.gen(function* () {
      const { sql } = yield* given()
      const { statements, transactions } = yield* batches(sql)
      assert.strictEqual(statements, 2)
      for (const { names, own, seen } of transactions) {
        assert.deepStrictEqual(
          seen,
          names.map((name) => ({ name, pid: own }))
        )
      }
    })
  )

  it.scopedLive("31. a reserved connection is returned in a transaction: the next caller commits its rows", () =>
    Effect.gen(function* () {
      const { place, sql } = yield* given({ maxConnections: 1 })
      assert.deepStrictEqual(yield* KnownFailures.leftOpen(sql), ["left open"])
      assert.deepStrictEqual(yield* KnownFailures.stored(place), ["left open", "next"])
    })
  )
})
