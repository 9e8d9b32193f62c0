/**
 * The proof of an outcome on servers that are busy, away, restarted or replaced, and the limits of
 * the proof.
 */
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { DatabaseError, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { asUnknown, createAdd, endAfterRestart, unknownIn, writes } from "../support/commitProof.js"
import { Db, idle, insert, run } from "../support/databases.js"
import { make } from "../support/embedded.js"
import { failure } from "../support/failures.js"
import { freshItemsThroughProxy, itemsThroughProxy } from "../support/proxied.js"
import { answers, makeProxy, sends } from "../support/proxy.js"
import { freshRole, loggedIn } from "../support/roles.js"
import { freshDatabase, query, untilIs } from "../support/server.js"

describe("the id of a transaction", () => {
  const all: typeof writes = [
    ...writes,
    ["a commented command", run("/* first */ -- second\n INSERT INTO item VALUES ('a')")],
    ["a CTE", run("WITH one AS (INSERT INTO item VALUES ('a') RETURNING 1) SELECT * FROM one")],
    ["a write before a read", Effect.zipRight(insert("a"), run("SELECT name FROM item"))],
    [
      "a savepoint after another that was undone",
      Effect.zipRight(
        Effect.ignore(Db.withTransaction(Effect.zipRight(insert("b"), Effect.fail("x")))),
        Db.withTransaction(insert("a"))
      )
    ]
  ]
  for (const mode of ["session", "transactionPooler"] as const) {
    for (const [name, write] of all) {
      it.scopedLive(`a COMMIT without an answer is resolved if the write was ${name}, in the mode ${mode}`, () =>
        Effect.gen(function* () {
          const { context, proxy, stored, writer } = yield* freshItemsThroughProxy({ mode, maxConnections: 1 })
          yield* query(writer, createAdd)
          yield* proxy.when(answers("COMMIT"), "cut")
          yield* Effect.provide(Db.withTransaction(write), context)
          yield* proxy.when(sends("COMMIT"), "cut")
          const error = yield* Effect.provide(failure(Db.withTransaction(write)), context)
          assert.isTrue(error instanceof DatabaseError.Disconnected && error.outcome === "undone", String(error))
          assert.deepStrictEqual(yield* stored, ["a"])
          yield* Effect.provide(idle, context)
        })
      )
    }
  }

  it.scopedLive("a transaction of a server that is started lazily is resolved from the first one on", () =>
    Effect.gen(function* () {
      const { context, proxy, stored } = yield* freshItemsThroughProxy({ startup: "lazy" })
      yield* proxy.when(answers("COMMIT"), "cut")
      yield* Effect.provide(Db.withTransaction(insert("a")), context)
      assert.deepStrictEqual(yield* stored, ["a"])
    })
  )

  it.scopedLive("a COPY in a transaction of its own is resolved", () =>
    Effect.gen(function* () {
      const { context, proxy, stored } = yield* freshItemsThroughProxy()
      const copy = Effect.flatMap(Db.writer, (sql) => sql.copyFrom("item", ["name"], Stream.make(["a"], ["b"])))
      yield* proxy.when(answers("COMMIT"), "cut")
      assert.strictEqual(yield* Effect.provide(copy, context), 2)
      yield* proxy.when(sends("COMMIT"), "cut")
      const error = yield* Effect.provide(failure(copy), context)
      assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
      assert.deepStrictEqual(yield* stored, ["a", "b"])
    })
  )

  it.scopedLive("a connection that is lost during the query of an id before COMMIT is Disconnected, undone", () =>
    Effect.gen(function* () {
      const { context, proxy, stored } = yield* freshItemsThroughProxy()
      yield* proxy.when(sends("xact_id"), "cut")
      const write = run("DO $$ BEGIN INSERT INTO item VALUES ('a'); END $$")
      const error = yield* Effect.provide(failure(Db.withTransaction(write)), context)
      assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
      yield* proxy.when(sends("xact_id"), "cut")
      yield* Effect.provide(Db.withTransaction(write, { retry: true }), context)
      assert.deepStrictEqual(yield* stored, ["a"])
    })
  )

  it.scopedLive("a transaction that has assigned no id stays unknown, because its COMMIT may notify", () =>
    Effect.gen(function* () {
      const { context, proxy } = yield* freshItemsThroughProxy()
      yield* proxy.when(answers("COMMIT"), "cut")
      const error = yield* Effect.provide(failure(Db.withTransaction(run("SELECT pg_notify('news', 'x')"))), context)
      assert.strictEqual(asUnknown(error).xid, undefined)
    })
  )

  it.scopedLive("a server that refuses the query of ids loses no transaction, and outcomes stay unknown", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const role = yield* freshRole(writer)
      yield* query(writer, "CREATE TABLE item (name text)")
      yield* query(writer, `GRANT ALL ON item TO ${role.name}`)
      yield* query(writer, "REVOKE EXECUTE ON FUNCTION pg_control_system FROM PUBLIC")
      const proxy = yield* makeProxy(loggedIn(writer, role))
      for (const startup of ["verify", "lazy"] as const) {
        const context = yield* Layer.build(Db.layer({ writer: proxy.url, startup }))
        yield* Effect.provide(Db.withTransaction(insert("a")), context)
        yield* proxy.when(answers("COMMIT"), "cut")
        const error = asUnknown(yield* Effect.provide(failure(Db.withTransaction(insert("b"))), context))
        assert.strictEqual(error.xid, undefined)
        assert.strictEqual(yield* Effect.flip(error.resolve), error)
      }
    })
  )

  it.scopedLive("a read-only transaction, an empty one and a plain SELECT query no id", () =>
    Effect.gen(function* () {
      const { context, proxy } = yield* freshItemsThroughProxy({ startup: "lazy" })
      const asked = { count: 0 }
      yield* proxy.when(({ bytes, from }) => {
        if (from === "client" && /xact_id|effect_db_id/.test(bytes.toString("latin1"))) asked.count++
        return false
      }, "pass")
      yield* Effect.gen(function* () {
        yield* Db.withTransaction(Effect.void)
        yield* Db.withTransaction(run("SELECT count(*) FROM item"), { access: "read only" })
        yield* Db.withTransaction(run("SELECT name FROM item"))
        const reader = yield* Db.reader
        yield* reader.withTransaction(reader`SELECT count(*) FROM item`)
        yield* UnitOfWork.run(Effect.flatMap(Db.reader, (sql) => sql`SELECT count(*) FROM item`))
        yield* insert("a")
        assert.strictEqual(asked.count, 0)
        yield* Db.withTransaction(Effect.all([insert("b"), insert("c"), run("SELECT count(*) FROM item")]))
        assert.isAbove(asked.count, 0)
        yield* Db.withTransaction(insert("d"))
        asked.count = 0
        yield* Db.withTransaction(Effect.all([insert("e"), insert("f"), run("SELECT count(*) FROM item")]))
        // one Bind in the exchange of the first write
        assert.strictEqual(asked.count, 1)
      }).pipe(Effect.provide(context))
    })
  )

  it.scopedLive("the query of an id takes no snapshot before a command that must be first", () =>
    Effect.gen(function* () {
      const { context, writer } = yield* freshItemsThroughProxy()
      yield* Effect.gen(function* () {
        yield* Db.withTransaction(
          Effect.all([
            run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"),
            run("SET TRANSACTION DEFERRABLE"),
            run("SET LOCAL lock_timeout = '5s'"),
            run("LOCK TABLE item IN SHARE MODE"),
            insert("a")
          ])
        )
        const [row] = yield* Db.withTransaction(
          Effect.gen(function* () {
            yield* run("SET LOCAL lock_timeout = '5s'")
            yield* query(writer, "INSERT INTO item VALUES ('from outside')")
            return yield* run("SELECT count(*)::int AS is FROM item")
          }),
          { isolation: "repeatable read" }
        )
        assert.deepStrictEqual(row, { is: 2 })
      }).pipe(Effect.provide(context))
    })
  )

  it.scopedLive("the query of an id survives commands that drop all prepared statements", () =>
    Effect.gen(function* () {
      const { context, stored } = yield* freshItemsThroughProxy({ maxConnections: 1 })
      yield* Effect.gen(function* () {
        for (const drop of ["DISCARD ALL", "DEALLOCATE ALL", "SELECT 1; DEALLOCATE ALL"]) {
          yield* Db.withTransaction(insert("a"))
          yield* Db.withTransaction(insert("a"))
          yield* run(drop)
          yield* Db.withTransaction(insert("a"))
          yield* Db.withTransaction(insert("a"))
        }
      }).pipe(Effect.provide(context))
      assert.lengthOf(yield* stored, 12)
    })
  )
})

/** Lets the server assign an id again, to another transaction that commits. */
const assignAgain = (url: Redacted.Redacted<string>, xid: number) =>
  Effect.gen(function* () {
    const next = query<{ xid: string }>(
      url,
      "INSERT INTO item VALUES ('other') RETURNING pg_current_xact_id()::text AS xid"
    )
    yield* Effect.repeat(next, { until: ([row]) => Number(row?.xid) >= xid })
    const [reused] = yield* query(url, `SELECT pg_xact_status('${xid}'::xid8) AS status`)
    assert.deepStrictEqual(reused, { status: "committed" })
  })

describe("the proof of an outcome", () => {
  it.scopedLive("an interruption during the proof ends within its bound, with CommitOutcomeUnknown", () =>
    Effect.gen(function* () {
      const { context, proxy } = yield* freshItemsThroughProxy()
      const cut = yield* proxy.when(answers("COMMIT"), "cut")
      yield* Effect.provide(Db.withTransaction(insert("warm")), context).pipe(Effect.ignore)
      yield* cut
      const again = yield* proxy.when(answers("COMMIT"), "cut")
      const fiber = yield* Effect.fork(Effect.provide(Db.withTransaction(insert("a")), context))
      yield* again
      yield* proxy.freeze
      const [took, exit] = yield* Effect.timed(Fiber.interrupt(fiber))
      assert.isTrue(Exit.isFailure(exit) && Cause.isInterrupted(exit.cause))
      assert.strictEqual(unknownIn(exit).database, "app")
      assert.isBelow(Number(took.value._tag === "Millis" ? took.value.millis : 0), 2000)
      yield* proxy.thaw
    })
  )

  it.scopedLive("an outcome that was not proved in time can be resolved later, but not by a copy of the error", () =>
    Effect.gen(function* () {
      const { context, proxy, stored } = yield* freshItemsThroughProxy({ resolveWithin: "100 millis" })
      const log: Array<string> = []
      const cut = yield* proxy.when(answers("COMMIT"), "cut")
      const away = Effect.zipRight(cut, proxy.refuse)
      const work = Effect.zipRight(insert("a"), Db.afterUnknown(Effect.sync(() => void log.push("unknown"))))
      const [error] = yield* Effect.all([Effect.provide(failure(Db.withTransaction(work)), context), away], {
        concurrency: 2
      })
      const unknown = asUnknown(error)
      assert.deepStrictEqual(log, ["unknown"])
      assert.match(unknown.xid ?? "", /^\d+$/)
      assert.match(unknown.systemId ?? "", /^\d{19}$/)
      assert.strictEqual(unknown.timeline, 1)
      assert.strictEqual(yield* Effect.flip(unknown.resolve), unknown)
      yield* proxy.accept
      // the pool waits between its attempts to connect
      assert.strictEqual(yield* Effect.retry(unknown.resolve, { times: 50 }), "committed")
      assert.deepStrictEqual(yield* stored, ["a"])
      const encode = Schema.encodeSync(DatabaseError.CommitOutcomeUnknown)
      const copy = Schema.decodeSync(DatabaseError.CommitOutcomeUnknown)(encode(unknown))
      assert.deepStrictEqual(encode(copy), encode(unknown))
      assert.notProperty(JSON.parse(JSON.stringify(unknown)), "resolve")
      assert.notInclude(Object.keys(unknown), "resolve")
      const { cause: _, ...fields } = { ...unknown }
      assert.isTrue(
        Equal.equals(new DatabaseError.CommitOutcomeUnknown(fields), new DatabaseError.CommitOutcomeUnknown(fields))
      )
      assert.strictEqual(yield* Effect.flip(copy.resolve), copy)
    })
  )

  it.scopedLive("a COMMIT that waits for a standby is in progress at first, and committed in the end", () =>
    Effect.gen(function* () {
      const { primary } = yield* make()
      const url = primary.url()
      const { context, proxy, stored } = yield* itemsThroughProxy(url, { resolveWithin: "20 seconds" })
      const standby = (command: string, value: string) =>
        query(url, command).pipe(
          Effect.zipRight(query(url, "SELECT pg_reload_conf()")),
          Effect.zipRight(untilIs(url, "SELECT current_setting('synchronous_standby_names') AS is", value))
        )
      const waits = "SELECT count(*)::int AS is FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
      yield* standby("ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "nobody")
      // the connection is lost while COMMIT waits, which the server does not notice
      const first = yield* Effect.fork(Effect.provide(Db.withTransaction(insert("a")), context))
      yield* untilIs(url, waits, 1)
      yield* proxy.cut
      // the backend is ended
      const second = yield* Effect.fork(Effect.provide(Db.withTransaction(insert("b")), context))
      yield* untilIs(url, waits, 2)
      const kill = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'
        ORDER BY backend_start DESC LIMIT 1`
      yield* query(url, kill)
      yield* Fiber.join(second)
      assert.strictEqual((yield* Fiber.poll(first))._tag, "None")
      yield* standby("ALTER SYSTEM RESET synchronous_standby_names", "")
      yield* Fiber.join(first)
      assert.deepStrictEqual(yield* stored, ["a", "b"])
    })
  )

  for (const [end, stop] of [
    ["a clean restart", "stop"],
    ["a crash", "kill"]
  ] as const) {
    // its id may belong to another transaction after a crash, and a clean restart hides the crash
    it.scopedLive(`after ${end} of the server a COMMIT is proved to be undone, but not to be stored`, () =>
      Effect.gen(function* () {
        const { primary } = yield* make()
        const db = yield* itemsThroughProxy(primary.url(), { resolveWithin: "20 seconds" })
        assert.strictEqual(yield* endAfterRestart(db, primary, stop, "a", answers("COMMIT")), "CommitOutcomeUnknown")
        assert.strictEqual(yield* endAfterRestart(db, primary, stop, "b", sends("COMMIT")), "undone")
        assert.deepStrictEqual(yield* db.stored, ["a"])
      })
    )
  }

  it.scopedLive("an id that another transaction has after a crash does not prove the outcome", () =>
    Effect.gen(function* () {
      // nothing of a transaction is on disk before a COMMIT
      const { primary } = yield* make({ settings: { wal_writer_delay: "10s", autovacuum: false } })
      const url = primary.url()
      const { context, proxy, stored } = yield* itemsThroughProxy(url, { resolveWithin: "20 seconds" })
      yield* Effect.provide(Db.withTransaction(insert("a")), context)
      const gone = yield* proxy.when(sends("COMMIT"), "freeze")
      const fiber = yield* Effect.fork(Effect.provide(failure(Db.withTransaction(insert("lost"))), context))
      yield* gone
      const [before] = yield* query<{ xid: string }>(
        url,
        "SELECT backend_xid::text AS xid FROM pg_stat_activity WHERE backend_xid IS NOT NULL"
      )
      const xid = Number(before?.xid ?? assert.fail("the transaction has no id"))
      yield* primary.kill
      yield* primary.start
      yield* assignAgain(url, xid)
      yield* proxy.cut
      const error = yield* Fiber.join(fiber)
      assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
      assert.notInclude(yield* stored, "lost")
    })
  )

  it.scopedLive("a COMMIT that a promoted replica does not have stays unknown, also if its id is assigned again", () =>
    Effect.gen(function* () {
      const { primary, replicas, awaitReplicas } = yield* make({ replicas: 1 })
      const replica = replicas[0] ?? assert.fail("there is no replica")
      const { context, proxy } = yield* itemsThroughProxy(primary.url(), { resolveWithin: "20 seconds" })
      yield* awaitReplicas
      yield* replica.stop
      const gone = yield* proxy.when(answers("COMMIT"), "freeze")
      const fiber = yield* Effect.fork(Effect.provide(failure(Db.withTransaction(insert("lost"))), context))
      yield* gone
      yield* primary.kill
      yield* replica.start
      yield* replica.promote
      yield* proxy.retarget(replica.url())
      yield* proxy.cut
      const error = asUnknown(yield* Fiber.join(fiber))
      const xid = Number(error.xid ?? assert.fail("the id is unknown"))
      const url = replica.url()
      yield* assignAgain(url, xid)
      assert.strictEqual(yield* Effect.flip(error.resolve), error)
    })
  )
})
