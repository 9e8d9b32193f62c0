/**
 * The writes that a causal session records, by every kind of statement, and the waits of its reads.
 */
import * as SqlResolver from "@effect/sql/SqlResolver"
import { assert, layer } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { Consistency, DatabaseError, UnitOfWork } from "effect-db"
import {
  Cluster,
  caughtUp,
  cluster,
  freshId,
  hasty,
  insertId,
  isStored,
  open,
  patient,
  pause,
  read,
  replica,
  saysWhere,
  tokenIn,
  waitingRead,
  withProxiedPrimary,
  write
} from "../support/cluster.js"
import { Db, idle } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { taggedFailure } from "../support/failures.js"
import { fakeTimers } from "../support/fakeTimers.js"
import { answers, makeProxy } from "../support/proxy.js"
import { query } from "../support/server.js"

/** Inserts rows with these ids, and returns the ids. */
const insertAll = (ids: ReadonlyArray<number>) =>
  Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO item ${sql.insert(ids.map((id) => ({ id })))} RETURNING id`)

/** Makes a resolver that inserts a batch of ids. */
const resolver = <Tag extends string>(tag: Tag, execute: typeof insertAll) =>
  SqlResolver.ordered(tag, {
    Request: Schema.Number,
    Result: Schema.Struct({ id: Schema.Number }),
    withContext: true,
    execute
  })

layer(cluster, { excludeTestServices: true, timeout: "30 seconds" })("a causal session", (it) => {
  it.scoped("a write on a reserved connection after another COMMIT of the session is seen", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      yield* Effect.scoped(
        Effect.gen(function* () {
          const connection = yield* sql.reserve
          yield* write // its token replaces "unknown"
          yield* caughtUp
          yield* pause(yield* replica(0))
          const id = freshId()
          yield* connection.execute(`INSERT INTO item (id) VALUES (${id})`, [], undefined)
          assert.isTrue((yield* read(id)).there)
        })
      )
    }).pipe(Consistency.withSession(hasty()), Effect.provide(open([0])))
  )

  it.scoped("a reader's transaction sees the writes that were committed before its first statement", () =>
    Effect.gen(function* () {
      yield* caughtUp
      yield* pause(yield* replica(0))
      const reader = yield* Db.reader
      const seen = yield* reader.withTransaction(Effect.flatMap(write, read))
      assert.isTrue(seen.there)
    }).pipe(Consistency.withSession(hasty()), Effect.provide(open([0])))
  )

  it.scoped("an interrupted write that the server has answered makes the session read the primary", () =>
    withProxiedPrimary(hasty(), ({ proxy }) =>
      Effect.gen(function* () {
        yield* write
        yield* caughtUp
        yield* pause(yield* replica(0))
        const asked = yield* proxy.when(saysWhere, "freeze")
        const id = freshId()
        const writing = yield* Effect.fork(insertId(id))
        yield* asked
        yield* Fiber.interrupt(writing)
        assert.isTrue(yield* isStored(id))
        assert.isTrue((yield* read(id)).there)
      })
    )
  )

  it.scoped("a wait for a replica that is longer than acquireTimeout still ends with a read of the primary", () =>
    Effect.gen(function* () {
      const { primary } = yield* Cluster
      yield* pause(yield* replica(0))
      const exit = yield* Effect.exit(Effect.flatMap(write, read)).pipe(
        Consistency.withSession(Consistency.makeSession({ maxWait: "600 millis" }))
      )
      if (Exit.isFailure(exit)) return assert.fail(String(exit.cause))
      assert.strictEqual(exit.value.port, primary.port)
    }).pipe(Effect.provide(open([0], { acquireTimeout: "500 millis" })))
  )

  it.scoped("acquireTimeout bounds the whole read, however long it would wait for a replica", () =>
    Effect.gen(function* () {
      const { primary } = yield* Cluster
      yield* pause(yield* replica(0))
      const seen = yield* Effect.flatMap(write, read).pipe(
        Consistency.withSession(Consistency.makeSession({ maxWait: Duration.infinity }))
      )
      assert.deepStrictEqual(seen, { port: primary.port, there: true })
    }).pipe(Effect.provide(open([0], { acquireTimeout: "500 millis" })))
  )

  it.scoped("a read that no replica could serve does not send the other reads of its unit to the primary", () =>
    Effect.gen(function* () {
      const session = patient()
      const id = yield* Consistency.withSession(write, session)
      yield* caughtUp
      const token = tokenIn(session)
      const server = yield* replica(0)
      const ahead = new Consistency.Token({ ...token, lsn: token.lsn + 10_000_000n })
      const strict = Consistency.AtLeast({ token: ahead, maxWait: 0, otherwise: "fail" })
      const ports = yield* UnitOfWork.run(
        Effect.gen(function* () {
          const before = yield* read(id)
          yield* Effect.exit(Db.withConsistency(read(id), strict))
          return [before.port, (yield* read(id)).port]
        })
      )
      assert.deepStrictEqual(ports, [server.port, server.port])
    }).pipe(Effect.provide(open([0])))
  )

  it.scoped(
    "a read with no token in place of its token goes to the primary, or fails, and returns its connection",
    () =>
      Effect.gen(function* () {
        const { primary } = yield* Cluster
        // the token that a session without a write has, in a program without types
        const token = Consistency.makeSession().known.get("app") as Consistency.Token
        const strict = Consistency.AtLeast({ token, otherwise: "fail" })
        for (let i = 0; i < 3; i++) {
          const seen = yield* Db.withConsistency(read(0), Consistency.AtLeast({ token }))
          assert.strictEqual(seen.port, primary.port)
          const error = yield* read(0).pipe(Db.withConsistency(strict), DatabaseError.refine, Effect.flip)
          assert.strictEqual(error._tag === "NoReplicaCaughtUp" && error.reason, "position")
        }
        yield* idle
      }).pipe(Effect.provide(open([0], { maxConnections: 2 })))
  )

  it.scoped("a token beyond the last record of the primary is not waited for", () =>
    Effect.gen(function* () {
      const { primary } = yield* Cluster
      const server = yield* replica(0)
      const session = patient()
      const id = yield* Consistency.withSession(write, session)
      yield* caughtUp
      const token = tokenIn(session)
      const ahead = new Consistency.Token({ ...token, lsn: token.lsn + 10_000_000n })
      /** Runs a read with timers that let a second pass at most. */
      const hasty = <A, E, R>(reading: Effect.Effect<A, E, R>) =>
        Effect.gen(function* () {
          const pass = yield* fakeTimers
          const fiber = yield* Effect.fork(reading)
          for (let i = 0; i < 100 && fiber.unsafePoll() === null; i++) {
            yield* pass(10)
            yield* query(server.url(), "SELECT 1")
          }
          return yield* fiber.unsafePoll() ?? assert.fail("the read still waits")
        }).pipe(Effect.scoped)
      const strict = Consistency.AtLeast({ token: ahead, maxWait: "20 seconds", otherwise: "fail" })
      const error = yield* hasty(read(id).pipe(Db.withConsistency(strict))).pipe(DatabaseError.refine, Effect.flip)
      assert.strictEqual(error._tag, "NoReplicaCaughtUp")
      const ofAhead = Consistency.makeSession({ tokens: [ahead], maxWait: "20 seconds" })
      assert.strictEqual((yield* hasty(Consistency.withSession(read(id), ofAhead))).port, primary.port)
    }).pipe(Effect.provide(open([0])))
  )

  it.scoped("a replica reaches the token of a committed write, although another transaction is still open", () =>
    Effect.gen(function* () {
      const server = yield* replica(0)
      const ready = yield* Deferred.make<void>()
      const over = yield* Deferred.make<void>()
      // an open transaction of another session
      const other = yield* Effect.fork(
        Db.withTransaction(
          Effect.zipRight(
            insertId(freshId()),
            Effect.zipRight(Deferred.succeed(ready, undefined), Deferred.await(over))
          )
        )
      )
      yield* Deferred.await(ready)
      const seen: Array<number> = []
      const session = hasty()
      yield* Effect.gen(function* () {
        // the session writes, and the replica has the write
        yield* write
        yield* caughtUp
        yield* read(1)
        for (let i = 0; i < 20; i++) seen.push((yield* read(1)).port)
      }).pipe(Consistency.withSession(session))
      yield* Deferred.succeed(over, undefined)
      yield* Fiber.join(other)
      assert.deepStrictEqual([...new Set(seen)], [server.port])
    }).pipe(Effect.provide(open([0])))
  )

  it.scoped("a session with an unknown position receives one when it has read the primary", () =>
    Effect.gen(function* () {
      const server = yield* replica(0)
      const sql = yield* Db.writer
      const session = patient()
      yield* Effect.gen(function* () {
        yield* Effect.scoped(Effect.asVoid(sql.reserve))
        yield* read(1)
        assert.strictEqual((yield* read(1)).port, server.port)
      }).pipe(Consistency.withSession(session))
    }).pipe(Effect.provide(open([0])))
  )

  it.scoped("a write that COMMIT AND CHAIN commits is seen, although its transaction fails", () =>
    Effect.gen(function* () {
      yield* write
      yield* caughtUp
      yield* pause(yield* replica(0))
      const sql = yield* Db.writer
      const id = freshId()
      yield* Effect.exit(
        Db.withTransaction(
          Effect.gen(function* () {
            yield* insertId(id)
            yield* sql`COMMIT AND CHAIN`
            return yield* Effect.fail("no")
          })
        )
      )
      assert.isTrue(yield* isStored(id))
      assert.isTrue((yield* read(id)).there)
    }).pipe(Consistency.withSession(hasty()), Effect.provide(open([0])))
  )

  it.scoped("the token that a read requires does not replace that of the session", () =>
    Effect.gen(function* () {
      const session = hasty()
      yield* Consistency.withSession(write, session)
      const token = tokenIn(session)
      yield* caughtUp
      yield* pause(yield* replica(0))
      const id = yield* Consistency.withSession(write, session)
      const seen = yield* read(id).pipe(
        Db.withConsistency(Consistency.AtLeast({ token, maxWait: 0 })),
        Consistency.withSession(session)
      )
      assert.isTrue(seen.there)
    }).pipe(Effect.provide(open([0])))
  )

  it.scoped("a write in a session is recorded in it, also in a transaction that began before the session", () =>
    Effect.gen(function* () {
      yield* caughtUp
      yield* pause(yield* replica(0))
      const session = hasty()
      const id = freshId()
      yield* UnitOfWork.run(Effect.zipRight(insertId(freshId()), Consistency.withSession(insertId(id), session)))
      assert.isTrue((yield* Consistency.withSession(read(id), session)).there)
    }).pipe(Effect.provide(open([0])))
  )

  it.scoped("a token that was requested before an unknown position does not replace it", () =>
    withProxiedPrimary(
      hasty(),
      ({ proxy, session }) =>
        Effect.gen(function* () {
          // the answer to the first COMMIT is under way while the second COMMIT is lost
          yield* Effect.all([write, write], { concurrency: 2 })
          const answered = yield* proxy.when(answers("COMMIT"), "freeze")
          const first = yield* Effect.fork(write)
          yield* answered
          yield* caughtUp
          yield* pause(yield* replica(0))
          yield* proxy.when(answers("COMMIT"), "cut")
          const id = freshId()
          const error = yield* Db.withTransaction(insertId(id)).pipe(DatabaseError.refine, Effect.flip)
          assert.strictEqual(error._tag, "CommitOutcomeUnknown")
          assert.strictEqual(session.known.get("app"), "unknown")
          yield* proxy.thaw
          yield* Fiber.join(first)
          assert.isTrue(yield* isStored(id))
          assert.isTrue((yield* read(id)).there)
        }),
      { outcome: "unknown" }
    )
  )

  it.scoped("a read waits only maxWait for a replica that does not report its position", () =>
    Effect.gen(function* () {
      const { primary } = yield* Cluster
      const proxy = yield* makeProxy((yield* replica(0)).url("app"))
      yield* Effect.gen(function* () {
        const session = Consistency.makeSession({ maxWait: "100 millis" })
        const id = yield* Consistency.withSession(write, session)
        yield* Effect.all([read(id), read(id)], { concurrency: 2 }) // opens both connections
        yield* proxy.when(saysWhere, "freeze", 10)
        const seen = yield* Effect.timeoutOption(Consistency.withSession(read(id), session), "5 seconds")
        if (seen._tag === "None") return assert.fail("after 5 seconds there was no answer")
        assert.deepStrictEqual(seen.value, { port: primary.port, there: true })
      }).pipe(Effect.provide(open([], { writer: primary.url("app"), readers: [proxy.url] })))
    })
  )

  it.scoped("a replica selection that is interrupted checks out no connection", () =>
    Effect.gen(function* () {
      const { primary } = yield* Cluster
      const proxy = yield* makeProxy(primary.url("app"))
      yield* Effect.gen(function* () {
        // a token of a lost timeline: the primary is asked for its position
        const token = new Consistency.Token({ database: "app", systemId: "1", timeline: 1, lsn: 1n })
        const reader = yield* Db.reader
        const asked = yield* proxy.when(saysWhere, "freeze")
        const work = reader.withTransaction(
          Effect.gen(function* () {
            const first = yield* Effect.fork(reader`SELECT 1`)
            yield* asked
            yield* Fiber.interrupt(first)
            yield* reader`SELECT 1`
            // until the connection of the interrupted read is closed
            yield* eventually(Db.status, ({ servers }) => servers[0]?.reads.total === 1)
            return yield* reader`SELECT 1`
          })
        )
        const exit = yield* Effect.exit(Consistency.withSession(work, Consistency.makeSession({ tokens: [token] })))
        yield* idle
        const { transactions } = yield* Db.status
        assert.isTrue(Exit.isSuccess(exit))
        assert.deepStrictEqual(transactions, [])
      }).pipe(Effect.provide(open([0], { writer: proxy.url })))
    })
  )

  it.scoped("a write by a resolver of batched requests is recorded in the session, in a unit without other work", () =>
    Effect.gen(function* () {
      const add = yield* resolver("Add", insertAll)
      yield* pause(yield* replica(0))
      const id = freshId()
      yield* UnitOfWork.run(add.execute(id))
      assert.isTrue((yield* read(id)).there)
      const other = freshId()
      const inner = hasty()
      yield* UnitOfWork.run(Consistency.withSession(add.execute(other), inner))
      assert.isTrue((yield* Consistency.withSession(read(other), inner)).there)
    }).pipe(Consistency.withSession(hasty()), Effect.provide(open([0])))
  )

  it.scoped("a write that a resolver of batched requests sends outside of the unit is recorded in the session", () =>
    Effect.gen(function* () {
      const add = yield* resolver("AddOutside", (ids) => UnitOfWork.outside(insertAll(ids)))
      yield* pause(yield* replica(0))
      const id = freshId()
      const inner = hasty()
      yield* UnitOfWork.run(Consistency.withSession(add.execute(id), inner))
      assert.isTrue((yield* Consistency.withSession(read(id), inner)).there)
    }).pipe(Consistency.withSession(hasty()), Effect.provide(open([0])))
  )

  it.scoped("a read that waits for a replica while its database closes fails with DatabaseClosed", () =>
    Effect.gen(function* () {
      yield* pause(yield* replica(0))
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(open([0]), scope)
      const waiting = yield* Effect.provide(waitingRead, context)
      yield* Scope.close(scope, Exit.void)
      yield* taggedFailure("DatabaseClosed", Fiber.join(waiting))
    })
  )
})
