/** The tasks on a session when its connection is opened, checked out and checked in. */
import { SqlClient } from "@effect/sql/SqlClient"
import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type { Database } from "effect-db"
import { Db, fresh, insert, Place, pid, stored } from "../../databases.js"
import { eventually } from "../../eventually.js"
import { taggedFailure } from "../../failures.js"
import { sends } from "../../proxy.js"
import { inThisDatabase, query } from "../../server.js"
import { kill, processes, warmUp } from "./connections.js"
import { figures, only, settled, told, watch } from "./observations.js"
import { Network, once, open, openOverNetwork, type Way } from "./way.js"

const run = (text: string) => Effect.flatMap(SqlClient, (sql) => sql.unsafe(text))

/** Reads a value from the server through the pool. */
const ask = (text: string) =>
  Effect.flatMap(Db.writer, (sql) =>
    Effect.map(sql.unsafe<{ value: unknown }>(`SELECT ${text} AS value`).unprepared, (rows) => rows[0]?.value)
  )

const count = (what: string) => ask(`(SELECT count(*)::int FROM ${what})`)

const setting = (name: string) => ask(`current_setting('${name}')`)

class Refused extends Error {
  override readonly message = "not this one"
}

/** Creates an `onCheckout` that refuses one connection after `isDue` was set. */
const refusesOnce = () => {
  const next = { isDue: false }
  const onCheckout = Effect.suspend(() => {
    const isRefused = next.isDue
    next.isDue = false
    return isRefused ? Effect.fail(new Refused()) : Effect.void
  })
  return { next, onCheckout }
}

export const sessions = (way: Way): void => {
  const one = { maxConnections: 1 }

  it.scopedLive("a transaction that a reserved connection leaves open is rolled back, and the connection closed", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      const sql = yield* Db.writer
      yield* Effect.scoped(
        Effect.gen(function* () {
          const connection = yield* sql.reserve
          yield* connection.executeUnprepared("BEGIN", [], undefined)
          yield* connection.executeUnprepared("INSERT INTO item (name) VALUES ('open')", [], undefined)
        })
      )
      yield* insert("next")
      assert.deepStrictEqual(yield* stored, ["next"])
      assert.deepStrictEqual(
        (yield* told(facts, "Closed")).map(({ reason }) => reason),
        ["dirty"]
      )
    }).pipe(Effect.provide(open(way, one)))
  )

  it.scopedLive("discardAll leaves nothing of a session: settings, temporary tables, locks, prepared statements", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const first = yield* pid
      const select = (n: number) => sql`SELECT ${n}::int AS n`
      yield* select(1)
      yield* sql`SET statement_timeout = 4321`
      assert.strictEqual(yield* setting("statement_timeout"), "0")
      yield* sql`CREATE TEMP TABLE left_behind (id int)`
      assert.strictEqual(yield* ask("to_regclass('pg_temp.left_behind')"), null)
      yield* sql`SELECT pg_advisory_lock(42)`
      assert.strictEqual(yield* count(`pg_locks WHERE locktype = 'advisory' AND objid = 42 AND ${inThisDatabase}`), 0)
      assert.strictEqual(yield* count("pg_prepared_statements"), 0)
      // the library's record of the prepared statements is reset as well
      assert.deepStrictEqual(yield* select(2), [{ n: 2 }])
      assert.deepStrictEqual(yield* select(3), [{ n: 3 }])
      assert.strictEqual(yield* pid, first)
    }).pipe(Effect.provide(open(way, { ...one, resetOnReturn: "discardAll" })))
  )

  it.scopedLive("discardAll keeps the settings of onConnect", () =>
    Effect.gen(function* () {
      assert.strictEqual(yield* setting("search_path"), "special")
      const sql = yield* Db.writer
      yield* sql`SET search_path = other`
      assert.strictEqual(yield* setting("search_path"), "special")
    }).pipe(
      Effect.provide(open(way, { ...one, resetOnReturn: "discardAll", onConnect: run("SET search_path = special") }))
    )
  )

  it.scopedLive("an effect as resetOnReturn resets a session", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      const sql = yield* Db.writer
      const first = yield* pid
      yield* sql`SET search_path = other`
      assert.notStrictEqual(yield* setting("search_path"), "other")
      assert.strictEqual(yield* pid, first)
      assert.isNotEmpty(yield* told(facts, "Reset"))
    }).pipe(Effect.provide(open(way, { ...one, resetOnReturn: run("RESET search_path") })))
  )

  const resets: ReadonlyArray<readonly [string, Effect.Effect<unknown, unknown, SqlClient>]> = [
    ["a reset that fails", Effect.fail(new Refused())],
    ["a reset whose statement fails", run("SELECT 1 / 0")],
    ["a reset that dies", Effect.die(new Refused())],
    ["a reset that never ends", Effect.never],
    ["a reset that never ends and cannot be interrupted", Effect.uninterruptible(Effect.never)],
    ["a reset whose statement never ends", run("SELECT pg_sleep(1000)")],
    ["a reset that leaves a transaction open", run("BEGIN")]
  ]
  for (const [what, resetOnReturn] of resets) {
    it.scopedLive(`${what} closes the connection, within connectTimeout`, () =>
      Effect.gen(function* () {
        const facts = yield* watch
        const first = yield* pid
        const second = yield* pid
        assert.notStrictEqual(second, first)
        const [closed] = yield* told(facts, "Closed")
        assert.strictEqual(closed?.reason, "dirty")
        yield* settled({ active: 0, waiting: 0 })
      }).pipe(
        Effect.provide(
          open(way, {
            ...one,
            resetOnReturn,
            connectTimeout: "300 millis",
            acquireTimeout: "5 seconds",
            startup: "lazy"
          })
        )
      )
    )
  }

  it.scopedLive("a connection whose discardAll gets no answer is closed, within connectTimeout, and replaced", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      const network = yield* Network
      yield* network.when(sends("DISCARD ALL"), "freeze")
      yield* insert("a")
      const [took] = yield* Effect.timed(insert("b"))
      assert.isBelow(Duration.toMillis(took), 3000)
      assert.deepStrictEqual(
        (yield* told(facts, "Closed")).map(({ reason }) => reason),
        ["dirty"]
      )
      assert.strictEqual(network.accepted, 2)
      assert.deepStrictEqual(yield* stored, ["a", "b"])
    }).pipe(
      Effect.provide(
        openOverNetwork(way, { ...one, resetOnReturn: "discardAll", connectTimeout: "300 millis", startup: "lazy" })
      )
    )
  )

  if (way.strategy === "pooled") {
    it.scopedLive("a reset that takes long delays no caller as long as another connection is idle", () => {
      const latch = Effect.unsafeMakeLatch(true)
      return Effect.gen(function* () {
        yield* warmUp(2)
        yield* settled({ idle: 2 })
        yield* latch.close
        yield* insert("a")
        assert.strictEqual((yield* figures).active, 1)
        yield* insert("b")
        assert.deepStrictEqual(yield* stored, ["a", "b"])
        yield* latch.open
      }).pipe(
        Effect.provide(
          open(way, {
            maxConnections: 2,
            resetOnReturn: latch.await,
            validateAfterIdle: 0,
            acquireTimeout: "3 seconds",
            connectTimeout: "20 seconds",
            startup: "lazy"
          })
        )
      )
    })
  }

  it.scopedLive("onConnect runs once on each new connection, before its first use", () =>
    Effect.gen(function* () {
      assert.strictEqual(yield* setting("search_path"), "special")
      assert.strictEqual(yield* setting("search_path"), "special")
      const sql = yield* Db.writer
      yield* sql`SET search_path = other`
      assert.strictEqual(yield* setting("search_path"), "other")
      yield* Db.invalidate()
      assert.strictEqual(yield* setting("search_path"), "special")
    }).pipe(Effect.provide(open(way, { ...one, onConnect: run("SET search_path = special") })))
  )

  const refusals: ReadonlyArray<readonly [string, Effect.Effect<unknown, unknown, SqlClient>, string]> = [
    ["fails", Effect.fail(new Refused()), "not this one"],
    ["has a statement that fails", run("SELECT 1 / 0"), "division by zero"],
    ["dies", Effect.die(new Refused()), "not this one"],
    ["never ends", Effect.never, "the task did not end within 300 ms"],
    ["has a statement that never ends", run("SELECT pg_sleep(1000)"), "the task did not end within 300 ms"],
    ["leaves a transaction open", run("BEGIN"), "in a transaction"]
  ]
  for (const [what, onConnect, words] of refusals) {
    it.scopedLive(`an onConnect that ${what} fails all waiters with ConnectFailed, setup, and the reason`, () =>
      Effect.gen(function* () {
        const network = yield* Network
        const errors = yield* Effect.all([taggedFailure("ConnectFailed", pid), taggedFailure("ConnectFailed", pid)], {
          concurrency: "unbounded"
        })
        for (const error of errors) {
          assert.strictEqual(error.reason, "setup")
          assert.include(error.message, words)
        }
        yield* settled({ total: 0, active: 0, connecting: 0, waiting: 0 })
        // the number of attempts is limited; a cancel request connects, too
        assert.isBelow(network.accepted, 8)
      }).pipe(Effect.provide(openOverNetwork(way, { onConnect, connectTimeout: "300 millis", startup: "lazy" })))
    )
  }

  it.scopedLive("a database whose onConnect fails does not open, and reports that", () =>
    Effect.gen(function* () {
      const error = yield* taggedFailure(
        "ConnectFailed",
        Effect.scoped(
          Effect.gen(function* () {
            const { writer } = yield* Place
            const options: Database.Options = { writer, strategy: way.strategy, onConnect: Effect.fail(new Refused()) }
            yield* Layer.build(Db.layer(options))
          })
        )
      )
      assert.strictEqual(error.reason, "setup")
      assert.include(error.message, "not this one")
    }).pipe(Effect.provide(fresh({ startup: "lazy" })))
  )

  it.scopedLive("a connection that is lost in onConnect counts as a failed connect, and the next one is tried", () =>
    Effect.gen(function* () {
      const network = yield* Network
      yield* network.when(sends("SET search_path"), "cut")
      assert.strictEqual(yield* setting("search_path"), "special")
    }).pipe(
      Effect.provide(openOverNetwork(way, { ...one, onConnect: run("SET search_path = special"), startup: "lazy" }))
    )
  )

  it.scopedLive("a connection that is lost while onConnect runs no statement counts as a failed connect", () => {
    const latch = Effect.unsafeMakeLatch(false)
    return Effect.gen(function* () {
      const waiter = yield* Effect.fork(taggedFailure("ConnectFailed", pid))
      const [process] = yield* eventually(processes, (all) => all.length === 1)
      yield* kill(process ?? 0)
      assert.strictEqual((yield* Fiber.join(waiter)).reason, "unreachable")
      yield* latch.open
      assert.isAbove(yield* pid, 0)
    }).pipe(
      Effect.provide([
        open(way, { ...one, onConnect: latch.await, connectTimeout: "20 seconds", startup: "lazy" }),
        once
      ])
    )
  })

  it.scopedLive("onCheckout runs on each connection before the caller gets it", () => {
    const seen: Array<unknown> = []
    const onCheckout = Effect.tap(run("SELECT pg_backend_pid() AS pid"), ([row]) => Effect.sync(() => seen.push(row)))
    return Effect.gen(function* () {
      const given = [yield* pid, yield* pid, yield* Db.withTransaction(pid)]
      assert.deepStrictEqual(
        seen,
        given.map((process) => ({ pid: process }))
      )
    }).pipe(Effect.provide(open(way, { ...one, onCheckout, startup: "lazy" })))
  })

  it.scopedLive("a checkout that onCheckout refuses gets another connection, and the refused one is closed", () => {
    const { next, onCheckout } = refusesOnce()
    return Effect.gen(function* () {
      const facts = yield* watch
      const first = yield* pid
      next.isDue = true
      const second = yield* pid
      assert.notStrictEqual(second, first)
      assert.deepStrictEqual(
        (yield* told(facts, "Closed")).map(({ reason }) => reason),
        ["vetoed"]
      )
      assert.isEmpty(only(facts, "ConnectFailed"))
    }).pipe(Effect.provide(open(way, { ...one, onCheckout })))
  })

  it.scopedLive("a caller whose onCheckout refuses a connection of minConnections gets another one", () => {
    const { next, onCheckout } = refusesOnce()
    return Effect.gen(function* () {
      const facts = yield* watch
      yield* settled({ idle: 1 })
      yield* Db.invalidate({ mode: "hard" })
      yield* told(facts, "Connected")
      yield* settled({ idle: 1 })
      // the idle connection was never checked out
      next.isDue = true
      assert.isAbove(yield* pid, 0)
      assert.isFalse(next.isDue)
    }).pipe(Effect.provide([open(way, { ...one, minConnections: 1, onCheckout }), once]))
  })

  it.scopedLive("an onCheckout that also refuses new connections is ConnectFailed, setup, after a few attempts", () => {
    let refuses = false
    const onCheckout = Effect.suspend(() => (refuses ? Effect.fail(new Refused()) : Effect.void))
    return Effect.gen(function* () {
      const network = yield* Network
      yield* pid
      refuses = true
      const error = yield* taggedFailure("ConnectFailed", pid)
      assert.strictEqual(error.reason, "setup")
      assert.instanceOf(error.cause, Refused)
      assert.isBelow(network.accepted, 6)
      yield* settled({ total: 0, waiting: 0 })
    }).pipe(Effect.provide(openOverNetwork(way, { ...one, onCheckout })))
  })

  it.scopedLive("an onCheckout that never ends is ConnectFailed, setup, after connectTimeout", () =>
    Effect.gen(function* () {
      const error = yield* taggedFailure("ConnectFailed", pid)
      assert.strictEqual(error.reason, "setup")
      assert.include(error.message, "the task did not end within 200 ms")
    }).pipe(
      Effect.provide(open(way, { ...one, onCheckout: Effect.never, connectTimeout: "200 millis", startup: "lazy" }))
    )
  )

  it.scopedLive("a fiber that outlives its task on a session cannot use the session any more", () => {
    const latch = Effect.unsafeMakeLatch(false)
    const late = Effect.zipRight(latch.await, Effect.exit(run("INSERT INTO item (name) VALUES ('late')")))
    let fiber: Fiber.RuntimeFiber<Exit.Exit<unknown, unknown>> | undefined
    const onConnect = Effect.map(Effect.forkDaemon(late), (forked) => {
      fiber = forked
    })
    return Effect.gen(function* () {
      yield* Db.withTransaction(
        Effect.gen(function* () {
          yield* insert("ours")
          yield* latch.open
          const exit = fiber === undefined ? assert.fail("onConnect has not run") : yield* Fiber.join(fiber)
          yield* taggedFailure("TransactionEnded", exit)
        })
      )
      assert.deepStrictEqual(yield* stored, ["ours"])
    }).pipe(Effect.provide(open(way, { ...one, onConnect, startup: "lazy" })))
  })

  it.scopedLive("a task on a session is independent of the transaction of the caller", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      yield* Effect.scoped(
        Effect.gen(function* () {
          const inner = Db.layer({
            writer,
            onConnect: run("INSERT INTO item (name) VALUES ('setup')"),
            startup: "lazy"
          })
          const outer = yield* Db.writer
          yield* Effect.ignore(
            outer.withTransaction(
              Effect.zipRight(insert("outer"), Effect.zipRight(Effect.provide(pid, inner), Effect.fail("no")))
            )
          )
        })
      )
      const rows = yield* query<{ name: string }>(writer, "SELECT name FROM item")
      assert.deepStrictEqual(rows, [{ name: "setup" }])
    }).pipe(Effect.provide(open(way)))
  )
}
