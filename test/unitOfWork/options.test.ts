import { setImmediate } from "node:timers/promises"
import { assert, it } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { Database, DatabaseError, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { auditBehindProxy, both, event, events } from "../support/audit.js"
import { Audit, active, Db, fresh, insert, Place, stored } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { failure } from "../support/failures.js"
import { observed } from "../support/observed.js"
import { answers, type Message, makeProxy, sends } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"

const show = (what: string) => Effect.map(Db.writer, (sql) => sql.unsafe<Record<string, string>>(`SHOW ${what}`))

/** Reads a setting of the current transaction on the server. */
const setting = (what: string) => Effect.map(Effect.flatten(show(what)), ([row]) => row?.[what])

describe("the settings of a unit of work", () => {
  it.scopedLive("the transactions of a unit have its settings, except where a database has its own", () =>
    Effect.gen(function* () {
      const seen = yield* UnitOfWork.run(
        Effect.all([
          setting("transaction_isolation"),
          setting("statement_timeout"),
          Effect.map(
            Effect.flatMap(
              Audit.writer,
              (sql) => sql<{ a: string; b: string }>`
              SELECT current_setting('transaction_isolation') AS a, current_setting('statement_timeout') AS b`
            ),
            ([row]) => [row?.a, row?.b]
          )
        ]),
        {
          transaction: { isolation: "repeatable read", statementTimeout: "3 seconds" },
          databases: [UnitOfWork.on(Audit, { isolation: "serializable" })]
        }
      )
      assert.deepStrictEqual(seen, ["repeatable read", "3s", ["serializable", "3s"]])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive(
    "a part that joins may choose settings before the first statement, and later only those already in force",
    () =>
      Effect.gen(function* () {
        const serializable = { transaction: { isolation: "serializable" } } as const
        yield* UnitOfWork.run(
          Effect.gen(function* () {
            assert.strictEqual(yield* UnitOfWork.run(setting("transaction_isolation"), serializable), "serializable")
            assert.strictEqual(yield* UnitOfWork.run(setting("transaction_isolation"), serializable), "serializable")
            const refused = yield* UnitOfWork.run(insert("never"), { transaction: { access: "read only" } }).pipe(
              DatabaseError.refine,
              Effect.flip
            )
            assert.strictEqual(refused._tag === "OptionsConflict" && refused.option, "access")
            yield* insert("kept")
          })
        )
        assert.deepStrictEqual(yield* stored, ["kept"])
      }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a read-only unit refuses writes", () =>
    Effect.gen(function* () {
      const error = yield* UnitOfWork.run(insert("x"), { transaction: { access: "read only" } }).pipe(
        DatabaseError.refine,
        Effect.flip
      )
      assert.strictEqual(error._tag, "ReadOnlyViolation")
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a unit that only reads begins no transaction", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const proxy = yield* makeProxy(writer)
      const begun: Array<string> = []
      const note = (message: Message) => {
        if (sends("BEGIN")(message)) begun.push(message.bytes.toString("latin1"))
        return false
      }
      const { reader } = yield* Place
      const replica = yield* makeProxy(reader)
      yield* proxy.when(note, "pass")
      yield* replica.when(note, "pass")
      yield* Effect.gen(function* () {
        const sql = yield* Db.reader
        yield* UnitOfWork.run(Effect.zipRight(sql`SELECT 1`, sql`SELECT 2`))
        assert.deepStrictEqual(begun, [])
        yield* UnitOfWork.run(insert("a"))
        assert.strictEqual(begun.length, 1)
      }).pipe(Effect.provide(Db.layer({ writer: proxy.url, readers: [replica.url] })))
    }).pipe(Effect.provide(fresh()))
  )
})

describe("the end of a unit on several databases", () => {
  it.scopedLive("a deferred constraint of a later database is checked before the first COMMIT", () =>
    Effect.gen(function* () {
      const log: Array<string> = []
      const error = yield* UnitOfWork.run(
        Effect.all([
          insert("first"),
          event("second", 13),
          Db.afterRollback(Effect.sync(() => void log.push("app"))),
          Audit.afterRollback(Effect.sync(() => void log.push("audit")))
        ])
      ).pipe(DatabaseError.refine, Effect.flip)
      assert.strictEqual(error._tag, "CommitFailed")
      assert.strictEqual(error.database, "audit")
      assert.deepStrictEqual(log.sort(), ["app", "audit"])
      assert.deepStrictEqual(yield* stored, [])
      assert.deepStrictEqual(yield* events, [])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("invalid settings for a database with nothing but hooks undo the whole unit", () =>
    Effect.gen(function* () {
      for (const outcome of ["commit", "rollback"] as const) {
        const error = yield* UnitOfWork.run(Effect.zipRight(insert(outcome), Audit.afterCommit(Effect.void)), {
          outcome: () => outcome,
          databases: [UnitOfWork.on(Audit, { isolation: "none" as "serializable" })]
        }).pipe(DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag, "ConfigInvalid")
        assert.strictEqual(yield* active, 0)
      }
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("a later database that a failed statement has aborted undoes all before the first COMMIT", () =>
    Effect.gen(function* () {
      const error = yield* UnitOfWork.run(
        Effect.all([
          insert("first"),
          event("second"),
          Effect.ignore(Effect.flatMap(Audit.writer, (sql) => sql`SELECT 1/0`))
        ]),
        { order: [Db, Audit] }
      ).pipe(DatabaseError.refine, Effect.flip)
      assert.strictEqual(error._tag, "RolledBackAtCommit")
      assert.strictEqual(error.database, "audit")
      assert.deepStrictEqual(yield* stored, [])
      assert.deepStrictEqual(yield* events, [])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("a later database whose connection is lost undoes all before the first COMMIT", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      yield* query(writer, "CREATE TABLE event (what text, amount int)")
      const proxy = yield* makeProxy(writer)
      const work = Effect.all([insert("first"), event("second"), proxy.cut])
      const error = yield* UnitOfWork.run(work, { order: [Db, Audit] }).pipe(
        Effect.provide(Audit.layer({ writer: proxy.url })),
        DatabaseError.refine,
        Effect.flip
      )
      assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
      assert.deepStrictEqual(yield* stored, [])
      assert.deepStrictEqual(yield* query(writer, "SELECT FROM event"), [])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a database whose connection is lost while another one is checked undoes all", () =>
    Effect.gen(function* () {
      class Third extends Database.Service<Third>()("third") {}
      const { proxy: second, writer: audited } = yield* auditBehindProxy
      const { proxy: third, writer: other } = yield* auditBehindProxy
      const checked = yield* second.when(answers("SET CONSTRAINTS"), "pass")
      const checking = yield* third.when(answers("SET CONSTRAINTS"), "freeze")
      const work = Effect.all([
        insert("first"),
        event("second"),
        Effect.flatMap(Third.writer, (sql) => sql`INSERT INTO event VALUES ('third')`)
      ])
      const error = yield* Effect.gen(function* () {
        const unit = yield* Effect.fork(failure(UnitOfWork.run(work, { order: [Db, Audit, Third] })))
        yield* Effect.all([checked, checking])
        yield* second.cut
        // the cut reaches the server at the same time as the client
        const others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        yield* eventually(query(audited, others), (rows) => rows.length === 0)
        yield* third.thaw
        return yield* Fiber.join(unit)
      }).pipe(Effect.provide([Audit.layer({ writer: second.url }), Third.layer({ writer: third.url })]))
      assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
      assert.deepStrictEqual(yield* stored, [])
      for (const url of [audited, other]) assert.deepStrictEqual(yield* query(url, "SELECT FROM event"), [])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("an interruption while a database is checked undoes all", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      yield* query(writer, "CREATE TABLE event (what text, amount int)")
      const proxy = yield* makeProxy(writer)
      yield* Effect.gen(function* () {
        const checking = yield* proxy.when(sends("SET CONSTRAINTS"), "freeze")
        const unit = yield* Effect.fork(UnitOfWork.run(Effect.zipRight(insert("first"), event("second"))))
        yield* checking
        yield* Fiber.interrupt(unit)
        assert.deepStrictEqual(yield* stored, [])
        assert.strictEqual(yield* active, 0)
        yield* proxy.thaw
        yield* eventually(Audit.status, ({ servers }) => servers[0]?.writes?.active === 0)
        assert.deepStrictEqual(yield* stored, [])
        assert.deepStrictEqual(yield* query(writer, "SELECT FROM event"), [])
      }).pipe(Effect.provide(Audit.layer({ writer: proxy.url })))
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("an interruption at any moment between the check and the last COMMIT stores all or nothing", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      yield* query(writer, "CREATE TABLE event (what text, amount int)")
      const proxy = yield* makeProxy(writer)
      yield* Effect.gen(function* () {
        for (let turns = 0; turns < 24; turns++) {
          const checked = yield* proxy.when(answers("SET CONSTRAINTS"), "pass")
          const unit = yield* Effect.fork(UnitOfWork.run(Effect.zipRight(insert(`n${turns}`), event(`n${turns}`))))
          yield* checked
          for (let turn = 0; turn < turns; turn++) yield* Effect.promise(() => setImmediate())
          yield* Fiber.interrupt(unit)
          assert.deepStrictEqual([...(yield* stored)].sort(), [...(yield* events)].sort())
          assert.strictEqual(yield* active, 0)
        }
      }).pipe(Effect.provide(Audit.layer({ writer: proxy.url })))
    }).pipe(Effect.provide(fresh()))
  )

  /** Returns the order in which the servers received COMMIT. */
  const order = (options: UnitOfWork.Options<unknown, unknown>) =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      yield* query(writer, "CREATE TABLE item (name text)")
      const second = yield* freshDatabase
      yield* query(second.writer, "CREATE TABLE event (what text, amount int)")
      const log: Array<string> = []
      const told = (name: string, url: typeof writer) =>
        Effect.tap(makeProxy(url), (proxy) =>
          proxy.when((message) => {
            if (sends("COMMIT")(message)) log.push(name)
            return false
          }, "pass")
        )
      const one = yield* told("app", writer)
      const two = yield* told("audit", second.writer)
      yield* UnitOfWork.run(Effect.zipRight(insert("a"), event("b")), options).pipe(
        Effect.provide([Db.layer({ writer: one.url }), Audit.layer({ writer: two.url })])
      )
      return log
    })

  it.scopedLive("a serializable database is committed first, the others in the order of use or as given", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* order({}), ["app", "audit"])
      const serializable = [UnitOfWork.on(Audit, { isolation: "serializable" })]
      assert.deepStrictEqual(yield* order({ databases: serializable }), ["audit", "app"])
      assert.deepStrictEqual(yield* order({ databases: serializable, order: "touched" }), ["app", "audit"])
      assert.deepStrictEqual(yield* order({ order: [Audit] }), ["audit", "app"])
      assert.deepStrictEqual(yield* order({ order: [Db, Audit] }), ["app", "audit"])
    })
  )
})

describe("hooks of a unit of work", () => {
  it.scopedLive("a hook that is registered before the first statement waits for the end of the unit", () =>
    Effect.gen(function* () {
      const log: Array<string> = []
      const hooks = (name: string) =>
        Effect.all([
          Db.afterCommit(Effect.sync(() => void log.push(`${name} committed`))),
          Db.afterRollback(Effect.sync(() => void log.push(`${name} rolled back`)))
        ])
      yield* UnitOfWork.run(Effect.zipRight(hooks("a"), insert("a")))
      yield* Effect.ignore(UnitOfWork.run(Effect.all([hooks("b"), insert("b"), Effect.fail("no")])))
      // the same without any statement
      yield* UnitOfWork.run(hooks("c"))
      yield* Effect.ignore(UnitOfWork.run(Effect.zipRight(hooks("d"), Effect.fail("no"))))
      yield* Effect.ignore(
        UnitOfWork.run(
          Effect.zipRight(
            insert("e"),
            Effect.zipRight(Audit.afterCommit(Effect.sync(() => void log.push("e committed"))), Effect.fail("no"))
          )
        )
      )
      assert.deepStrictEqual(log, ["a committed", "b rolled back", "c committed", "d rolled back"])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("each hook runs once although an interruption comes before COMMIT or in a hook", () =>
    Effect.gen(function* () {
      const log: Array<string> = []
      const tell = (what: string) => Effect.sync(() => void log.push(what))
      const arrived = yield* Deferred.make<void>()
      const stay = Effect.zipRight(Deferred.succeed(arrived, undefined), Effect.never)
      const vetoing = yield* Effect.fork(
        UnitOfWork.run(
          Effect.all([
            insert("a"),
            Db.afterRollback(tell("first rolled back")),
            Db.afterRollback(tell("second rolled back")),
            Db.beforeCommit(stay)
          ])
        )
      )
      yield* Deferred.await(arrived)
      yield* Fiber.interrupt(vetoing)
      const entered = yield* Deferred.make<void>()
      const committing = yield* Effect.fork(
        UnitOfWork.run(
          Effect.all([
            insert("b"),
            event("e"),
            Db.afterCommit(Effect.zipRight(Deferred.succeed(entered, undefined), Effect.never)),
            Db.afterCommit(tell("committed")),
            Audit.afterCommit(tell("audit committed"))
          ])
        )
      )
      yield* Deferred.await(entered)
      yield* Fiber.interrupt(committing)
      assert.deepStrictEqual(log, ["first rolled back", "second rolled back", "committed", "audit committed"])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("a unit with a hook still reads from the replica", () =>
    Effect.gen(function* () {
      const standby = yield* UnitOfWork.run(
        Effect.zipRight(
          Db.afterCommit(Effect.void),
          Effect.flatMap(Db.reader, (sql) => sql<{ yes: boolean }>`SELECT pg_is_in_recovery() AS yes`)
        )
      )
      assert.deepStrictEqual(standby, [{ yes: true }])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a veto of a database without a statement undoes the other databases", () =>
    Effect.gen(function* () {
      const error = yield* UnitOfWork.run(Effect.zipRight(Audit.beforeCommit(Effect.fail("no")), insert("a"))).pipe(
        DatabaseError.refine,
        Effect.flip
      )
      assert.strictEqual(error._tag, "CommitVetoed")
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(both))
  )
})

describe("a unit of work that is ended early, on all databases", () => {
  it.scopedLive("an early commit stores, an early rollback undoes, and the next statements begin anew", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.commit
      yield* UnitOfWork.rollback
      const log: Array<string> = []
      yield* Effect.ignore(
        UnitOfWork.run(
          Effect.gen(function* () {
            yield* insert("early")
            yield* event("early")
            yield* Db.afterCommit(Effect.sync(() => void log.push("committed")))
            yield* UnitOfWork.commit
            assert.deepStrictEqual(log, ["committed"])
            yield* insert("undone")
            yield* event("undone")
            yield* UnitOfWork.rollback
            yield* insert("late")
            yield* event("late")
            return yield* Effect.fail("no")
          })
        )
      )
      assert.deepStrictEqual(yield* stored, ["early"])
      assert.deepStrictEqual(yield* events, ["early"])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("an early commit is refused inside of withTransaction", () =>
    Effect.gen(function* () {
      const refused = yield* UnitOfWork.run(Db.withTransaction(Effect.zipRight(insert("x"), UnitOfWork.commit))).pipe(
        DatabaseError.refine,
        Effect.flip
      )
      assert.strictEqual(refused._tag, "PropagationRefused")
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh()))
  )
})

describe("work outside of a unit of work", () => {
  it.scopedLive("work that is forked with `outside` outlives the unit, and is stored when the unit is not", () =>
    Effect.gen(function* () {
      const ended = yield* Deferred.make<void>()
      const fiber = yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* insert("unit")
          return yield* Effect.forkDaemon(
            UnitOfWork.outside(Effect.zipRight(Deferred.await(ended), UnitOfWork.run(insert("background"))))
          )
        }),
        { outcome: () => "rollback" }
      )
      yield* Deferred.succeed(ended, undefined)
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(yield* stored, ["background"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a detached stream is read after the unit's end", () =>
    Effect.gen(function* () {
      const names = Stream.unwrap(Effect.map(Db.writer, (sql) => sql<{ name: string }>`SELECT name FROM item`.stream))
      const stream = yield* UnitOfWork.run(Effect.zipRight(insert("a"), UnitOfWork.detach(names)))
      assert.deepStrictEqual(Chunk.toReadonlyArray(yield* Stream.runCollect(stream)), [{ name: "a" }])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh()))
  )
})

describe("the name of a unit's work", () => {
  const activity = Effect.flatMap(
    Db.writer,
    (sql) => sql<{ name: string; query: string }>`
      SELECT application_name AS name, query FROM pg_stat_activity WHERE pid = pg_backend_pid()`
  )

  it.scopedLive("observations, status, pg_stat_activity and statements name the unit's work while it lasts", () =>
    Effect.gen(function* () {
      const work = {
        label: "nightly",
        applicationName: "night'ly\\é",
        comment: { job: "a b'*/", n: "1", none: undefined }
      }
      const facts = yield* observed(
        UnitOfWork.run(
          Effect.gen(function* () {
            const [row] = yield* activity
            assert.strictEqual(row?.name, "night'ly??")
            assert.include(row?.query, "/*job='a%20b%27*%2F',n='1'*/")
            const { transactions } = yield* Db.status
            assert.deepStrictEqual(
              transactions.map(({ label }) => label),
              ["nightly"]
            )
            const reader = yield* Db.independent(
              Effect.flatMap(
                Db.reader,
                (sql) => sql<{ query: string }>`
              SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()`
              )
            )
            assert.include(reader[0]?.query, "job=")
          }),
          { work }
        )
      )
      const labels = facts.flatMap((fact) =>
        "label" in fact && fact.label !== undefined ? [[fact._tag, fact.label]] : []
      )
      assert.deepInclude(labels, ["CheckedOut", "nightly"])
      assert.deepInclude(labels, ["TransactionEnded", "nightly"])
      const [after] = yield* activity
      assert.strictEqual(after?.name, "effect-db")
      assert.notInclude(after?.query, "job=")
    }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
  )
})
