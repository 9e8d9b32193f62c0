import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { DatabaseError, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { auditBehindProxy, both, event, events } from "../support/audit.js"
import { behind } from "../support/behind.js"
import { Audit, active, Db, fresh, insert, Place, pid, run, stored } from "../support/databases.js"
import { turn } from "../support/eventually.js"
import { answers, makeProxy, sends } from "../support/proxy.js"
import { query } from "../support/server.js"

/** Reads by the reader: if the server is a replica, and the number of rows. */
const standby = Effect.flatMap(Db.reader, (sql) =>
  Effect.map(
    sql<{ yes: boolean; n: number }>`SELECT pg_is_in_recovery() AS yes, (SELECT count(*)::int FROM item) AS n`,
    (rows) => rows[0]
  )
)

describe("UnitOfWork", () => {
  it.scopedLive("a unit of work commits all databases that it has used, or none", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(Effect.zipRight(insert("a"), event("a added")))
      yield* Effect.ignore(
        UnitOfWork.run(Effect.zipRight(insert("b"), Effect.zipRight(event("b added"), Effect.fail("no"))))
      )
      yield* Effect.exit(
        UnitOfWork.run(Effect.zipRight(insert("c"), Effect.zipRight(event("c added"), Effect.die("no"))))
      )
      const touched = yield* Deferred.make<void>()
      const fiber = yield* Effect.fork(
        UnitOfWork.run(Effect.all([insert("d"), event("d added"), Deferred.succeed(touched, undefined), Effect.never]))
      )
      yield* Deferred.await(touched)
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(yield* stored, ["a"])
      assert.deepStrictEqual(yield* events, ["a added"])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("a unit without a statement opens no connection", () =>
    // a connect that is late is replaced by another one, if there is room for it
    behind({ startup: "lazy", maxConnections: 1 }, (proxy) =>
      Effect.gen(function* () {
        yield* UnitOfWork.run(Effect.zipRight(Db.writer, Db.reader))
        assert.strictEqual(proxy.accepted, 0)
        yield* UnitOfWork.run(insert("a"))
        assert.strictEqual(proxy.accepted, 1)
      })
    )
  )

  it.scopedLive("the option outcome decides if a unit commits, whatever its exit", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(insert("undone"), { outcome: () => "rollback" })
      const exit = yield* Effect.exit(
        UnitOfWork.run(Effect.zipRight(insert("kept"), Effect.fail("but stored")), { outcome: () => "commit" })
      )
      assert.deepStrictEqual(exit, Exit.fail("but stored"))
      assert.deepStrictEqual(yield* stored, ["kept"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("independent work in withTransaction or runNew is stored as a whole or not at all", () =>
    Effect.gen(function* () {
      const two = (name: string) => Effect.zipRight(insert(`${name} 1`), insert(`${name} 2`))
      const undone = Effect.zipRight(insert("undone"), Effect.fail("no"))
      yield* Effect.all([
        insert("outer"),
        Db.independent(Db.withTransaction(two("a"))),
        Db.independent(UnitOfWork.runNew(two("b"))),
        Effect.ignore(Db.independent(Db.withTransaction(undone))),
        Effect.ignore(Db.independent(UnitOfWork.runNew(undone))),
        Effect.fail("no")
      ]).pipe(UnitOfWork.run(), Effect.ignore)
      assert.deepStrictEqual(yield* stored, ["a 1", "a 2", "b 1", "b 2"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a nested run joins the unit, and runNew does not", () =>
    Effect.gen(function* () {
      yield* Effect.ignore(
        UnitOfWork.run(
          Effect.gen(function* () {
            yield* insert("outer")
            const outer = yield* pid
            assert.strictEqual(yield* UnitOfWork.run(Effect.zipRight(insert("joined"), pid)), outer)
            assert.notStrictEqual(yield* UnitOfWork.runNew(Effect.zipRight(insert("new"), pid)), outer)
            return yield* Effect.fail("no")
          })
        )
      )
      assert.deepStrictEqual(yield* stored, ["new"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("five fibers that use a database first at the same time share one transaction", () =>
    Effect.gen(function* () {
      const pids = yield* UnitOfWork.run(
        Effect.forEach([1, 2, 3, 4, 5], (n) => Effect.zipRight(insert(`row ${n}`), pid), { concurrency: 5 })
      )
      assert.strictEqual(new Set(pids).size, 1)
      assert.strictEqual((yield* stored).length, 5)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("an early commit stays, an early rollback undoes, and the next statement begins anew", () =>
    Effect.gen(function* () {
      yield* Effect.ignore(
        UnitOfWork.run(
          Effect.gen(function* () {
            yield* insert("early")
            yield* Db.commit
            yield* insert("dropped")
            yield* Db.rollback
            yield* insert("late")
            return yield* Effect.fail("no")
          })
        )
      )
      assert.deepStrictEqual(yield* stored, ["early"])
      yield* Db.commit
      const refused = yield* UnitOfWork.run(Db.withTransaction(Effect.zipRight(insert("x"), Db.commit))).pipe(
        DatabaseError.refine,
        Effect.flip
      )
      assert.strictEqual(refused._tag, "PropagationRefused")
      assert.deepStrictEqual(yield* stored, ["early"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("independent work stays when the unit fails", () =>
    Effect.gen(function* () {
      yield* Effect.ignore(
        UnitOfWork.run(
          Effect.gen(function* () {
            yield* insert("unit")
            yield* Db.independent(insert("independent"))
            yield* Db.independent(Db.withTransaction(insert("independent transaction")))
            return yield* Effect.fail("no")
          })
        )
      )
      assert.deepStrictEqual(yield* stored, ["independent", "independent transaction"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("reads go to the replica until the unit has written, and then see its writes", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          assert.deepStrictEqual(yield* standby, { yes: true, n: 0 })
          yield* insert("a")
          assert.deepStrictEqual(yield* standby, { yes: false, n: 1 })
          const reader = yield* Db.reader
          const refused = yield* reader`DELETE FROM item`.pipe(DatabaseError.refine, Effect.flip)
          assert.strictEqual(refused._tag, "ReadOnlyViolation")
          // the unit itself may still write
          yield* insert("b")
        })
      )
      assert.deepStrictEqual(yield* stored, ["a", "b"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a COMMIT that fails after another one is PartialCommit, which names both databases", () =>
    Effect.gen(function* () {
      const log: Array<string> = []
      const error = yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* insert("first")
          const undone = Db.afterRollback(Effect.sync(() => void log.push("savepoint rolled back")))
          yield* Effect.ignore(Db.withTransaction(Effect.zipRight(undone, Effect.fail("no"))))
          yield* event("second", 13)
          yield* Db.afterCommit(Effect.sync(() => void log.push("all committed")))
          yield* Audit.afterRollback(Effect.sync(() => void log.push("audit rolled back")))
        }),
        { checkFirst: false }
      ).pipe(DatabaseError.refine, Effect.flip)
      assert.strictEqual(error._tag, "PartialCommit")
      if (error._tag === "PartialCommit") {
        assert.deepStrictEqual(error.committed, ["app"])
        assert.strictEqual(error.failed, "audit")
        assert.deepStrictEqual(error.rolledBack, [])
      }
      assert.deepStrictEqual(log, ["savepoint rolled back", "audit rolled back"])
      assert.deepStrictEqual(yield* stored, ["first"])
      assert.deepStrictEqual(yield* events, [])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("a first COMMIT that fails rolls the other databases back, so that nothing is stored", () =>
    Effect.gen(function* () {
      const error = yield* UnitOfWork.run(Effect.zipRight(event("first", 13), insert("second"))).pipe(
        DatabaseError.refine,
        Effect.flip
      )
      assert.strictEqual(error._tag, "CommitFailed")
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("a beforeCommit hook may be the first to use a database, and its failure undoes all", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(Effect.zipRight(insert("a"), Db.beforeCommit(event("a added"))))
      assert.deepStrictEqual(yield* stored, ["a"])
      assert.deepStrictEqual(yield* events, ["a added"])
      const vetoed = yield* UnitOfWork.run(
        Effect.all([insert("b"), event("b added"), Db.beforeCommit(Effect.fail("no"))])
      ).pipe(DatabaseError.refine, Effect.flip)
      assert.strictEqual(vetoed._tag, "CommitVetoed")
      assert.deepStrictEqual(yield* stored, ["a"])
      assert.deepStrictEqual(yield* events, ["a added"])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("a fiber that outlives its unit gets TransactionEnded, also on a database new to the unit", () =>
    Effect.gen(function* () {
      const go = yield* Deferred.make<void>()
      const late = (work: Effect.Effect<unknown, unknown, Db | Audit>) =>
        Effect.forkDaemon(Effect.zipRight(Deferred.await(go), Effect.flip(work)))
      const fibers = yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* insert("in time")
          return [
            yield* late(DatabaseError.refine(insert("late"))),
            yield* late(DatabaseError.refine(event("late")))
          ] as const
        })
      )
      yield* Deferred.succeed(go, undefined)
      for (const fiber of fibers) {
        const error = yield* Fiber.join(fiber)
        assert.isTrue(DatabaseError.isDatabaseError(error) && error._tag === "TransactionEnded")
      }
      assert.deepStrictEqual(yield* stored, ["in time"])
      assert.deepStrictEqual(yield* events, [])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("a fiber that outlives its unit gets TransactionEnded when it commits the unit once more", () =>
    Effect.gen(function* () {
      for (const outcome of ["commit", "rollback"] as const) {
        const go = yield* Deferred.make<void>()
        const fiber = yield* UnitOfWork.run(
          Effect.zipRight(
            insert(outcome),
            Effect.forkDaemon(Effect.zipRight(Deferred.await(go), Effect.flip(UnitOfWork.commit)))
          ),
          { outcome: () => outcome }
        )
        yield* Deferred.succeed(go, undefined)
        const error = yield* Fiber.join(fiber)
        assert.strictEqual(error._tag, "TransactionEnded")
      }
      assert.deepStrictEqual(yield* stored, ["commit"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a fiber that ends its unit while it already ends gets TransactionEnded, and that end goes on", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const proxy = yield* makeProxy(writer)
      const ended: Array<string> = []
      yield* Effect.gen(function* () {
        yield* Db.observations.pipe(
          Stream.runForEach((fact) =>
            Effect.sync(() => void (fact._tag === "TransactionEnded" && ended.push(fact.outcome)))
          ),
          Effect.forkScoped
        )
        yield* Effect.yieldNow()
        for (const outcome of ["commit", "rollback"] as const) {
          for (const late of ["commit", "rollback"] as const) {
            const ending = yield* proxy.when(sends(outcome.toUpperCase()), "freeze")
            const go = yield* Deferred.make<void>()
            const called = yield* Deferred.make<void>()
            const end = Effect.zipRight(Deferred.succeed(called, undefined), Effect.either(UnitOfWork[late]))
            const unit = yield* UnitOfWork.run(
              Effect.zipRight(
                insert(`${outcome}, ${late}`),
                Effect.forkDaemon(Effect.zipRight(Deferred.await(go), end))
              ),
              { outcome: () => outcome }
            ).pipe(Effect.fork)
            yield* ending
            yield* Deferred.succeed(go, undefined)
            yield* Deferred.await(called)
            yield* turn
            yield* proxy.thaw
            const fiber = yield* Fiber.join(unit)
            // `Fiber.join` would put this fiber into the unit of the other one
            const exit = yield* Effect.timeout(Fiber.await(fiber), "3 seconds")
            const told = yield* exit
            assert.strictEqual(told._tag === "Left" && told.left._tag, "TransactionEnded", `${outcome}, ${late}`)
          }
        }
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(Db.layer({ writer: proxy.url })))
      assert.deepStrictEqual(ended, ["committed", "committed", "rolledBack", "rolledBack"])
      assert.deepStrictEqual(yield* stored, ["commit, commit", "commit, rollback"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("work that is rolled back while a hook of its commit runs is not reported as stored", () =>
    Effect.gen(function* () {
      const log: Array<string> = []
      const note = (text: string) => Effect.sync(() => void log.push(text))
      const inHook = yield* Deferred.make<void>()
      const go = yield* Deferred.make<void>()
      const error = yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* insert("a")
          yield* Db.beforeCommit(Effect.zipRight(Deferred.succeed(inHook, undefined), Deferred.await(go)))
          yield* Db.afterCommit(note("committed"))
          yield* Db.afterRollback(note("rolled back"))
          const commit = yield* Effect.fork(Effect.either(UnitOfWork.commit))
          yield* Deferred.await(inHook)
          yield* UnitOfWork.rollback
          yield* Deferred.succeed(go, undefined)
          return yield* Fiber.join(commit)
        })
      )
      assert.strictEqual(error._tag === "Left" && error.left._tag, "TransactionEnded")
      assert.deepStrictEqual(log, ["rolled back"])
      assert.deepStrictEqual(yield* stored, [])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a second commit of a unit is refused while a hook of the first may still veto", () =>
    Effect.gen(function* () {
      const error = yield* UnitOfWork.run(
        Effect.gen(function* () {
          const inHook = yield* Deferred.make<void>()
          const go = yield* Deferred.make<void>()
          yield* insert("a")
          yield* Db.beforeCommit(
            Deferred.succeed(inHook, undefined).pipe(
              Effect.zipRight(Deferred.await(go)),
              Effect.zipRight(Effect.fail("no"))
            )
          )
          const first = yield* Effect.forkDaemon(Effect.flip(UnitOfWork.commit))
          yield* Deferred.await(inHook)
          const second = yield* Effect.flip(Db.commit)
          assert.strictEqual(second._tag, "TransactionBusy")
          // the unit reaches its end before that, and waits for the hook
          yield* Effect.forkDaemon(Effect.zipRight(Effect.yieldNow(), Deferred.succeed(go, undefined)))
          return first
        })
      ).pipe(Effect.flatMap(Fiber.join))
      assert.strictEqual(error._tag, "CommitVetoed")
      assert.deepStrictEqual(yield* stored, [])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("one of two commits that begin at the same time is refused, wherever the runtime switches fibers", () =>
    Effect.gen(function* () {
      const commit = Effect.either(UnitOfWork.commit)
      for (let ops = 10; ops <= 16; ops++) {
        const ends = yield* UnitOfWork.run(
          Effect.zipRight(
            insert(`first ${ops}`),
            Effect.withMaxOpsBeforeYield(Effect.all([commit, commit], { concurrency: 2 }), ops)
          )
        )
        const outcomes = ends.map((end) => (Either.isRight(end) ? "committed" : end.left._tag))
        assert.deepStrictEqual(outcomes.sort(), ["TransactionBusy", "committed"], `${ops} operations`)
      }
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("one database may be committed early while a hook runs before the commit of another", () =>
    Effect.gen(function* () {
      const inHook = yield* Deferred.make<void>()
      const go = yield* Deferred.make<void>()
      const work = Effect.gen(function* () {
        yield* insert("a")
        yield* event("b")
        yield* Db.beforeCommit(Effect.zipRight(Deferred.succeed(inHook, undefined), Deferred.await(go)))
        const first = yield* Effect.fork(Db.commit)
        yield* Deferred.await(inHook)
        yield* Audit.commit
        assert.deepStrictEqual([yield* stored, yield* events], [[], ["b"]])
        yield* Deferred.succeed(go, undefined)
        yield* Fiber.join(first)
        return yield* Effect.fail("no")
      })
      assert.strictEqual(yield* Effect.flip(UnitOfWork.run(work)), "no")
      assert.deepStrictEqual(yield* stored, ["a"])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("the end of a unit waits for a commit that a fork has begun, and the unit is not run again", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const proxy = yield* makeProxy(writer)
      const collide = Effect.flatMap(
        Audit.writer,
        (sql) => sql`DO $$ BEGIN RAISE EXCEPTION 'collision' USING ERRCODE = 'serialization_failure'; END $$`
      )
      let attempts = 0
      const unit = (last: Effect.Effect<unknown, unknown, Audit>) =>
        Effect.gen(function* () {
          const committing = yield* proxy.when(sends("COMMIT"), "freeze")
          const sent = yield* Deferred.make<void>()
          const work = Effect.gen(function* () {
            yield* insert(`attempt ${++attempts}`)
            yield* Effect.forkDaemon(UnitOfWork.commit)
            yield* committing
            yield* Effect.ensuring(last, Deferred.succeed(sent, undefined))
          })
          const fiber = yield* Effect.fork(Effect.exit(UnitOfWork.run(work, { retry: true })))
          yield* Deferred.await(sent)
          // a COMMIT of the other database, which is not frozen, would be answered before these queries
          const early = yield* Effect.zipRight(Effect.repeatN(events, 20), Fiber.poll(fiber))
          yield* proxy.thaw
          return [early._tag, yield* Fiber.join(fiber)] as const
        })
      yield* Effect.gen(function* () {
        const [early, exit] = yield* unit(event("done"))
        assert.deepStrictEqual([early, exit._tag], ["None", "Success"])
        assert.deepStrictEqual(yield* stored, ["attempt 1"])
        const [, failed] = yield* unit(collide)
        assert.strictEqual(failed._tag, "Failure")
        assert.strictEqual(attempts, 2)
      }).pipe(Effect.provide(Db.layer({ writer: proxy.url })))
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("a unit that is interrupted while a hook runs is not committed, although its outcome is commit", () =>
    Effect.gen(function* () {
      const inHook = yield* Deferred.make<Fiber.Fiber<unknown, unknown>>()
      const go = yield* Deferred.make<void>()
      const work = Effect.gen(function* () {
        yield* insert("a")
        const begun = yield* Deferred.make<void>()
        yield* Db.beforeCommit(
          Deferred.succeed(begun, undefined).pipe(
            Effect.zipRight(Deferred.await(go)),
            Effect.zipRight(Effect.fail("no"))
          )
        )
        const commit = yield* Effect.forkDaemon(UnitOfWork.commit)
        yield* Deferred.await(begun)
        yield* Deferred.succeed(inHook, commit)
        return yield* Effect.never
      })
      const unit = yield* Effect.fork(UnitOfWork.run(work, { outcome: () => "commit" }))
      const commit = yield* Deferred.await(inHook)
      yield* Fiber.interrupt(unit)
      yield* Deferred.succeed(go, undefined)
      assert.isTrue(Exit.isFailure(yield* Fiber.await(commit)))
      assert.deepStrictEqual(yield* stored, [])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a transaction inside of a unit is a savepoint of the unit's transaction", () =>
    Effect.gen(function* () {
      // the id of the transaction that all of its savepoints share
      const id = run("SELECT pg_current_xact_id()::text AS id")
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* insert("outer")
          const outer = yield* id
          yield* Effect.ignore(Db.withTransaction(Effect.zipRight(insert("inner"), Effect.fail("no"))))
          assert.deepStrictEqual(yield* Db.withTransaction(Effect.zipRight(insert("kept"), id)), outer)
          assert.strictEqual(yield* active, 1)
        })
      )
      assert.deepStrictEqual(yield* stored, ["kept", "outer"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("an interruption during the first COMMIT does not keep the other databases from their COMMIT", () =>
    Effect.gen(function* () {
      const { proxy, writer } = yield* auditBehindProxy
      yield* Effect.gen(function* () {
        const log: Array<string> = []
        const committing = yield* proxy.when(sends("COMMIT"), "freeze")
        const fiber = yield* Effect.fork(
          UnitOfWork.run(
            Effect.all([event("first"), insert("second"), Audit.afterCommit(Effect.sync(() => void log.push("after")))])
          )
        )
        yield* committing
        const interrupting = yield* Effect.fork(Fiber.interrupt(fiber))
        yield* Effect.yieldNow()
        yield* proxy.thaw
        assert.isTrue(Exit.isInterrupted(yield* Fiber.join(interrupting)))
        assert.deepStrictEqual(yield* query(writer, "SELECT what FROM event"), [{ what: "first" }])
        assert.deepStrictEqual(yield* stored, ["second"])
        assert.deepStrictEqual(log, ["after"])
      }).pipe(Effect.provide(Audit.layer({ writer: proxy.url })))
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("work that a fiber begins while the unit commits gets TransactionEnded, and holds no connection", () =>
    Effect.gen(function* () {
      const { proxy, writer } = yield* auditBehindProxy
      yield* Effect.gen(function* () {
        const committing = yield* proxy.when(sends("COMMIT"), "freeze")
        const late = Effect.zipRight(committing, insert("late")).pipe(DatabaseError.refine, Effect.flip)
        const unit = yield* Effect.fork(
          UnitOfWork.run(Effect.zipRight(event("in time"), Effect.forkDaemon(Effect.tap(late, () => proxy.thaw))))
        )
        const error = yield* Effect.flatMap(Fiber.join(unit), Fiber.join)
        assert.strictEqual(error._tag, "TransactionEnded")
        assert.deepStrictEqual(yield* query(writer, "SELECT what FROM event"), [{ what: "in time" }])
        assert.deepStrictEqual(yield* stored, [])
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(Audit.layer({ writer: proxy.url })))
    }).pipe(Effect.provide(fresh()))
  )

  for (const [name, touch] of [
    ["has nothing but hooks", Effect.void],
    ["was only read", Effect.flatMap(Audit.writer, (sql) => sql`SELECT what FROM event`)]
  ] as const) {
    it.scopedLive(`a database that ${name} runs its afterRollback if a later one cannot be committed`, () =>
      Effect.gen(function* () {
        const log: Array<string> = []
        const note = (text: string) => Effect.sync(() => void log.push(text))
        const work = Effect.all([
          touch,
          Audit.afterRollback(note("audit: rolled back")),
          Audit.afterCommit(note("audit: committed")),
          Db.afterRollback(note("rolled back")),
          insert("undone"),
          Effect.ignore(Effect.flatMap(Db.writer, (sql) => sql`SELECT 1/0`))
        ])
        const databases = [UnitOfWork.on(Audit, { access: "read only" })]
        const error = yield* UnitOfWork.run(work, { order: [Audit, Db], databases }).pipe(
          DatabaseError.refine,
          Effect.flip
        )
        assert.strictEqual(error._tag, "RolledBackAtCommit")
        assert.deepStrictEqual(log, ["audit: rolled back", "rolled back"])
        assert.deepStrictEqual(yield* stored, [])
      }).pipe(Effect.provide(both))
    )
  }

  it.scopedLive("a lost answer to a later COMMIT is PartialCommit, with an unknown outcome", () =>
    Effect.gen(function* () {
      const { proxy } = yield* auditBehindProxy
      yield* proxy.when(answers("COMMIT"), "cut")
      const error = yield* UnitOfWork.run(Effect.zipRight(insert("first"), event("second"))).pipe(
        Effect.provide(Audit.layer({ writer: proxy.url, outcome: "unknown" })),
        DatabaseError.refine,
        Effect.flip
      )
      assert.strictEqual(error._tag === "PartialCommit" && error.outcome, "unknown")
      assert.include(error.message, "may have committed or not")
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("reads after an early commit see the committed rows", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          assert.strictEqual((yield* standby)?.yes, true)
          yield* insert("a")
          yield* Db.commit
          assert.deepStrictEqual(yield* standby, { yes: false, n: 1 })
        })
      )
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a defect in the option outcome rolls the unit back and is its exit", () =>
    Effect.gen(function* () {
      const outcome = () => {
        throw new Error("a bug")
      }
      const exit = yield* Effect.exit(UnitOfWork.run(insert("undone"), { outcome }))
      assert.isTrue(Exit.isFailure(exit) && Cause.isDie(exit.cause))
      assert.deepStrictEqual(yield* stored, [])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a beforeCommit hook of a nested transaction runs in the transaction that commits", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(Db.withTransaction(Effect.zipRight(insert("a"), Db.beforeCommit(insert("from the hook")))))
      yield* Db.withTransaction(Db.withTransaction(Effect.zipRight(insert("b"), Db.beforeCommit(insert("another")))))
      assert.deepStrictEqual(yield* stored, ["a", "another", "b", "from the hook"])
    }).pipe(Effect.provide(fresh()))
  )
})
