/**
 * Programs that interrupt a statement and go on: in a transaction, in a nested one, on a reserved
 * connection and in a sandbox; and the connections of such statements.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { RetryPolicy, TestDatabase, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { audit, event, events } from "../support/audit.js"
import { behind } from "../support/behind.js"
import { behindBouncer, freshPooled, hasBouncer } from "../support/bouncer.js"
import { Audit, active, Db, fresh, freshTable, idle, insert, Place, run, stored } from "../support/databases.js"
import { eventually, until } from "../support/eventually.js"
import { failure } from "../support/failures.js"
import { answers, makeProxy, type Proxy, sends } from "../support/proxy.js"
import { query } from "../support/server.js"

const long = "SELECT 1 FROM pg_sleep(1000) AS long"

/** Waits until `count` server processes run the long statement, and returns their ids. */
const running = (count: number) =>
  Effect.flatMap(Place, ({ name, writer }) => {
    const look = query<{ pid: number }>(
      writer,
      "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND datname = $1 AND query LIKE '%AS long'",
      [name]
    )
    return eventually(look, (rows) => rows.length === count).pipe(Effect.map((rows) => rows.map(({ pid }) => pid)))
  })

/** Runs an effect with a long statement, interrupts it once the server runs that, and returns the process id. */
const interrupted = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const fiber = yield* Effect.fork(self)
    const [pid] = yield* running(1)
    yield* Fiber.interrupt(fiber)
    return pid
  })

const pid = Effect.map(run("SELECT pg_backend_pid() AS pid"), ([row]) => (row as { pid: number }).pid)

describe("an interrupted statement in a transaction", () => {
  it.scopedLive("an interrupted statement fails its transaction without a retry, with an error that names it", () =>
    Effect.gen(function* () {
      let runs = 0
      let later: unknown
      const work = Effect.gen(function* () {
        runs++
        yield* insert("first")
        yield* interrupted(run(long))
        later = yield* failure(insert("second"))
        yield* insert("third")
      })
      for (const whole of [
        failure(UnitOfWork.run(work, { retry: true })),
        failure(Db.withTransaction(work, { retry: true }))
      ]) {
        const error = yield* whole
        assert.strictEqual(error, later)
        assert.strictEqual(error._tag === "TransactionInterrupted" && error.statement, long)
        assert.include(error.message, `the program interrupted a statement of the transaction`)
        assert.include(error.message, long)
        assert.isFalse(RetryPolicy.isReplayable(error))
      }
      assert.strictEqual(runs, 2)
      assert.deepStrictEqual(yield* stored, [])
      assert.strictEqual(yield* active, 0)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a transaction fails at its end if the program goes on after a timeout of a statement", () =>
    Effect.gen(function* () {
      let runs = 0
      const work = Effect.gen(function* () {
        runs++
        yield* insert("first")
        assert.isTrue(Option.isNone(yield* Effect.timeoutOption(run(long), "100 millis")))
      })
      const error = yield* failure(UnitOfWork.run(work, { retry: true }))
      assert.strictEqual(error._tag, "TransactionInterrupted")
      assert.strictEqual(runs, 1)
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("an interrupted statement is named by its call site if call sites are recorded", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const error = yield* failure(
        Db.withTransaction(Effect.zipRight(interrupted(sql`SELECT 1 FROM pg_sleep(1000) AS long`), insert("x")))
      )
      assert.include(error._tag === "TransactionInterrupted" ? error.callSite : "", "interrupted.test.ts")
      assert.include(error.message, "interrupted.test.ts")
    }).pipe(Effect.provide(fresh({ leakThreshold: "1 minute" })))
  )

  it.scopedLive("an interrupted statement fails the statements that wait behind it, and the connection is kept", () =>
    Effect.gen(function* () {
      const before = yield* pid
      const error = yield* failure(
        Db.withTransaction(
          Effect.gen(function* () {
            yield* insert("first")
            const slow = yield* Effect.fork(run(long))
            yield* running(1)
            const waiting = yield* Effect.fork(failure(insert("second")))
            yield* Effect.yieldNow()
            yield* Fiber.interrupt(slow)
            assert.strictEqual((yield* Fiber.join(waiting))._tag, "TransactionInterrupted")
          })
        )
      )
      assert.strictEqual(error._tag, "TransactionInterrupted")
      assert.strictEqual(yield* pid, before)
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
  )

  const ways = {
    "as its only statement": run(long),
    "as its second statement": Effect.zipRight(insert("inner"), run(long)),
    "in a nested transaction of its own": Db.withTransaction(
      Effect.zipRight(insert("inner"), Db.withTransaction(Effect.zipRight(insert("innermost"), run(long))))
    ),
    "as a stream": Stream.runDrain(Stream.unwrap(Effect.map(Db.writer, (sql) => sql.unsafe(long).stream))),
    "as the second command of a text": run(`INSERT INTO item (name) VALUES ('inner'); ${long}`)
  }
  for (const [name, statements] of Object.entries(ways)) {
    it.scopedLive(`an interrupted nested transaction is undone alone: ${name}`, () =>
      Effect.gen(function* () {
        yield* Db.withTransaction(
          Effect.gen(function* () {
            yield* insert("outer")
            yield* interrupted(Db.withTransaction(statements))
            yield* insert("after")
          })
        )
        assert.deepStrictEqual(yield* stored, ["after", "outer"])
      }).pipe(Effect.provide(fresh()))
    )
  }

  it.scopedLive("a nested transaction that goes on after an interrupted statement is undone alone", () =>
    Effect.gen(function* () {
      yield* Db.withTransaction(
        Effect.gen(function* () {
          yield* insert("outer")
          for (const last of [insert("lost"), Effect.void]) {
            const inner = Effect.all([insert("inner"), interrupted(run(long)), last])
            assert.strictEqual((yield* failure(Db.withTransaction(inner)))._tag, "TransactionInterrupted")
          }
          yield* Db.withTransaction(
            Effect.ignore(Db.withTransaction(Effect.zipRight(interrupted(run(long)), insert("innermost"))))
          )
          yield* Db.withTransaction(insert("after"))
        })
      )
      assert.deepStrictEqual(yield* stored, ["after", "outer"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("an interrupted statement of a reader in a writer's transaction is undone alone", () =>
    Effect.gen(function* () {
      const reader = yield* Db.reader
      yield* Db.withTransaction(
        Effect.gen(function* () {
          yield* insert("outer")
          yield* interrupted(reader.unsafe(long))
          assert.strictEqual((yield* reader`SELECT name FROM item`).length, 1)
          yield* insert("after")
        })
      )
      assert.deepStrictEqual(yield* stored, ["after", "outer"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("an interrupted statement undoes the whole transaction if its cancel does not arrive in time", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        let runs = 0
        const work = Effect.gen(function* () {
          runs++
          yield* insert("outer")
          yield* proxy.when(({ type }) => type === "cancel", "freeze", 2)
          yield* interrupted(Db.withTransaction(run(long)))
          yield* insert("after")
        })
        const error = yield* failure(Db.withTransaction(work, { retry: true }))
        assert.strictEqual(error._tag, "TransactionInterrupted")
        assert.strictEqual(runs, 1)
        assert.deepStrictEqual(yield* stored, [])
      })
    )
  )
})

describe("a nested transaction that is interrupted during its release", () => {
  /** Runs a part, and interrupts it while the answer to its RELEASE is on its way. */
  const released = <A, E, R>(proxy: Proxy, part: Effect.Effect<A, E, R>) =>
    Effect.gen(function* () {
      const sent = yield* proxy.when(answers("RELEASE"), "freeze")
      const fiber = yield* Effect.fork(part)
      yield* sent
      yield* Fiber.interruptFork(fiber)
      yield* Effect.zipRight(Effect.yieldNow(), proxy.thaw)
      assert.isTrue(Exit.isInterrupted(yield* Fiber.await(fiber)))
    })

  const parts: Readonly<Record<string, Effect.Effect<unknown, unknown, Db>>> = {
    "Db.withTransaction": Db.withTransaction(insert("undone")),
    "UnitOfWork.nested": UnitOfWork.nested(insert("undone")),
    copyFrom: Effect.flatMap(Db.writer, (sql) => sql.copyFrom("item", ["name"], Stream.make(["undone"])))
  }
  for (const [name, part] of Object.entries(parts)) {
    it.scopedLive(`an interrupted release rolls back the transaction around it as a whole: ${name}`, () =>
      behind({ maxConnections: 1 }, (proxy) =>
        Effect.gen(function* () {
          let runs = 0
          const work = Effect.gen(function* () {
            runs++
            yield* insert("outer")
            yield* released(proxy, part)
          })
          const before = yield* pid
          for (const whole of [UnitOfWork.run(work, { retry: true }), Db.withTransaction(work, { retry: true })]) {
            assert.strictEqual((yield* failure(whole))._tag, "TransactionInterrupted")
          }
          assert.strictEqual(runs, 2)
          const next = yield* failure(Db.withTransaction(Effect.zipRight(released(proxy, part), insert("later"))))
          assert.strictEqual(next._tag, "TransactionInterrupted")
          assert.deepStrictEqual(yield* stored, [])
          assert.strictEqual(yield* pid, before)
        })
      )
    )
  }

  it.scopedLive("an interrupted release of a copyTo whose rows are all read undoes nothing around it", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        const copy = Effect.map(Db.writer, (sql) => sql.copyTo(sql`SELECT 1`))
        const work = Effect.zipRight(insert("outer"), released(proxy, Stream.runDrain(Stream.unwrap(copy))))
        yield* Db.withTransaction(Effect.zipRight(work, insert("after")))
        assert.deepStrictEqual(yield* stored, ["after", "outer"])
      })
    )
  )

  it.scopedLive("an interrupted release in a nested transaction undoes that transaction alone", () =>
    behind({ maxConnections: 1 }, (proxy) =>
      Effect.gen(function* () {
        yield* UnitOfWork.run(
          Effect.gen(function* () {
            yield* insert("outer")
            const part = Effect.zipRight(insert("middle"), released(proxy, UnitOfWork.nested(insert("undone"))))
            assert.strictEqual((yield* failure(UnitOfWork.nested(part)))._tag, "TransactionInterrupted")
            yield* insert("after")
          })
        )
        assert.deepStrictEqual(yield* stored, ["after", "outer"])
      })
    )
  )

  it.scopedLive("an interrupted release rolls back all databases of its unit", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        const part = UnitOfWork.nested(Effect.zipRight(insert("undone"), event("undone")))
        const work = Effect.zipRight(event("outer"), released(proxy, part))
        assert.strictEqual((yield* failure(UnitOfWork.run(work)))._tag, "TransactionInterrupted")
        // two transactions without a unit, which end one after the other
        const byHand = Db.withTransaction(Effect.ignore(Audit.withTransaction(released(proxy, part))))
        assert.strictEqual((yield* failure(byHand))._tag, "TransactionInterrupted")
        assert.deepStrictEqual([yield* stored, yield* events], [[], []])
      }).pipe(Effect.provide(audit))
    )
  )

  it.scopedLive("an interrupted release drops the hooks of its part, except for afterRollback", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        const log: Array<string> = []
        const note = (text: string) => Effect.sync(() => void log.push(text))
        const part = UnitOfWork.nested(
          Effect.all([insert("undone"), Db.afterCommit(note("committed")), Db.afterRollback(note("rolled back"))])
        )
        assert.strictEqual((yield* failure(UnitOfWork.run(released(proxy, part))))._tag, "TransactionInterrupted")
        assert.deepStrictEqual(log, ["rolled back"])
      })
    )
  )

  it.scopedLive("an interrupted release is kept if its part has committed on another database", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        const part = UnitOfWork.nested(Effect.zipRight(insert("kept"), event("kept")))
        yield* Db.withTransaction(Effect.zipRight(insert("outer"), released(proxy, part)))
        assert.deepStrictEqual([yield* stored, yield* events], [["kept", "outer"], ["kept"]])
      }).pipe(Effect.provide(audit))
    )
  )
})

describe("the connection of an interrupted statement", () => {
  it.scopedLive("200 interruptions, ten at a time, use at most twelve server processes", () =>
    Effect.gen(function* () {
      const pids = new Set<number>()
      for (let round = 0; round < 20; round++) {
        const fibers = yield* Effect.forEach(Array.from({ length: 10 }), () => Effect.fork(run(long)))
        for (const pid of yield* running(10)) pids.add(pid)
        yield* Fiber.interruptAll(fibers)
      }
      assert.isAtMost(pids.size, 12)
      yield* idle
    }).pipe(Effect.provide(fresh({ maxConnections: 10 })))
  )

  it.scopedLive("the connection of an interrupted statement is kept, also in a unit, a stream and a reservation", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const reader = yield* Db.reader
      const reserved = Effect.scoped(
        Effect.flatMap(sql.reserve, (connection) => connection.execute(long, [], undefined))
      )
      for (const statement of [
        run(long),
        run(`SELECT 1; ${long}`),
        UnitOfWork.run(run(long)),
        Stream.runDrain(sql.unsafe(long).stream),
        reserved,
        Db.withSchema(run(long), "public")
      ]) {
        const before = yield* pid
        assert.strictEqual(yield* interrupted(statement), before)
        yield* idle
        assert.strictEqual(yield* pid, before)
      }
      const before = yield* reader`SELECT pg_backend_pid()`
      const reservedReader = Effect.scoped(
        Effect.flatMap(reader.reserve, (connection) => connection.execute(long, [], undefined))
      )
      for (const statement of [reader.unsafe(long), reservedReader]) {
        yield* interrupted(statement)
        yield* idle
        assert.deepStrictEqual(yield* reader`SELECT pg_backend_pid()`, before)
      }
    }).pipe(Effect.provide(fresh({ maxConnections: 1, readers: [] })))
  )

  it.scopedLive("the connection is kept if a reserved reader is released while its statement is rolled back", () =>
    behind({ maxConnections: 1 }, (proxy) =>
      Effect.gen(function* () {
        const reader = yield* Db.reader
        const before = yield* reader`SELECT pg_backend_pid()`
        yield* Effect.scoped(
          Effect.gen(function* () {
            const connection = yield* reader.reserve
            const undone = yield* proxy.when(sends("ROLLBACK"), "freeze")
            yield* interrupted(connection.execute(long, [], undefined))
            yield* undone
          })
        )
        yield* proxy.thaw
        assert.deepStrictEqual(yield* reader`SELECT pg_backend_pid()`, before)
      })
    )
  )

  const lock = "SELECT pg_advisory_lock_shared(1) AS long"
  const ends = {
    "ends by itself before its cancel arrives": ["late", lock],
    "fails with 57014 before its cancel arrives": [
      "late",
      "DO $$BEGIN PERFORM pg_advisory_lock_shared(1); RAISE 'no' USING ERRCODE = '57014'; END$$ -- AS long"
    ],
    "fails after its cancel with a message in another language": [
      "at once",
      `DO $$BEGIN PERFORM pg_advisory_lock_shared(1); EXCEPTION WHEN query_canceled THEN
        RAISE 'wegen Benutzeranfrage abgebrochen' USING ERRCODE = '57014'; END$$ -- AS long`
    ]
  } as const
  for (const [how, [comes, text]] of Object.entries(ends)) {
    it.scopedLive(`the connection is kept if its interrupted statement ${how}`, () =>
      Effect.gen(function* () {
        const place = yield* freshTable
        const proxy = yield* makeProxy(place.writer)
        const other = yield* Layer.build(Db.layer({ writer: place.writer }))
        const { reserve } = yield* Effect.provide(Db.writer, other)
        const holder = yield* reserve
        yield* holder.execute("SELECT pg_advisory_lock(1)", [], undefined)
        yield* Effect.gen(function* () {
          const before = yield* pid
          const trips = proxy.roundTrips
          const fiber = yield* Effect.fork(run(text))
          yield* running(1)
          const sent = yield* proxy.when(({ type }) => type === "cancel", comes === "late" ? "freeze" : "pass")
          yield* Fiber.interrupt(fiber)
          yield* sent
          if (comes === "late") yield* holder.execute("SELECT pg_advisory_unlock(1)", [], undefined)
          yield* until(() => proxy.roundTrips > trips)
          yield* proxy.thaw
          assert.strictEqual(yield* pid, before)
        }).pipe(
          Effect.provide(Layer.merge(Db.layer({ writer: proxy.url, maxConnections: 1 }), Layer.succeed(Place, place)))
        )
      })
    )
  }

  it.scopedLive("the connection runs nothing of a statement that was interrupted at the BEGIN before it", () =>
    behind({ maxConnections: 1 }, (proxy) =>
      Effect.gen(function* () {
        const before = yield* pid
        const text = "INSERT INTO item (name) VALUES ('a'); INSERT INTO item (name) VALUES ('b')"
        for (const self of [Db.withSchema(run(text), "public"), Db.withTransaction(run(text))]) {
          const trips = proxy.roundTrips
          const begun = yield* proxy.when(sends("BEGIN"), "freeze")
          const cancelled = yield* proxy.when(({ type }) => type === "cancel", "pass")
          const fiber = yield* Effect.fork(self)
          yield* begun
          const leaving = yield* Effect.fork(Fiber.interrupt(fiber))
          yield* cancelled
          yield* proxy.thaw
          yield* Fiber.join(leaving)
          yield* until(() => proxy.roundTrips > trips)
          assert.strictEqual(yield* pid, before)
        }
        assert.deepStrictEqual(yield* stored, [])
      })
    )
  )

  it.scopedLive("the connection is not used while its cancel is on its way, though the statement has ended", () =>
    behind({ maxConnections: 2 }, (proxy) =>
      Effect.gen(function* () {
        const place = yield* Place
        const before = yield* pid
        const fiber = yield* Effect.fork(run(long))
        yield* running(1)
        const held = yield* proxy.when(({ type }) => type === "cancel", "freeze", 2)
        yield* Fiber.interrupt(fiber)
        yield* held
        // the statement fails with the same error as after the cancel that is on its way
        yield* query(place.writer, "SELECT pg_cancel_backend($1)", [before])
        const other = yield* Effect.fork(run("SELECT pg_backend_pid() AS pid FROM pg_sleep(0.5) AS long"))
        const [next] = yield* running(1)
        assert.notStrictEqual(next, before)
        yield* proxy.thaw
        assert.deepStrictEqual(yield* Fiber.join(other), [{ pid: next }])
      })
    )
  )

  it.scopedLive(`a connection ${behindBouncer} is never kept: the pooler may pass a cancel on late`, (context) =>
    Effect.gen(function* () {
      // only `npm run test:cluster` installs PgBouncer; elsewhere the connection is to a server
      if (!hasBouncer) return context.skip()
      yield* interrupted(run(long))
      const { servers } = yield* Db.status
      assert.strictEqual(servers[0]?.writes?.idle, 0)
      yield* insert("next")
      assert.deepStrictEqual(yield* stored, ["next"])
    }).pipe(Effect.provide(freshPooled({ maxConnections: 1 })))
  )
})

describe("a reserved connection", () => {
  it.scopedLive(
    "a reserved connection stays usable after an interrupted statement, also in a transaction that is begun by hand",
    () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        yield* Effect.scoped(
          Effect.gen(function* () {
            const connection = yield* sql.reserve
            const execute = (text: string) => connection.execute(text, [], undefined)
            const [before] = yield* execute("SELECT pg_backend_pid()")
            yield* interrupted(execute(long))
            assert.deepStrictEqual(yield* execute("SELECT pg_backend_pid()"), [before])
            yield* execute("BEGIN")
            yield* execute("INSERT INTO item (name) VALUES ('a')")
            yield* interrupted(execute(long))
            const error = yield* failure(execute("SELECT 1"))
            assert.strictEqual(error._tag === "QueryFailed" && error.sqlState, "25P02")
            yield* execute("ROLLBACK")
            yield* execute("INSERT INTO item (name) VALUES ('b')")
          })
        )
        assert.deepStrictEqual(yield* stored, ["b"])
      }).pipe(Effect.provide(fresh()))
  )
})

describe("a sandbox of TestDatabase", () => {
  it.scopedLive("a sandbox goes on after an interrupted statement of a reader, writer or nested transaction", () =>
    Effect.gen(function* () {
      const sandbox = Effect.gen(function* () {
        const reader = yield* Db.reader
        yield* insert("a")
        yield* interrupted(run(long))
        yield* interrupted(run(`INSERT INTO item (name) VALUES ('x'); ${long}`))
        yield* interrupted(reader.unsafe(long))
        yield* interrupted(Db.withTransaction(Effect.zipRight(insert("x"), run(long))))
        const inner = Db.withTransaction(Effect.all([insert("x"), interrupted(run(long)), insert("y")]))
        assert.strictEqual((yield* failure(inner))._tag, "TransactionInterrupted")
        yield* UnitOfWork.run(Effect.zipRight(insert("b"), interrupted(Db.withTransaction(run(long)))))
        yield* interrupted(Stream.runDrain(Stream.unwrap(Effect.map(Db.writer, (sql) => sql.unsafe(long).stream))))
        const names = yield* reader<{ name: string }>`SELECT name FROM item ORDER BY name`
        assert.deepStrictEqual(
          names.map(({ name }) => name),
          ["a", "b"]
        )
      })
      yield* Effect.provide(sandbox, TestDatabase.layer(Db))
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh({ maxConnections: 1 })))
  )
})
