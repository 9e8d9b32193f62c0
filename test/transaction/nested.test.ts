/**
 * `UnitOfWork.nested`: a part that fails alone, by savepoints over every database that it touches.
 */
import { HttpClient, HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { DatabaseError, DatabaseRuntime, RequestTransaction, TestDatabase, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { both, event, events } from "../support/audit.js"
import { Audit, active, Db, fresh, freshTable, insert, Place, stored } from "../support/databases.js"
import { makeProxy, sends } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"

/** A statement on each database, then a failure. */
const undone = Effect.all([insert("undone"), event("undone"), Effect.fail("x")])

/** A proxy in front of a second database. */
const auditProxy = Effect.gen(function* () {
  const { writer } = yield* freshDatabase
  yield* query(writer, "CREATE TABLE event (what text, amount int)")
  return yield* makeProxy(writer)
})

const isStandby = Effect.flatMap(Db.reader, (sql) =>
  Effect.map(sql<{ yes: boolean }>`SELECT pg_is_in_recovery() AS yes`, (rows) => rows[0]?.yes)
)

describe("UnitOfWork.nested", () => {
  it.scopedLive("UnitOfWork.nested undoes a part that fails on every database it touched, and the unit goes on", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* Effect.zipRight(insert("before"), event("before"))
          assert.strictEqual(yield* Effect.flip(UnitOfWork.nested(undone)), "x")
          yield* UnitOfWork.nested(Effect.zipRight(insert("kept"), event("kept")))
          yield* Effect.zipRight(insert("after"), event("after"))
        })
      )
      assert.deepStrictEqual(yield* stored, ["after", "before", "kept"])
      assert.deepStrictEqual(yield* events, ["after", "before", "kept"])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("UnitOfWork.nested undoes a part after a defect, after an interruption and by its outcome", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* insert("kept")
          yield* Effect.exit(UnitOfWork.nested(Effect.zipRight(insert("died"), Effect.die("bug"))))
          yield* UnitOfWork.nested(insert("by outcome"), { outcome: () => "rollback" })
          const sent = yield* Deferred.make<void>()
          const part = yield* insert("interrupted").pipe(
            Effect.zipRight(Deferred.succeed(sent, undefined)),
            Effect.zipRight(Effect.never),
            UnitOfWork.nested(),
            Effect.fork
          )
          yield* Deferred.await(sent)
          assert.isTrue(Exit.isInterrupted(yield* Fiber.interrupt(part)))
          yield* insert("after")
        })
      )
      assert.deepStrictEqual(yield* stored, ["after", "kept"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a part whose statement the server refused is undone alone", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* insert("a")
          const error = yield* UnitOfWork.nested(Effect.zipRight(event("undone"), insert("a"))).pipe(
            DatabaseError.refine,
            Effect.flip
          )
          assert.strictEqual(error._tag, "UniqueViolation")
          yield* insert("b")
        })
      )
      assert.deepStrictEqual([yield* stored, yield* events], [["a", "b"], []])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("UnitOfWork.nested costs no round trip at its beginning, and none at all without a statement", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const proxy = yield* makeProxy(writer)
      yield* Effect.gen(function* () {
        yield* insert("warm")
        const trips = <A, E, R>(self: Effect.Effect<A, E, R>) =>
          Effect.gen(function* () {
            const before = proxy.roundTrips
            yield* self
            return proxy.roundTrips - before
          })
        assert.strictEqual(yield* trips(UnitOfWork.run(UnitOfWork.nested(Effect.void))), 0)
        // the statement with BEGIN and SAVEPOINT, RELEASE, COMMIT
        assert.strictEqual(yield* trips(UnitOfWork.run(UnitOfWork.nested(insert("a")))), 3)
      }).pipe(Effect.provide(Db.layer({ writer: proxy.url })))
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("UnitOfWork.nested drops the hooks of an undone part; only afterRollback runs, after the whole", () =>
    Effect.gen(function* () {
      const log: Array<string> = []
      const note = (text: string) => Effect.sync(() => void log.push(text))
      const hooks = (name: string) =>
        Effect.all([
          Db.beforeCommit(note(`${name}: before`)),
          Db.afterCommit(note(`${name}: committed`)),
          Db.afterRollback(note(`${name}: rolled back`))
        ])
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* Effect.ignore(UnitOfWork.nested(Effect.all([hooks("undone"), insert("x"), Effect.fail("x")])))
          yield* UnitOfWork.nested(Effect.zipRight(hooks("kept"), insert("kept")))
          // without a statement
          yield* Effect.ignore(UnitOfWork.nested(Effect.zipRight(hooks("idle, undone"), Effect.fail("x"))))
          yield* UnitOfWork.nested(hooks("idle, kept"))
          yield* Effect.ignore(
            UnitOfWork.nested(Effect.zipRight(Audit.afterCommit(note("audit: committed")), Effect.fail("x")))
          )
          yield* UnitOfWork.nested(Audit.afterCommit(note("audit kept: committed")))
          assert.deepStrictEqual(log, [])
        })
      )
      assert.sameMembers(log, [
        "kept: before",
        "idle, kept: before",
        "undone: rolled back",
        "kept: committed",
        "idle, undone: rolled back",
        "idle, kept: committed",
        "audit kept: committed"
      ])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("UnitOfWork.nested drops the afterCommit hooks of a part whose end fails, on every database", () =>
    Effect.gen(function* () {
      const log: Array<string> = []
      const note = (text: string) => Effect.sync(() => void log.push(text))
      const part = Effect.all([
        Audit.afterCommit(note("audit: committed")),
        Audit.afterRollback(note("audit: rolled back")),
        insert("undone"),
        Effect.ignore(UnitOfWork.run(Effect.zipRight(insert("joined"), Effect.fail("x"))))
      ])
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* insert("outer")
          const error = yield* UnitOfWork.nested(part).pipe(DatabaseError.refine, Effect.flip)
          assert.strictEqual(error._tag, "RolledBackAtCommit")
        })
      )
      assert.deepStrictEqual(log, ["audit: rolled back"])
      assert.deepStrictEqual(yield* stored, ["outer"])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("UnitOfWork.nested in a bare withTransaction runs the hooks of another database at its own end", () =>
    Effect.gen(function* () {
      const log: Array<string> = []
      const note = (text: string) => Effect.sync(() => void log.push(text))
      yield* Db.withTransaction(
        Effect.gen(function* () {
          yield* UnitOfWork.nested(Effect.zipRight(insert("kept"), Audit.afterCommit(note("audit: committed"))))
          assert.deepStrictEqual(log, ["audit: committed"])
          const undone = Effect.all([Audit.afterCommit(note("no")), Audit.afterRollback(note("audit: rolled back"))])
          yield* Effect.ignore(UnitOfWork.nested(Effect.zipRight(undone, Effect.fail("x"))))
        })
      )
      assert.deepStrictEqual(log, ["audit: committed", "audit: rolled back"])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("UnitOfWork.nested checks all databases before the first RELEASE, also without checkFirst", () =>
    Effect.gen(function* () {
      const part = Effect.all([
        insert("undone"),
        event("undone"),
        Effect.ignore(Effect.flatMap(Audit.writer, (sql) => sql`SELECT 1/0`))
      ])
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* Effect.zipRight(insert("outer"), event("outer"))
          const error = yield* UnitOfWork.nested(part).pipe(DatabaseError.refine, Effect.flip)
          assert.strictEqual(error._tag, "RolledBackAtCommit")
        }),
        { checkFirst: false }
      )
      assert.deepStrictEqual([yield* stored, yield* events], [["outer"], ["outer"]])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("a part whose second RELEASE is lost rolls back the whole transaction of the first database", () =>
    Effect.gen(function* () {
      const proxy = yield* auditProxy
      const tags: Array<string> = []
      const failing = <A, E, R>(self: Effect.Effect<A, E, R>) =>
        Effect.tapError(DatabaseError.refine(self), (error) =>
          Effect.sync(() => tags.push(DatabaseError.isDatabaseError(error) ? error._tag : String(error)))
        )
      const part = failing(UnitOfWork.nested(Effect.zipRight(insert("half"), event("half"))))
      yield* Effect.zipRight(proxy.when(sends("RELEASE"), "cut"), Effect.ignore(part)).pipe(
        Db.withTransaction(),
        failing,
        Audit.withTransaction(),
        Effect.provide(Audit.layer({ writer: proxy.url })),
        Effect.ignore
      )
      // a released savepoint is not stored yet, so the part has not failed with PartialCommit
      assert.deepStrictEqual(tags, ["Disconnected", "RolledBackAtCommit"])
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a lost COMMIT of another database in a bare withTransaction undoes the savepoint alone", () =>
    Effect.gen(function* () {
      const proxy = yield* auditProxy
      yield* Db.withTransaction(
        Effect.gen(function* () {
          yield* insert("outer")
          yield* proxy.when(sends("COMMIT"), "cut")
          const part = Effect.zipRight(insert("undone"), event("undone"))
          const error = yield* UnitOfWork.nested(part).pipe(DatabaseError.refine, Effect.flip)
          assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
        })
      ).pipe(Effect.provide(Audit.layer({ writer: proxy.url })))
      assert.deepStrictEqual(yield* stored, ["outer"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("UnitOfWork.nested nests in itself: an inner part fails alone, and is undone with the outer one", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* UnitOfWork.nested(
            Effect.all([insert("outer"), Effect.ignore(UnitOfWork.nested(undone)), UnitOfWork.nested(event("inner"))])
          )
          yield* Effect.ignore(
            UnitOfWork.nested(Effect.all([UnitOfWork.nested(Effect.all([insert("y"), event("y")])), Effect.fail("x")]))
          )
        })
      )
      assert.deepStrictEqual([yield* stored, yield* events], [["outer"], ["inner"]])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("concurrent nested parts take turns, also if they touch two databases in opposite order", () =>
    Effect.gen(function* () {
      const part = (n: number) => {
        const both = n % 2 === 0 ? [insert(`row ${n}`), event(`row ${n}`)] : [event(`row ${n}`), insert(`row ${n}`)]
        const end = n % 3 === 0 ? Effect.fail("x") : Effect.void
        return Effect.ignore(UnitOfWork.nested(Effect.all([...both, Effect.yieldNow(), end])))
      }
      yield* UnitOfWork.run(Effect.forEach([0, 1, 2, 3, 4, 5, 6, 7], part, { concurrency: "unbounded" }))
      const kept = [1, 2, 4, 5, 7].map((n) => `row ${n}`)
      assert.deepStrictEqual([yield* stored, yield* events], [kept, kept])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("a nested part fails with TransactionBusy if the sibling before it waits for it", () =>
    Effect.gen(function* () {
      const error = yield* UnitOfWork.run(
        Effect.gen(function* () {
          const begun = yield* Deferred.make<void>()
          const beside = yield* Effect.zipRight(Deferred.await(begun), insert("beside")).pipe(
            UnitOfWork.nested(),
            DatabaseError.refine,
            Effect.flip,
            Effect.fork
          )
          return yield* UnitOfWork.nested(
            Effect.zipRight(insert("a"), Effect.zipRight(Deferred.succeed(begun, undefined), Fiber.join(beside)))
          )
        })
      )
      assert.strictEqual(error._tag, "TransactionBusy")
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh({ acquireTimeout: "200 millis" })))
  )

  it.scopedLive("a database that only an undone part has touched is as if it had never been touched", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* Effect.ignore(UnitOfWork.nested(undone))
          // nothing is held, and reads go to the replica
          assert.strictEqual(yield* active, 0)
          assert.strictEqual(yield* isStandby, true)
          yield* insert("kept")
        })
      )
      assert.deepStrictEqual([yield* stored, yield* events], [["kept"], []])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("the snapshot of a repeatable read begins after an undone part, not with it", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const names = Effect.flatMap(Db.writer, (sql) => sql<{ name: string }>`SELECT name FROM item`)
      const seen = yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* Effect.ignore(UnitOfWork.nested(UnitOfWork.nested(undone)))
          yield* query(writer, "INSERT INTO item (name) VALUES ('later')")
          return yield* names
        }),
        { transaction: { isolation: "repeatable read" } }
      )
      assert.deepStrictEqual(seen, [{ name: "later" }])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("a statement that waits while an undone part ends begins the transaction anew", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          const begun = yield* Deferred.make<void>()
          const go = yield* Deferred.make<void>()
          const part = yield* Effect.all([
            insert("undone"),
            Deferred.succeed(begun, undefined),
            Deferred.await(go)
          ]).pipe(Effect.zipRight(Effect.fail("x")), UnitOfWork.nested(), Effect.fork)
          yield* Deferred.await(begun)
          const beside = yield* Effect.fork(insert("beside"))
          yield* Effect.yieldNow()
          yield* Deferred.succeed(go, undefined)
          yield* Fiber.await(part)
          yield* Fiber.join(beside)
        })
      )
      assert.deepStrictEqual(yield* stored, ["beside"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("UnitOfWork.nested is a unit outside of all, and a savepoint in a bare withTransaction", () =>
    Effect.gen(function* () {
      yield* Effect.ignore(UnitOfWork.nested(undone))
      yield* UnitOfWork.nested(Effect.zipRight(insert("alone"), event("alone")))
      yield* Db.withTransaction(
        Effect.gen(function* () {
          yield* insert("bare")
          yield* Effect.ignore(UnitOfWork.nested(undone))
          yield* UnitOfWork.nested(Effect.zipRight(insert("in bare"), event("in bare")))
        })
      )
      assert.deepStrictEqual(yield* stored, ["alone", "bare", "in bare"])
      assert.deepStrictEqual(yield* events, ["alone", "in bare"])
      yield* Effect.ignore(Db.withTransaction(Effect.zipRight(UnitOfWork.nested(insert("gone")), Effect.fail("no"))))
      assert.deepStrictEqual(yield* stored, ["alone", "bare", "in bare"])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("a part that joins a nested part and rolls back fails the nested part only", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* insert("outer")
          const error = yield* Effect.ignore(UnitOfWork.run(undone)).pipe(
            UnitOfWork.nested(),
            DatabaseError.refine,
            Effect.flip
          )
          assert.strictEqual(error._tag, "RolledBackAtCommit")
        })
      )
      assert.deepStrictEqual([yield* stored, yield* events], [["outer"], []])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("the work of a nested part counts as work of the part around it, whose failure fails the unit", () =>
    Effect.gen(function* () {
      const part = UnitOfWork.run(Effect.zipRight(UnitOfWork.nested(insert("half")), Effect.fail("x")))
      const error = yield* Effect.ignore(part).pipe(UnitOfWork.run(), DatabaseError.refine, Effect.flip)
      assert.strictEqual(error._tag, "RolledBackAtCommit")
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("commit and rollback by hand in a nested part fail with PropagationRefused", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* insert("kept")
          for (const end of [Db.commit, Db.rollback, UnitOfWork.commit, UnitOfWork.rollback]) {
            for (const before of [Effect.void, insert("undone")]) {
              const error = yield* Effect.zipRight(before, end).pipe(
                UnitOfWork.nested(),
                DatabaseError.refine,
                Effect.flip
              )
              assert.strictEqual(error._tag, "PropagationRefused")
            }
          }
          for (const end of [Audit.commit, Audit.rollback]) {
            const error = yield* Effect.zipRight(insert("undone"), end).pipe(
              UnitOfWork.nested(),
              DatabaseError.refine,
              Effect.flip
            )
            assert.strictEqual(error._tag === "PropagationRefused" && error.database, "audit")
          }
        })
      )
      assert.deepStrictEqual(yield* stored, ["kept"])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("a fiber that outlives its nested part fails with TransactionEnded, on every database", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* Effect.zipRight(insert("outer"), event("outer"))
          const go = yield* Deferred.make<void>()
          const late = (work: Effect.Effect<unknown, unknown, Db | Audit>) =>
            Effect.forkDaemon(Effect.zipRight(Deferred.await(go), Effect.flip(work)))
          const fibers = yield* UnitOfWork.nested(
            Effect.zipRight(
              insert("in time"),
              Effect.all([late(DatabaseError.refine(insert("late"))), late(DatabaseError.refine(event("late")))])
            )
          )
          yield* Deferred.succeed(go, undefined)
          for (const fiber of fibers) {
            const error = yield* Fiber.join(fiber)
            assert.isTrue(DatabaseError.isDatabaseError(error) && error._tag === "TransactionEnded")
          }
        })
      )
      assert.deepStrictEqual([yield* stored, yield* events], [["in time", "outer"], ["outer"]])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("UnitOfWork.nested leaves a request free to answer 201, with the part undone and the rest stored", () =>
    Effect.gen(function* () {
      const app = Effect.all([insert("kept"), Effect.ignore(UnitOfWork.nested(undone))]).pipe(
        Effect.as(HttpServerResponse.empty({ status: 201 }))
      )
      const router = HttpRouter.empty.pipe(HttpRouter.post("/", app), HttpRouter.use(RequestTransaction.middleware()))
      yield* Layer.build(HttpServer.serve(router))
      assert.strictEqual((yield* HttpClient.post("/")).status, 201)
      assert.deepStrictEqual([yield* stored, yield* events], [["kept"], []])
    }).pipe(Effect.provide(Layer.merge(NodeHttpServer.layerTest, both)))
  )

  it.scopedLive("UnitOfWork.nested works in a sandbox of TestDatabase", () =>
    Effect.gen(function* () {
      const names = Effect.flatMap(Db.writer, (sql) => sql<{ name: string }>`SELECT name FROM item ORDER BY name`)
      yield* Effect.ignore(UnitOfWork.run(UnitOfWork.nested(Effect.zipRight(insert("gone"), Effect.fail("x")))))
      yield* UnitOfWork.run(
        Effect.all([
          Effect.ignore(UnitOfWork.nested(Effect.zipRight(insert("undone"), Effect.fail("x")))),
          insert("a"),
          UnitOfWork.nested(insert("b"))
        ])
      )
      assert.deepStrictEqual(yield* names, [{ name: "a" }, { name: "b" }])
    }).pipe(Effect.provide(TestDatabase.layer(Db)), Effect.provide(fresh()))
  )

  it.live("UnitOfWork.nested is available to plain code as runtime.nested", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { writer } = yield* freshTable
        const runtime = DatabaseRuntime.make({ db: Db }, Db.layer({ writer }), { lazy: true })
        const { db } = runtime.databases
        yield* Effect.promise(() =>
          runtime.unitOfWork(async () => {
            await db.writer`INSERT INTO item (name) VALUES ('kept')`
            await runtime
              .nested(async () => {
                await db.writer`INSERT INTO item (name) VALUES ('undone')`
                throw new Error("x")
              })
              .catch(() => "caught")
            await runtime.nested(() => db.writer`INSERT INTO item (name) VALUES ('nested')`)
          })
        )
        yield* Effect.promise(() => runtime.close())
        const rows = yield* query<{ name: string }>(writer, "SELECT name FROM item ORDER BY name")
        assert.deepStrictEqual(rows, [{ name: "kept" }, { name: "nested" }])
      })
    )
  )
})
