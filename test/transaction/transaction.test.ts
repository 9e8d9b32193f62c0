import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { DatabaseError, type Observation } from "effect-db"
import { describe } from "vitest"
import { beginSql } from "../../src/internal/transaction/begin.js"
import { inMillis } from "../../src/internal/transaction/optionsInMillis.js"
import { active, Db, fresh, insert, Place, pid, setting, stored } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { query, terminateBackends } from "../support/server.js"

describe("Transaction", () => {
  it("transaction options become the texts of BEGIN and SET LOCAL", () => {
    assert.deepStrictEqual(beginSql({}), ["BEGIN"])
    assert.deepStrictEqual(
      beginSql(
        inMillis({
          isolation: "serializable",
          access: "read only",
          deferrable: true,
          statementTimeout: "1 second",
          lockTimeout: 20
        })
      ),
      [
        "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE",
        "SET LOCAL statement_timeout = 1000",
        "SET LOCAL lock_timeout = 20"
      ]
    )
  })

  it.scopedLive("an isolation level that the types exclude fails with ConfigInvalid, and nothing is stored", () =>
    Effect.gen(function* () {
      const isolation = "serializable; DROP TABLE item" as "serializable"
      const error = yield* Effect.flip(Db.withTransaction(insert("a"), { isolation }))
      assert.strictEqual(DatabaseError.isDatabaseError(error) ? error._tag : error, "ConfigInvalid")
      assert.deepStrictEqual(yield* stored, [])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a success commits, and a failure, a defect and an interruption roll back", () =>
    Effect.gen(function* () {
      yield* Db.withTransaction(insert("kept"))
      const failed = yield* Effect.exit(Db.withTransaction(Effect.zipRight(insert("failed"), Effect.fail("no"))))
      assert.deepStrictEqual(failed, Exit.fail("no"))
      const died = yield* Effect.exit(Db.withTransaction(Effect.zipRight(insert("died"), Effect.die("bug"))))
      assert.isTrue(Exit.isFailure(died) && Cause.isDie(died.cause))
      const inserted = yield* Deferred.make<void>()
      const fiber = yield* Effect.fork(
        Db.withTransaction(
          Effect.zipRight(insert("interrupted"), Effect.zipRight(Deferred.succeed(inserted, undefined), Effect.never))
        )
      )
      yield* Deferred.await(inserted)
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(yield* stored, ["kept"])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a transaction without statements checks out no connection", () =>
    Effect.gen(function* () {
      yield* Db.withTransaction(
        Effect.gen(function* () {
          yield* Db.writer
          yield* Db.withTransaction(Effect.void)
          assert.strictEqual(yield* active, 0)
        })
      )
      const { servers } = yield* Db.status
      assert.deepStrictEqual(
        servers.map(({ writes }) => writes?.total ?? 0),
        [0, 0]
      )
    }).pipe(Effect.provide(fresh({ startup: "lazy" })))
  )

  it.scopedLive("isolation, access, deferrable and timeouts reach the server, and end with the transaction", () =>
    Effect.gen(function* () {
      const inside = yield* Db.withTransaction(
        Effect.all([
          setting("transaction_isolation"),
          setting("transaction_read_only"),
          setting("transaction_deferrable"),
          setting("statement_timeout"),
          setting("lock_timeout")
        ]),
        {
          isolation: "serializable",
          access: "read only",
          deferrable: true,
          statementTimeout: "2 seconds",
          lockTimeout: "1 second"
        }
      )
      assert.deepStrictEqual(inside, ["serializable", "on", "on", "2s", "1s"])
      assert.strictEqual(yield* setting("statement_timeout"), "0")
      const refused = yield* insert("x").pipe(
        Db.withTransaction({ access: "read only" }),
        DatabaseError.refine,
        Effect.flip
      )
      assert.strictEqual(refused._tag, "ReadOnlyViolation")
    }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
  )

  it.scopedLive("statementTimeout and lockTimeout fail with StatementTimeout and LockTimeout", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const slow = yield* sql`SELECT pg_sleep(30)`.pipe(
        Db.withTransaction({ statementTimeout: "50 millis" }),
        DatabaseError.refine,
        Effect.flip
      )
      assert.strictEqual(slow._tag, "StatementTimeout")
      const locked = yield* Db.withTransaction(
        Effect.gen(function* () {
          yield* sql`LOCK TABLE item`
          return yield* insert("x").pipe(
            Db.withTransaction({ propagation: "requiresNew", lockTimeout: "50 millis" }),
            DatabaseError.refine,
            Effect.flip
          )
        })
      )
      assert.strictEqual(locked._tag, "LockTimeout")
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh()))
  )

  describe("nested transactions", () => {
    it.scopedLive("a failure of a nested transaction that is caught undoes that transaction alone", () =>
      Effect.gen(function* () {
        yield* Db.withTransaction(
          Effect.gen(function* () {
            yield* insert("outer")
            yield* Effect.ignore(Db.withTransaction(Effect.zipRight(insert("inner"), Effect.fail("no"))))
            yield* Effect.ignore(Db.withTransaction(insert("outer")))
            yield* Db.withTransaction(insert("second"))
            assert.strictEqual(yield* Db.withTransaction(pid), yield* pid)
          })
        )
        assert.deepStrictEqual(yield* stored, ["outer", "second"])
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("the first statement of a transaction may be three levels down", () =>
      Effect.gen(function* () {
        yield* Db.withTransaction(
          Effect.gen(function* () {
            yield* Effect.ignore(
              Db.withTransaction(Effect.zipRight(Db.withTransaction(insert("lost")), Effect.fail("no")))
            )
            yield* Db.withTransaction(Db.withTransaction(insert("deep")))
          })
        )
        assert.deepStrictEqual(yield* stored, ["deep"])
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive(
      "a nested transaction that ignores a failed statement fails with RolledBackAtCommit, and the outer one goes on",
      () =>
        Effect.gen(function* () {
          yield* insert("taken")
          yield* Db.withTransaction(
            Effect.gen(function* () {
              const inner = yield* Effect.flip(Db.withTransaction(Effect.ignore(insert("taken"))))
              assert.strictEqual(inner._tag, "RolledBackAtCommit")
              yield* insert("after")
            })
          )
          assert.deepStrictEqual(yield* stored, ["after", "taken"])
        }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("the timeouts of a nested transaction end with it", () =>
      Effect.gen(function* () {
        const seen = yield* Db.withTransaction(
          Effect.all([
            setting("statement_timeout"),
            Db.withTransaction(setting("statement_timeout"), { statementTimeout: "3 seconds" }),
            setting("statement_timeout"),
            Effect.zipRight(pid, setting("lock_timeout"))
          ]),
          { lockTimeout: "4 seconds" }
        )
        assert.deepStrictEqual(seen, ["0", "3s", "0", "4s"])
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("a timeout of undefined leaves that of the outer transaction in force, also after a savepoint", () =>
      Effect.gen(function* () {
        const inner = Db.withTransaction(setting("statement_timeout"), { statementTimeout: "1 second" })
        const seen = yield* Db.withTransaction(
          Effect.all([
            Db.withTransaction(Effect.all([setting("statement_timeout"), inner, setting("statement_timeout")]), {
              statementTimeout: undefined
            }),
            setting("statement_timeout")
          ]),
          { statementTimeout: "5 seconds" }
        )
        assert.deepStrictEqual(seen, [["5s", "1s", "5s"], "5s"])
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("five fibers in one transaction share one connection, and all rows are stored", () =>
      Effect.gen(function* () {
        const pids = yield* Db.withTransaction(
          Effect.forEach([1, 2, 3, 4, 5], (n) => Effect.zipRight(insert(`row ${n}`), pid), {
            concurrency: "unbounded"
          })
        )
        assert.strictEqual(new Set(pids).size, 1)
        assert.strictEqual((yield* stored).length, 5)
      }).pipe(Effect.provide(fresh()))
    )
  })

  describe("propagation", () => {
    it.scopedLive(
      "required and supports join, requiresNew and notSupported do not, a violated never or mandatory fails",
      () =>
        Effect.gen(function* () {
          const [outer, joined, fresh_, supported, outside] = yield* Db.withTransaction(
            Effect.all([
              pid,
              Db.withTransaction(pid, { propagation: "required" }),
              Db.withTransaction(pid, { propagation: "requiresNew" }),
              Db.withTransaction(pid, { propagation: "supports" }),
              Db.withTransaction(pid, { propagation: "notSupported" })
            ])
          )
          assert.strictEqual(joined, outer)
          assert.strictEqual(supported, outer)
          assert.notStrictEqual(fresh_, outer)
          assert.notStrictEqual(outside, outer)
          const never = yield* Effect.flip(
            Db.withTransaction(Db.withTransaction(Effect.void, { propagation: "never" }))
          )
          assert.strictEqual(never._tag, "PropagationRefused")
          const mandatory = yield* Effect.flip(Db.withTransaction(Effect.void, { propagation: "mandatory" }))
          assert.strictEqual(mandatory._tag, "PropagationRefused")
          // outside of a transaction nothing is rolled back
          yield* Effect.ignore(
            Effect.zipRight(insert("plain"), Effect.fail("no")).pipe(Db.withTransaction({ propagation: "supports" }))
          )
          assert.deepStrictEqual(yield* stored, ["plain"])
        }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("a nested transaction with another isolation or access fails with OptionsConflict", () =>
      Effect.gen(function* () {
        for (const options of [{ isolation: "serializable" }, { access: "read only" }] as const) {
          const error = yield* Effect.flip(Db.withTransaction(Db.withTransaction(Effect.void, options)))
          assert.strictEqual(error._tag, "OptionsConflict")
        }
        yield* Db.withTransaction(Db.withTransaction(insert("same"), { isolation: "serializable" }), {
          isolation: "serializable"
        })
        assert.deepStrictEqual(yield* stored, ["same"])
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("work that would wait for the connection of its own transaction fails with PoolSelfDeadlock", () =>
      Effect.gen(function* () {
        const error = yield* Db.withTransaction(
          Effect.zipRight(
            insert("outer"),
            insert("inner").pipe(Db.withTransaction({ propagation: "requiresNew" }), DatabaseError.refine, Effect.flip)
          )
        )
        assert.strictEqual(error._tag, "PoolSelfDeadlock")
        const independent = yield* Db.withTransaction(
          Effect.zipRight(insert("outer 2"), insert("inner").pipe(Db.independent, DatabaseError.refine, Effect.flip))
        )
        assert.strictEqual(independent._tag, "PoolSelfDeadlock")
        const sql = yield* Db.reader
        const read = sql`SELECT 1`
        const reader = yield* sql
          .withTransaction(Effect.zipRight(read, read.pipe(Db.independent, DatabaseError.refine, Effect.flip)))
          .pipe(DatabaseError.refine)
        assert.strictEqual(reader._tag, "PoolSelfDeadlock")
        assert.deepStrictEqual(yield* stored, ["outer", "outer 2"])
      }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
    )

    it.scopedLive("the message of PoolSelfDeadlock counts the connections of maxOverflow", () =>
      Effect.gen(function* () {
        const inNew = <A, E, R>(self: Effect.Effect<A, E, R>) =>
          Db.withTransaction(Effect.zipRight(pid, self), { propagation: "requiresNew" })
        const error = yield* inNew(inNew(inNew(pid))).pipe(DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag, "PoolSelfDeadlock")
        assert.include(error.message, "all 2 are held")
      }).pipe(Effect.provide(fresh({ maxConnections: 1, maxOverflow: 1 })))
    )
  })

  describe("hooks", () => {
    it.scopedLive("hooks run once, in order, at the outermost end; of an undone savepoint, only afterRollback", () =>
      Effect.gen(function* () {
        const log: Array<string> = []
        const note = (text: string) => Effect.sync(() => void log.push(text))
        yield* Db.withTransaction(
          Effect.gen(function* () {
            yield* insert("a")
            yield* Db.beforeCommit(note("before 1"))
            yield* Db.afterCommit(
              Effect.gen(function* () {
                assert.strictEqual(yield* active, 0)
                assert.deepStrictEqual(yield* stored, ["a", "b"])
                yield* note("after 1")
              })
            )
            yield* Db.afterRollback(note("rollback outer"))
            yield* Effect.ignore(
              Db.withTransaction(
                Effect.gen(function* () {
                  yield* insert("undone")
                  yield* Db.afterCommit(note("dropped"))
                  yield* Db.beforeCommit(note("dropped"))
                  yield* Db.afterRollback(note("undone inside"))
                  return yield* Effect.fail("no")
                })
              )
            )
            yield* Db.withTransaction(Effect.zipRight(insert("b"), Db.afterCommit(note("after 2"))))
            assert.deepStrictEqual(log, [])
          })
        )
        assert.deepStrictEqual(log, ["before 1", "after 1", "undone inside", "after 2"])
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive(
      "a failed beforeCommit hook rolls back; a failed afterCommit hook is reported, and the next one runs",
      () =>
        Effect.gen(function* () {
          const log: Array<string> = []
          const note = (text: string) => Effect.sync(() => void log.push(text))
          const vetoed = yield* Db.withTransaction(
            Effect.gen(function* () {
              yield* insert("x")
              yield* Db.afterRollback(note("rolled back"))
              yield* Db.beforeCommit(Effect.zipRight(insert("hook"), Effect.fail("not today")))
            })
          ).pipe(Effect.flip)
          assert.strictEqual(vetoed._tag, "CommitVetoed")
          assert.deepStrictEqual(yield* stored, [])
          const failures: Array<Observation.Observation> = []
          const listening = yield* Effect.fork(
            Db.observations.pipe(
              Stream.filter((observation) => observation._tag === "HookFailed"),
              Stream.take(1),
              Stream.runForEach((observation) => Effect.sync(() => void failures.push(observation)))
            )
          )
          yield* Effect.yieldNow()
          yield* Db.withTransaction(
            Effect.gen(function* () {
              yield* insert("y")
              yield* Db.afterCommit(Effect.die("hook bug"))
              yield* Db.afterCommit(note("second"))
            })
          )
          yield* Fiber.join(listening)
          assert.deepStrictEqual(log, ["rolled back", "second"])
          assert.strictEqual(failures[0]?._tag, "HookFailed")
          assert.deepStrictEqual(yield* stored, ["y"])
        }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("an afterCommit hook outside of a transaction runs at once, and an afterRollback hook never", () =>
      Effect.gen(function* () {
        const log: Array<string> = []
        yield* Db.afterCommit(Effect.sync(() => void log.push("commit")))
        yield* Db.afterRollback(Effect.sync(() => void log.push("rollback")))
        assert.deepStrictEqual(log, ["commit"])
      }).pipe(Effect.provide(fresh()))
    )
  })

  describe("retry", () => {
    it.scopedLive("a transaction runs again after a serialization failure only if retry is set", () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        yield* sql`INSERT INTO item (name, amount) VALUES ('counter', 0)`
        const race = (retry: boolean) =>
          Effect.gen(function* () {
            const both = yield* Deferred.make<void>()
            let runs = 0
            // the first two runs have both read before either writes, so one of them has to fail
            const add = Effect.gen(function* () {
              const [row] = yield* sql<{ amount: number }>`SELECT amount FROM item WHERE name = 'counter'`
              if (++runs === 2) yield* Deferred.succeed(both, undefined)
              yield* Deferred.await(both)
              yield* sql`UPDATE item SET amount = ${(row?.amount ?? 0) + 1} WHERE name = 'counter'`
            })
            const once = Db.withTransaction(add, { isolation: "serializable", retry })
            const results = yield* Effect.all(
              [Effect.either(DatabaseError.refine(once)), Effect.either(DatabaseError.refine(once))],
              {
                concurrency: 2
              }
            )
            const [row] = yield* sql<{ amount: number }>`SELECT amount FROM item WHERE name = 'counter'`
            return {
              runs,
              amount: row?.amount,
              failures: results.flatMap((_) => (_._tag === "Left" ? [_.left._tag] : []))
            }
          })
        assert.deepStrictEqual(yield* race(true), { runs: 3, amount: 2, failures: [] })
        assert.deepStrictEqual(yield* race(false), { runs: 2, amount: 3, failures: ["SerializationFailure"] })
      }).pipe(Effect.provide(fresh({ maxConnections: 8 })))
    )

    it.scopedLive("a transaction whose backend was killed runs again and is stored once", () =>
      Effect.gen(function* () {
        const { name } = yield* Place
        let runs = 0
        yield* Db.withTransaction(
          Effect.gen(function* () {
            yield* insert("once")
            if (runs++ === 0) yield* terminateBackends(name)
            yield* insert("twice")
          }),
          { retry: true }
        )
        assert.strictEqual(runs, 2)
        assert.deepStrictEqual(yield* stored, ["once", "twice"])
      }).pipe(Effect.provide(fresh()))
    )
  })

  describe("interruption", () => {
    it.scopedLive("an interruption cancels the statement, undoes the transaction and leaves the pool usable", () =>
      Effect.gen(function* () {
        const { name, writer } = yield* Place
        const sql = yield* Db.writer
        const fiber = yield* Effect.fork(
          Db.withTransaction(Effect.zipRight(insert("undone"), sql`SELECT pg_sleep(60)`))
        )
        const sleeping = query<{ n: number }>(
          writer,
          "SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = $1 AND query LIKE '%pg_sleep%' AND pid <> pg_backend_pid() AND state = 'active'",
          [name]
        ).pipe(Effect.map((rows) => rows[0]?.n))
        yield* eventually(sleeping, (n) => n === 1)
        yield* Fiber.interrupt(fiber)
        // the cancel request has stopped the statement on the server too
        yield* eventually(sleeping, (n) => n === 0)
        yield* insert("next")
        assert.deepStrictEqual(yield* stored, ["next"])
      }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
    )

    it.scopedLive("an interrupted statement that waits for a connection is not sent, and leaks nothing", () =>
      Effect.gen(function* () {
        const held = yield* Deferred.make<void>()
        const release = yield* Deferred.make<void>()
        const holder = yield* Effect.fork(
          Db.withTransaction(
            Effect.zipRight(insert("held"), Effect.zipRight(Deferred.succeed(held, undefined), Deferred.await(release)))
          )
        )
        yield* Deferred.await(held)
        const waiting = yield* Effect.fork(Db.withTransaction(insert("waits")))
        yield* eventually(Db.status, ({ servers }) => servers[0]?.writes?.waiting === 1)
        yield* Fiber.interrupt(waiting)
        yield* Deferred.succeed(release, undefined)
        yield* Fiber.join(holder)
        assert.deepStrictEqual(yield* stored, ["held"])
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
    )
  })

  describe("misuse and status", () => {
    it.scopedLive("a COMMIT or ROLLBACK by hand fails with TransactionEnded, and nothing that follows is stored", () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        for (const end of [sql`COMMIT`, sql`ROLLBACK`, sql`SELECT 1; COMMIT; SELECT 2`]) {
          const error = yield* Effect.all([insert("before"), Effect.either(end), insert("after")]).pipe(
            Db.withTransaction(),
            DatabaseError.refine,
            Effect.flip
          )
          assert.strictEqual(error._tag, "TransactionEnded")
          yield* sql`DELETE FROM item WHERE name = 'before'`
          assert.deepStrictEqual(yield* stored, [])
        }
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("a write in a nested transaction of the reader fails with ReadOnlyViolation", () =>
      Effect.gen(function* () {
        const reader = yield* Db.reader
        const error = yield* Effect.zipRight(
          insert("a"),
          reader.withTransaction(Effect.zipRight(reader`SELECT 1`, insert("b")))
        ).pipe(Db.withTransaction(), DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag, "ReadOnlyViolation")
        assert.deepStrictEqual(yield* stored, [])
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("a statement of the outer transaction that the nested one waits for fails with TransactionBusy", () =>
      Effect.gen(function* () {
        const error = yield* Effect.gen(function* () {
          const go = yield* Deferred.make<void>()
          const beside = yield* Effect.fork(
            Effect.zipRight(Deferred.await(go), insert("beside").pipe(DatabaseError.refine))
          )
          yield* Db.withTransaction(Effect.all([insert("nested"), Deferred.succeed(go, undefined), Fiber.join(beside)]))
        }).pipe(Db.withTransaction(), DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag, "TransactionBusy")
        assert.deepStrictEqual(yield* stored, [])
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(fresh({ acquireTimeout: "200 millis" })))
    )

    it.scopedLive("three transactions inside each other on a pool of two fail with PoolSelfDeadlock", () =>
      Effect.gen(function* () {
        const apart = <A, E, R>(self: Effect.Effect<A, E, R>) =>
          Db.withTransaction(self, { propagation: "requiresNew" })
        const error = yield* Effect.zipRight(insert("1"), apart(Effect.zipRight(insert("2"), apart(insert("3"))))).pipe(
          apart,
          DatabaseError.refine,
          Effect.flip
        )
        assert.strictEqual(error._tag, "PoolSelfDeadlock")
      }).pipe(Effect.provide(fresh({ maxConnections: 2 })))
    )

    it.scopedLive("open transactions appear in the status with their label, and ended ones do not", () =>
      Effect.gen(function* () {
        const { transactions } = yield* Effect.zipRight(insert("a"), Db.status).pipe(
          Db.withTransaction({ label: "adding" })
        )
        assert.deepStrictEqual(
          transactions.map(({ label }) => label),
          ["adding"]
        )
        assert.deepStrictEqual((yield* Db.status).transactions, [])
      }).pipe(Effect.provide(fresh()))
    )
  })
})
