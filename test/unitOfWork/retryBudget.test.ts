/** The retry budget, and the message of the last failure after the budget or the schedule has ended. */
import { HttpServerRequest, HttpServerResponse } from "@effect/platform"
import type { SqlError } from "@effect/sql/SqlError"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Schedule from "effect/Schedule"
import { type Database, DatabaseError, type Observation, RequestTransaction, RetryPolicy, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { Audit, Db, fresh, insert, Place, stored } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { collideAtCommit } from "../support/lateCollision.js"
import { query } from "../support/server.js"
import { only, watch } from "../support/suites/pooling/observations.js"

const collide = Effect.flatMap(Db.writer, (sql) =>
  sql.unsafe("DO $$ BEGIN RAISE EXCEPTION 'collision' USING ERRCODE = 'serialization_failure'; END $$")
)

class Refused extends Error {
  readonly _tag = "Refused"
}

type Run = <A, E>(work: Effect.Effect<A, E, Db>) => Effect.Effect<A, unknown, Db>

const asRequest: Run = (work) =>
  Effect.provideService(
    RequestTransaction.middleware({ retry: true })(Effect.as(work, HttpServerResponse.empty())),
    HttpServerRequest.HttpServerRequest,
    HttpServerRequest.fromWeb(new Request("http://localhost/", { method: "POST" }))
  ) as Effect.Effect<never, unknown, Db>

const ways: ReadonlyArray<readonly [name: string, run: Run]> = [
  ["Db.withTransaction", (work) => Db.withTransaction(work, { retry: true })],
  ["UnitOfWork.run", (work) => UnitOfWork.run(work, { retry: true })],
  ["RequestTransaction.middleware", asRequest]
]

/** A policy without pauses, whose budget does not refill over time. */
const policy = (burst: number, times = 10): Partial<RetryPolicy.Policy> => ({
  transaction: Schedule.recurs(times),
  statement: Schedule.recurs(3),
  budget: { burst, perSecond: 0 }
})

/** Creates work that runs `then`; in its first `times` runs it collides before that. */
const collidingTimes = <A, E>(times: number, then: Effect.Effect<A, E, Db>) => {
  let runs = 0
  return Effect.suspend(() => (runs++ < times ? Effect.zipRight(collide, then) : then))
}

/**
 * Reads a row and updates it. In the first attempt `change` runs in between, which is a collision if
 * the isolation is repeatable read.
 */
const colliding = (id: number, change: Effect.Effect<unknown, SqlError, Audit>) => {
  let isFirst = true
  return Effect.gen(function* () {
    const sql = yield* Db.writer
    yield* sql`SELECT amount FROM item WHERE id = ${id}`
    if (isFirst) {
      isFirst = false
      yield* change
    }
    yield* sql`UPDATE item SET amount = amount + 1 WHERE id = ${id}`
  })
}

/** Options with which a moment of slowness of the machine causes no load shedding. */
const patient: Partial<Database.Options> = { maxConnections: 20, acquireTimeout: "1 minute", queueTarget: "1 minute" }

/** `Audit` on the database of `Db`, in place of another program. */
const rival = Layer.unwrapEffect(Effect.map(Place, ({ writer }) => Audit.layer({ ...patient, writer }))).pipe(
  Layer.orDie
)

const logged = () => {
  const lines: Array<string> = []
  const layer = Logger.replace(
    Logger.defaultLogger,
    Logger.make(({ logLevel, message }) => {
      lines.push(`${logLevel.label} ${String(message)}`)
    })
  )
  return { layer, lines }
}

/** Waits for `count` observations of exhausted retries. */
const exhausted = (facts: ReadonlyArray<Observation.Observation>, count: number) =>
  eventually(
    Effect.sync(() => only(facts, "RetryExhausted")),
    ({ length }) => length >= count
  )

const usedUp = "and the retry budget of the database is used up"

describe("the retry budget", () => {
  it.scopedLive(
    "a retry budget of 200 lasts for 400 transactions, 50 at a time, that collide once each and then succeed",
    () =>
      Effect.gen(function* () {
        const { writer } = yield* Place
        yield* query(writer, "INSERT INTO item (id, amount) SELECT id, 0 FROM generate_series(1, 400) AS id")
        const change = (id: number) =>
          Effect.flatMap(Audit.writer, (sql) => sql`UPDATE item SET amount = amount + 1 WHERE id = ${id}`)
        const exits = yield* Effect.forEach(
          Array.from({ length: 400 }, (_, i) => i + 1),
          (id) =>
            Effect.exit(Db.withTransaction(colliding(id, change(id)), { isolation: "repeatable read", retry: true })),
          { concurrency: 50 }
        ).pipe(RetryPolicy.with({ budget: { burst: 200, perSecond: 0 } }))
        assert.lengthOf(exits.filter(Exit.isFailure), 0)
        const [row] = yield* query<{ sum: number }>(writer, "SELECT sum(amount)::int AS sum FROM item")
        assert.strictEqual(row?.sum, 800)
      }).pipe(Effect.provide(Layer.provideMerge(rival, fresh(patient)))),
    { timeout: 60_000 }
  )

  for (const [way, run] of ways) {
    it.scopedLive(`the retry budget is refilled by work that succeeds in the end (${way})`, () =>
      Effect.gen(function* () {
        for (let n = 0; n < 5; n++) yield* run(collidingTimes(2, insert(`${n}`)))
        assert.lengthOf(yield* stored, 5)
      }).pipe(RetryPolicy.with(policy(2)), Effect.provide(fresh()))
    )

    it.scopedLive(`the retry budget is refilled by work that fails by itself after a statement (${way})`, () =>
      Effect.gen(function* () {
        for (let n = 0; n < 5; n++) {
          const work = Effect.zipRight(insert(`${n}`), Effect.fail(new Refused("sold out")))
          assert.instanceOf(yield* Effect.flip(run(collidingTimes(2, work))), Refused)
        }
      }).pipe(RetryPolicy.with(policy(2)), Effect.provide(fresh()))
    )

    it.scopedLive(`the retry budget is used up by work that always collides, and its failure says so (${way})`, () =>
      Effect.gen(function* () {
        const facts = yield* watch
        const first = yield* Effect.flip(DatabaseError.refine(run(collide)))
        const second = yield* Effect.flip(DatabaseError.refine(run(collide)))
        assert.instanceOf(first, DatabaseError.SerializationFailure)
        assert.deepStrictEqual(
          [first, second].map((error) => (error as DatabaseError.SerializationFailure).retried),
          [
            { attempts: 4, endedBy: "budget" },
            { attempts: 1, endedBy: "budget" }
          ]
        )
        assert.include((first as Error).message, `after 4 attempts, ${usedUp}`)
        assert.notInclude((first as Error).message, "option `retry`")
        assert.deepStrictEqual(
          (yield* exhausted(facts, 2)).map(({ attempts, endedBy, what }) => [what, attempts, endedBy]),
          [
            ["transaction", 4, "budget"],
            ["transaction", 1, "budget"]
          ]
        )
      }).pipe(RetryPolicy.with(policy(3)), Effect.provide(fresh()))
    )

    it.scopedLive(
      `after the end of the schedule the last failure counts the attempts, and names no retry budget (${way})`,
      () =>
        Effect.gen(function* () {
          const error = yield* Effect.flip(run(collide))
          assert.include((error as Error).message, "collision after 11 attempts - ")
          assert.notInclude((error as Error).message, "budget")
          assert.notInclude((error as Error).message, "option `retry`")
        }).pipe(RetryPolicy.with(policy(100)), Effect.provide(fresh()))
    )

    it.scopedLive(`an empty retry budget is logged and observed if the work fails with its own error (${way})`, () => {
      const { layer, lines } = logged()
      return Effect.gen(function* () {
        const facts = yield* watch
        const error = yield* Effect.flip(run(Effect.mapError(collide, () => new Refused("no"))))
        assert.instanceOf(error, Refused)
        assert.strictEqual((error as Error).message, "no")
        yield* exhausted(facts, 1)
        const [line, ...more] = lines.filter((one) => one.startsWith("WARN"))
        assert.lengthOf(more, 0)
        assert.include(line, `collision after 2 attempts, ${usedUp}`)
      }).pipe(RetryPolicy.with(policy(1)), Effect.provide(Layer.merge(fresh(), layer)))
    })
  }

  it.scopedLive("a COMMIT that fails after all retries reports the attempts, and does not suggest retry", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      yield* collideAtCommit(writer, "item")
      const error = yield* Effect.flip(Db.withTransaction(insert("late"), { retry: true }))
      assert.strictEqual(error._tag, "CommitFailed")
      assert.include(error.message, "late after 3 attempts - ")
      assert.notInclude(error.message, "option `retry`")
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(RetryPolicy.with(policy(10, 2)), Effect.provide(fresh()))
  )

  it.scopedLive("the retry budget is used and refilled by statements too, and is named in their failures", () =>
    Effect.gen(function* () {
      const reader = yield* Db.reader
      const { writer } = yield* Place
      // the locks of a session outlive a rollback, and so count the attempts
      yield* query(
        writer,
        `CREATE FUNCTION collide(times int) RETURNS void LANGUAGE plpgsql AS $$
           DECLARE n int := (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory');
           BEGIN
             PERFORM pg_advisory_lock(n);
             IF n < times THEN RAISE EXCEPTION 'conflict' USING ERRCODE = 'serialization_failure'; END IF;
             PERFORM pg_advisory_unlock_all();
           END $$`
      )
      for (let n = 0; n < 5; n++) yield* reader`SELECT collide(2)`
      const failing = reader`SELECT collide(100)`.pipe(DatabaseError.refine, Effect.flip)
      const error = yield* failing
      assert.include(error.message, "conflict after 4 attempts - ")
      assert.notInclude(error.message, "option `retry`")
      assert.include((yield* failing).message, `conflict after 2 attempts, ${usedUp}`)
    }).pipe(RetryPolicy.with(policy(4)), Effect.provide(fresh({ readers: [], maxConnections: 1 })))
  )
})
