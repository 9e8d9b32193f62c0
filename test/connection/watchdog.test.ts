/**
 * The watchdog: connections without an answer when the limit of a statement is over, which it
 * closes, and slow connections, which it keeps.
 */
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import { DatabaseError } from "effect-db"
import * as EmbeddedPostgres from "effect-db/EmbeddedPostgres"
import { afterEach, beforeEach, describe, vi } from "vitest"
import { type BackendState, Watchdog } from "../../src/internal/connection/watchdog.js"
import { active, Db, run } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { eventually, until } from "../support/eventually.js"
import { freshItemsThroughProxy, throughProxy } from "../support/proxied.js"
import { answers, type Message, sends } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"

const limit = "200 millis"

const insert = run("INSERT INTO item VALUES ('x')")

/**
 * Returns the failure of a statement, which is due a second after its limit; the rest of the 3 s is
 * for a busy machine.
 */
const failure = <A, E>(self: Effect.Effect<A, E, Db>) =>
  DatabaseError.refine(self).pipe(Effect.flip, Effect.timeout("3 seconds"))

/** Waits for 2 s, so that the limit has long passed. */
const later = (url: Redacted.Redacted<string>) => query(url, "SELECT pg_sleep(2)")

describe("the watchdog on a dead network", () => {
  it.scopedLive("a statement on a dead network is Disconnected, in doubt, and its connection is destroyed", () =>
    Effect.gen(function* () {
      const { context, proxy } = yield* freshItemsThroughProxy({ statementTimeout: limit })
      const gone = yield* proxy.when(sends("INSERT"), "freeze")
      const fiber = yield* Effect.fork(Effect.provide(failure(insert), context))
      yield* gone
      yield* proxy.freeze
      const error = yield* Fiber.join(fiber)
      assert.strictEqual(error._tag === "Disconnected" && error.outcome, "inDoubt")
      assert.strictEqual(yield* Effect.provide(active, context), 0)
      yield* until(() => proxy.connections === 0)
      assert.strictEqual(proxy.connections, 0)
    })
  )

  it.scopedLive("a statement in a transaction on a dead network is Disconnected, undone", () =>
    Effect.gen(function* () {
      const { context, proxy, writer } = yield* freshItemsThroughProxy({ statementTimeout: limit })
      const gone = yield* proxy.when(sends("'lost'"), "freeze")
      yield* Effect.fork(Effect.zipRight(gone, proxy.freeze))
      const error = yield* Db.withTransaction(Effect.zipRight(insert, run("SELECT 'lost'"))).pipe(
        failure,
        Effect.provide(context)
      )
      assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
      assert.strictEqual(yield* Effect.provide(active, context), 0)
      assert.deepStrictEqual(yield* query(writer, "SELECT * FROM item"), [])
    })
  )

  it.scopedLive("the limit of a transaction, also of a nested one, bounds the wait on a dead connection", () =>
    Effect.gen(function* () {
      const { context, proxy } = yield* freshItemsThroughProxy()
      const lost = Effect.zipRight(proxy.when(sends("'lost'"), "freeze"), Effect.zipRight(insert, run("SELECT 'lost'")))
      const alone = Db.withTransaction(lost, { statementTimeout: limit })
      const nested = Db.withTransaction(Effect.zipRight(insert, alone), { statementTimeout: "1 minute" })
      for (const transaction of [alone, nested]) {
        const error = yield* Effect.provide(failure(transaction), context)
        assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
      }
    })
  )

  it.scopedLive("a read on a dead connection is retried on another one", () =>
    Effect.gen(function* () {
      const { context, proxy } = yield* freshItemsThroughProxy({ statementTimeout: limit })
      yield* proxy.when(sends("'lost'"), "freeze")
      const rows = yield* Effect.flatMap(Db.reader, (sql) => sql`SELECT 'lost' AS is`).pipe(
        Effect.timeout("3 seconds"),
        Effect.provide(context)
      )
      assert.deepStrictEqual(rows, [{ is: "lost" }])
    })
  )

  it.scopedLive("a COMMIT on a dead network is CommitOutcomeUnknown after resolveWithin", () =>
    Effect.gen(function* () {
      const { context, proxy } = yield* freshItemsThroughProxy({ statementTimeout: limit, resolveWithin: limit })
      const gone = yield* proxy.when(sends("COMMIT"), "freeze")
      const fiber = yield* Effect.fork(Db.withTransaction(insert).pipe(failure, Effect.provide(context)))
      yield* gone
      yield* proxy.freeze
      assert.strictEqual((yield* Fiber.join(fiber))._tag, "CommitOutcomeUnknown")
    })
  )

  it.scopedLive("a statement on a frozen server is Disconnected, in doubt", () =>
    Effect.gen(function* () {
      const { primary } = yield* EmbeddedPostgres.make({ directory })
      yield* Effect.addFinalizer(() => Effect.orDie(primary.thaw))
      const { context } = yield* throughProxy(primary.url(), { statementTimeout: limit, maxConnections: 1 })
      yield* primary.freeze
      const error = yield* failure(run("SELECT 1")).pipe(Effect.provide(context))
      assert.strictEqual(error._tag === "Disconnected" && error.outcome, "inDoubt")
    })
  )
})

describe("the watchdog on a dead connection to a healthy server", () => {
  /**
   * Runs an effect on a connection that delivers nothing from a matching message on. Returns the
   * error and the stored rows.
   */
  const lost = <A, E>(matches: (message: Message) => boolean, self: Effect.Effect<A, E, Db>) =>
    Effect.gen(function* () {
      const { context, proxy, writer } = yield* freshItemsThroughProxy({ statementTimeout: limit, outcome: "unknown" })
      yield* proxy.when(matches, "freeze")
      const error = yield* Effect.provide(failure(self), context)
      assert.strictEqual(yield* Effect.provide(active, context), 0)
      // the connection ends, and the lost messages never arrive
      yield* proxy.cut
      assert.lengthOf(yield* Effect.provide(run("SELECT 1"), context), 1)
      return { error, rows: yield* query(writer, "SELECT * FROM item") }
    })

  for (const [side, matching, stored] of [
    ["to", sends, 0],
    ["from", answers, 1]
  ] as const) {
    it.scopedLive(`a write on a dead connection is in doubt if a message ${side} the server is lost`, () =>
      Effect.gen(function* () {
        const { error, rows } = yield* lost(matching("INSERT"), insert)
        assert.strictEqual(error._tag === "Disconnected" && error.outcome, "inDoubt")
        assert.lengthOf(rows, stored)
      })
    )

    it.scopedLive(`a COMMIT on a dead connection is CommitOutcomeUnknown if a message ${side} the server is lost`, () =>
      Effect.gen(function* () {
        const { error, rows } = yield* lost(matching("COMMIT"), Db.withTransaction(insert))
        assert.strictEqual(error._tag, "CommitOutcomeUnknown")
        assert.lengthOf(rows, stored)
      })
    )
  }

  it.scopedLive("a statement of a transaction on a dead connection is undone, even if SQL has raised its limit", () =>
    Effect.gen(function* () {
      const patient = Effect.zipRight(insert, run("SET LOCAL statement_timeout = '1min'"))
      const { error, rows } = yield* lost(
        sends("'lost'"),
        Db.withTransaction(Effect.zipRight(patient, run("SELECT 'lost'")))
      )
      assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
      assert.lengthOf(rows, 0)
    })
  )
})

describe("the watchdog on slow but living connections", () => {
  it.scopedLive("a commit that waits for a standby does not time out, by COMMIT or as an autocommit statement", () =>
    Effect.gen(function* () {
      const { primary } = yield* EmbeddedPostgres.make({ directory })
      const url = primary.url()
      yield* query(url, "CREATE TABLE item (name text)")
      yield* query(url, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
      yield* query(url, "SELECT pg_reload_conf()")
      yield* eventually(
        query(url, "SHOW synchronous_standby_names"),
        ([row]) => row?.synchronous_standby_names === "nobody"
      )
      const { context, proxy } = yield* throughProxy(url, { statementTimeout: limit })
      const one = yield* proxy.when(sends("pg_stat_activity"), "pass")
      const two = yield* proxy.when(sends("pg_stat_activity"), "pass")
      const commits = yield* Effect.fork(Effect.provide(Db.withTransaction(insert), context))
      const inserts = yield* Effect.fork(Effect.provide(insert, context))
      yield* one
      yield* two
      yield* later(url)
      const waiting = yield* query(
        url,
        "SELECT query FROM pg_stat_activity WHERE wait_event = 'SyncRep' ORDER BY query"
      )
      assert.deepStrictEqual(
        waiting.map((row) => String(row.query).slice(0, 6)),
        ["COMMIT", "INSERT"]
      )
      yield* query(url, "ALTER SYSTEM RESET synchronous_standby_names")
      yield* query(url, "SELECT pg_reload_conf()")
      yield* Fiber.join(commits)
      yield* Fiber.join(inserts)
      assert.lengthOf(yield* query(url, "SELECT * FROM item"), 2)
    })
  )

  it.scopedLive("a statement whose transaction has raised the limit, by SQL or by its option, does not time out", () =>
    Effect.gen(function* () {
      const { context, writer } = yield* freshItemsThroughProxy({ statementTimeout: limit })
      yield* query(
        writer,
        `CREATE FUNCTION patient() RETURNS void LANGUAGE plpgsql AS
         $$ BEGIN PERFORM set_config('statement_timeout', '0', true); END $$`
      )
      yield* Effect.gen(function* () {
        for (const more of ["SELECT set_config('statement_timeout', '1min', true)", "SELECT patient()"]) {
          yield* Db.withTransaction(Effect.zipRight(run(more), run("SELECT pg_sleep(2)")))
        }
        yield* Db.withTransaction(Effect.zipRight(run("SET LOCAL statement_timeout = 0"), run("SELECT pg_sleep(2)")))
        yield* Db.withTransaction(
          Effect.zipRight(run("SET LOCAL statement_timeout = 0; SELECT 1"), run("SELECT pg_sleep(2)"))
        )
        yield* Db.withTransaction(run("SELECT pg_sleep(2)"), { statementTimeout: "1 minute" })
      }).pipe(Effect.provide(context))
    })
  )

  it.scopedLive("a statement that was answered while the process was busy does not time out", () =>
    Effect.gen(function* () {
      // not through the proxy, which would be blocked with the process
      const { writer } = yield* freshDatabase
      const context = yield* Layer.build(Db.layer({ writer, statementTimeout: limit }))
      yield* Effect.gen(function* () {
        const begun = yield* Deferred.make<void>()
        const fiber = yield* Effect.fork(
          Db.withTransaction(
            Effect.gen(function* () {
              yield* run("SELECT 1")
              yield* Deferred.succeed(begun, undefined)
              return yield* run("SELECT 1 AS n FROM pg_sleep(0.1)")
            })
          )
        )
        yield* Deferred.await(begun)
        // after setImmediate the event loop runs timers before it reads the data that has arrived
        yield* Effect.async<void>((resume) => {
          setImmediate(() => {
            const end = performance.now() + 1500
            while (performance.now() < end) {}
            resume(Effect.void)
          })
        })
        assert.deepStrictEqual(yield* Fiber.join(fiber), [{ n: 1 }])
      }).pipe(Effect.provide(context))
    })
  )
})

describe("the watchdog's probes of a living server", () => {
  /**
   * Starts the watchdog of a connection that receives nothing. Records the times of its questions
   * about the server process, and the time at which it reports the connection dead.
   */
  const silent = (state: BackendState) => {
    const asked: Array<number> = []
    const begun = performance.now()
    let progress = 0
    let givenUp: number | undefined
    const watchdog = new Watchdog({
      progress: () => progress,
      checkAlive: (_, callback) => callback(true),
      queryActivity: (callback) => {
        asked.push(performance.now() - begun)
        callback(state)
        return () => {}
      },
      onDead: () => {
        givenUp = performance.now() - begun
        watchdog.onAnswered()
      }
    })
    watchdog.onSent(1000)
    return {
      asked,
      receive: () => progress++,
      get givenUp() {
        return givenUp
      }
    }
  }

  beforeEach(() => void vi.useFakeTimers())
  afterEach(() => void vi.useRealTimers())

  it("a connection whose server process works is probed less and less often, and never reported dead", () => {
    const connection = silent("working")
    vi.advanceTimersByTime(1000 + 160_000)
    assert.deepStrictEqual(
      connection.asked.map((at) => Math.round(at / 1000)),
      [1, 11, 22, 42, 83]
    )
    assert.isUndefined(connection.givenUp)
  })

  it("a connection whose server process waits for the client is reported dead, unless data arrives", () => {
    const connection = silent("waiting")
    vi.advanceTimersByTime(2200)
    connection.receive()
    vi.advanceTimersByTime(100 + 1250 + 900)
    assert.isUndefined(connection.givenUp)
    vi.advanceTimersByTime(200)
    assert.isDefined(connection.givenUp)
  })

  it("a connection whose server process is unknown is reported dead half a minute after its limit", () => {
    const connection = silent("unknown")
    vi.advanceTimersByTime(30_900)
    assert.isUndefined(connection.givenUp)
    vi.advanceTimersByTime(10_000)
    assert.isDefined(connection.givenUp)
  })
})
