import * as SqlResolver from "@effect/sql/SqlResolver"
import { assert, it } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Context from "effect/Context"
import * as DefaultServices from "effect/DefaultServices"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import { DatabaseError, type Recording, TestDatabase, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { audit, event } from "../support/audit.js"
import { Audit, collide, Db, fresh, insert, type Place, run } from "../support/databases.js"

// any tracer other than the default one makes @effect/sql run the statements
const silent = Context.get(DefaultServices.liveServices, Tracer.Tracer)
const tracer = Tracer.make({ span: (...args) => silent.span(...args), context: (run) => run() })

const real = fresh({ readers: [] })
const recordedDb = TestDatabase.layerRecorded(Db)
const sandbox = TestDatabase.layer(Db)

/** The stacks of layers in which a program has the same recording. */
const stacks = {
  "the database": recordedDb,
  "a sandbox": Layer.provide(recordedDb, sandbox),
  "a sandbox of the recorded database": Layer.provide(sandbox, recordedDb),
  "a sandbox in a sandbox": recordedDb.pipe(Layer.provide(sandbox), Layer.provide(sandbox)),
  "a recorded database": Layer.provide(recordedDb, recordedDb)
}

/** Runs a test in every stack, each on a database of its own. */
const inEach = <A, E>(name: string, test: Effect.Effect<A, E, Db>) => {
  for (const [stack, layer] of Object.entries(stacks)) {
    it.scopedLive(`${name}, over ${stack}`, () => test.pipe(Effect.provide(Layer.provide(layer, real))))
  }
}

/** Runs a test on a recorded database. */
const recording = <A, E>(test: Effect.Effect<A, E, Db | Place>) =>
  test.pipe(Effect.provide(Layer.provideMerge(recordedDb, real)))

const recordingOf = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.map(TestDatabase.recorded(self, Db), ([_, ran]) => ran)

const brief = ({ error, outcome, text, transaction }: Recording.RecordedStatement) =>
  [text.split(" ")[0], transaction, error ?? outcome] as const

const outcomes = ({ transactions }: Recording.Recording) =>
  transactions.map(({ around, number, outcome }) => [number, around, outcome])

const reads = Effect.flatMap(Db.reader, (sql) => sql`SELECT name FROM item ORDER BY name`)

const findByName = (name: string) => Effect.flatMap(Db.reader, (sql) => sql`SELECT * FROM item WHERE name = ${name}`)

describe("the recording of statements and transactions", () => {
  inEach(
    "a statement outside of a transaction is one round trip",
    Effect.gen(function* () {
      const ran = yield* recordingOf(insert("a"))
      const [statement] = ran.statements
      assert.strictEqual(statement?.location?.includes("databases.ts"), true)
      assert.deepStrictEqual(
        { ...statement, server: "", location: "" },
        {
          database: "app",
          role: "writer",
          server: "",
          text: 'INSERT INTO item ("name") VALUES ($1)',
          parameters: 1,
          transaction: undefined,
          location: "",
          attempts: 1,
          roundTrips: 1,
          rows: 0,
          outcome: "committed",
          error: undefined
        }
      )
      assert.deepStrictEqual([ran.database, ran.statements.length, ran.transactions, ran.roundTrips], ["app", 1, [], 1])
      const read = yield* recordingOf(reads)
      assert.deepStrictEqual([read.statements[0]?.role, read.statements[0]?.rows, read.roundTrips], ["reader", 1, 1])
    })
  )

  inEach(
    "a transaction is recorded with its statements, its label, and a round trip for its end",
    Effect.gen(function* () {
      const kept = yield* recordingOf(Db.withTransaction(Effect.all([insert("a"), insert("b")]), { label: "add" }))
      assert.deepStrictEqual(kept.transactions, [
        {
          number: 1,
          database: "app",
          role: "writer",
          label: "add",
          around: undefined,
          statements: 2,
          outcome: "committed"
        }
      ])
      assert.deepStrictEqual(kept.statements.map(brief), [
        ["INSERT", 1, "committed"],
        ["INSERT", 1, "committed"]
      ])
      // BEGIN is sent with the first statement
      assert.strictEqual(kept.roundTrips, 3)
      const undone = yield* recordingOf(
        Effect.flip(Db.withTransaction(Effect.zipRight(insert("c"), Effect.fail("no"))))
      )
      assert.deepStrictEqual(undone.statements.map(brief), [["INSERT", 1, "rolledBack"]])
      assert.deepStrictEqual([outcomes(undone), undone.roundTrips], [[[1, undefined, "rolledBack"]], 2])
      const unused = yield* recordingOf(Db.withTransaction(Effect.void))
      assert.deepStrictEqual([unused.transactions, unused.roundTrips], [[], 0])
    })
  )

  inEach(
    "a savepoint has the outcome of the transaction around it, unless it is rolled back alone",
    Effect.gen(function* () {
      const inner = Db.withTransaction(insert("b"))
      const failing = Effect.ignore(Db.withTransaction(Effect.zipRight(insert("c"), Effect.fail("no"))))
      const kept = yield* recordingOf(Db.withTransaction(Effect.all([insert("a"), inner, failing])))
      assert.deepStrictEqual(kept.statements.map(brief), [
        ["INSERT", 1, "committed"],
        ["INSERT", 2, "committed"],
        ["INSERT", 3, "rolledBack"]
      ])
      assert.deepStrictEqual(outcomes(kept), [
        [1, undefined, "committed"],
        [2, 1, "committed"],
        [3, 1, "rolledBack"]
      ])
      const undone = yield* recordingOf(
        Effect.ignore(Db.withTransaction(Effect.all([Db.withTransaction(insert("d")), Effect.fail("no")])))
      )
      assert.deepStrictEqual(undone.statements.map(brief), [["INSERT", 2, "rolledBack"]])
      assert.deepStrictEqual(
        undone.transactions.map(({ statements }) => statements),
        [0, 1]
      )
    })
  )

  inEach(
    "a failed statement has the tag of its error",
    Effect.gen(function* () {
      yield* insert("a")
      const alone = yield* recordingOf(Effect.ignore(insert("a")))
      assert.deepStrictEqual(alone.statements.map(brief), [["INSERT", undefined, "UniqueViolation"]])
      assert.strictEqual(alone.statements[0]?.outcome, "failed")
      const inside = yield* recordingOf(
        Effect.flip(Db.withTransaction(Effect.zipRight(insert("b"), Effect.ignore(run("nonsense")))))
      )
      assert.deepStrictEqual(
        inside.statements.map(({ error, outcome }) => [outcome, error]),
        [
          ["failed", undefined],
          ["failed", "QueryFailed"]
        ]
      )
    })
  )

  inEach(
    "each attempt of a retried transaction is a transaction of its own",
    Effect.gen(function* () {
      let attempts = 0
      const twice = Effect.suspend(() => Effect.all([insert("a"), ++attempts < 2 ? collide : Effect.void]))
      const ran = yield* recordingOf(Db.withTransaction(twice, { retry: true }))
      assert.deepStrictEqual(outcomes(ran), [
        [1, undefined, "rolledBack"],
        [2, undefined, "committed"]
      ])
      assert.deepStrictEqual(ran.statements.map(brief), [
        ["INSERT", 1, "rolledBack"],
        ["DO", 1, "SerializationFailure"],
        ["INSERT", 2, "committed"]
      ])
      attempts = 0
      yield* run("DELETE FROM item")
      const unit = yield* recordingOf(UnitOfWork.run(twice, { retry: true }))
      assert.deepStrictEqual(
        unit.transactions.map(({ outcome }) => outcome),
        ["rolledBack", "committed"]
      )
    })
  )

  inEach(
    "a unit of work, its parts, independent work and hooks are recorded where they run",
    Effect.gen(function* () {
      const part = UnitOfWork.nested(insert("b"))
      const ran = yield* recordingOf(
        UnitOfWork.run(
          Effect.all([
            insert("a"),
            part,
            Db.independent(insert("c")),
            Db.afterCommit(insert("d")),
            Db.beforeCommit(insert("e"))
          ])
        )
      )
      assert.deepStrictEqual(ran.statements.map(brief), [
        ["INSERT", 1, "committed"],
        ["INSERT", 2, "committed"],
        ["INSERT", undefined, "committed"],
        ["INSERT", 1, "committed"],
        ["INSERT", undefined, "committed"]
      ])
      const early = yield* recordingOf(
        Effect.ignore(UnitOfWork.run(Effect.all([insert("f"), Db.commit, insert("g"), Effect.fail("no")])))
      )
      assert.deepStrictEqual(outcomes(early), [
        [1, undefined, "committed"],
        [2, undefined, "rolledBack"]
      ])
    })
  )

  inEach(
    "a stream, a COPY, a notification and several commands are statements",
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const stream = yield* recordingOf(Stream.runCount(sql`SELECT * FROM generate_series(1, ${300}::int)`.stream))
      const [rows] = stream.statements
      assert.deepStrictEqual([rows?.parameters, rows?.rows, rows?.roundTrips, rows?.attempts], [1, 300, 3, 1])
      assert.strictEqual(rows?.location?.includes("recordedDatabase.test.ts"), true)
      // a stream has a transaction of its own, which ends with a COMMIT
      assert.deepStrictEqual([outcomes(stream), stream.roundTrips], [[[1, undefined, "committed"]], 4])
      const copy = yield* recordingOf(sql.copyFrom("item", ["name"], Stream.make(["x"], ["y"])))
      assert.deepStrictEqual(copy.statements.map(brief), [["COPY", 1, "committed"]])
      const out = yield* recordingOf(Stream.runDrain(sql.copyTo(sql`SELECT name FROM item WHERE name = ${"x"}`)))
      assert.strictEqual(out.statements.length, 1)
      assert.strictEqual(out.statements[0]?.text.includes("'x'"), false)
      const others = yield* recordingOf(Effect.all([Db.notify("news", "secret"), run("SELECT 1; SELECT 2")]))
      assert.deepStrictEqual(
        others.statements.map(({ parameters, rows, text }) => [text, parameters, rows]),
        [
          ["SELECT pg_notify($1, $2)", 2, 1],
          ["SELECT 1; SELECT 2", 0, 2]
        ]
      )
      const inside = yield* recordingOf(Db.withTransaction(Stream.runDrain(sql`SELECT 1`.stream)))
      assert.deepStrictEqual(inside.statements.map(brief), [["SELECT", 1, "committed"]])
    })
  )

  inEach(
    "the statements of a reserved connection are recorded",
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const ran = yield* recordingOf(
        Effect.scoped(
          Effect.flatMap(sql.reserve, (reserved) =>
            Effect.all([
              reserved.executeRaw("SELECT 1", []),
              Effect.ignore(reserved.executeRaw("SELECT 1 / $1::int", [0]))
            ])
          )
        )
      )
      assert.deepStrictEqual(ran.statements.map(brief), [
        ["SELECT", undefined, "committed"],
        ["SELECT", undefined, "InvalidInput"]
      ])
      assert.strictEqual(ran.statements[1]?.parameters, 1)
    })
  )

  inEach(
    "a statement that runs is open, and one that is interrupted has failed",
    Effect.gen(function* () {
      const begun = yield* Deferred.make<void>()
      const held = Db.withTransaction(Effect.all([insert("a"), Deferred.succeed(begun, undefined), Effect.never]))
      const running = yield* Effect.fork(held)
      yield* Deferred.await(begun)
      assert.deepStrictEqual((yield* TestDatabase.recording(Db)).statements.map(brief), [["INSERT", 1, "open"]])
      yield* Fiber.interrupt(running)
      assert.deepStrictEqual((yield* TestDatabase.recording(Db)).statements.map(brief), [["INSERT", 1, "rolledBack"]])
      const sleeping = yield* recordingOf(Effect.timeoutOption(run("SELECT pg_sleep(60)"), "200 millis"))
      assert.deepStrictEqual(sleeping.statements.map(brief), [["SELECT", undefined, "Interrupted"]])
    })
  )

  it.scopedLive("a statement has its location if a tracer is set", () =>
    recording(
      Effect.gen(function* () {
        const ran = yield* recordingOf(Effect.withTracer(insert("a"), tracer))
        assert.include(ran.statements[0]?.location, "databases.ts")
      })
    )
  )

  it.scopedLive("a statement that finds no connection is recorded as not sent", () =>
    Effect.gen(function* () {
      const [statement] = (yield* Db.pause().pipe(
        Effect.zipRight(Effect.ignore(insert("a"))),
        Effect.ensuring(Db.resume),
        recordingOf
      )).statements
      assert.deepStrictEqual(
        [statement?.attempts, statement?.server, statement?.error],
        [0, undefined, "PoolExhausted"]
      )
    }).pipe(Effect.provide(Layer.provide(recordedDb, fresh({ readers: [], acquireTimeout: "50 millis" }))))
  )

  it.scopedLive("each database of a unit of work has its own recording", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(Effect.all([insert("a"), event("a"), event("b")]))
      assert.strictEqual((yield* TestDatabase.recording(Db)).statements.length, 1)
      const { roundTrips, statements, transactions } = yield* TestDatabase.recording(Audit)
      assert.deepStrictEqual([statements.length, transactions[0]?.outcome], [2, "committed"])
      // BEGIN with the first event, the second, the check of the constraints, and COMMIT
      assert.strictEqual(roundTrips, 4)
    }).pipe(
      Effect.provide(
        Layer.merge(Layer.provide(recordedDb, real), Layer.provide(TestDatabase.layerRecorded(Audit), audit))
      )
    )
  )

  it.scopedLive("a recorded database has the transactions, the pools and the figures of the open one", () =>
    recording(
      Db.withTransaction(
        Effect.gen(function* () {
          yield* insert("a")
          const { servers, transactions } = yield* Db.status
          assert.deepStrictEqual([transactions.length, servers[0]?.writes?.active], [1, 1])
        })
      )
    )
  )

  it.scopedLive("the rollback of a sandbox is not a round trip of the program", () =>
    recording(
      Effect.gen(function* () {
        yield* Effect.provide(insert("a"), sandbox)
        const { roundTrips, statements } = yield* TestDatabase.recording(Db)
        assert.deepStrictEqual([statements.length, roundTrips], [1, 1])
      })
    )
  )

  it.scopedLive("the recording of a database that is not recorded fails", () =>
    Effect.gen(function* () {
      const refused = yield* Effect.flip(TestDatabase.recording(Db))
      assert.strictEqual(refused._tag, "ConfigInvalid")
      assert.include(refused.message, "TestDatabase.layerRecorded")
    }).pipe(Effect.provide(real))
  )
})

describe("expectations about a recording", () => {
  inEach(
    "more statements, transactions or round trips than expected fail, with a list of them",
    Effect.gen(function* () {
      const work = Db.withTransaction(Effect.all([insert("a"), insert("b")]))
      const error = yield* work.pipe(TestDatabase.expectAtMost(Db, 1), Effect.flip)
      assert.strictEqual(error._tag, "TooMany")
      assert.include(
        error.message,
        'database "app": 2 statements where the test expects at most 1:\n  1. INSERT INTO item'
      )
      assert.include(error.message, "databases.ts")
      yield* Effect.flatMap(Db.writer, (sql) => sql`DELETE FROM item`)
      yield* work.pipe(TestDatabase.expectAtMost(Db, { statements: 2, transactions: 1, roundTrips: 3 }))
      const trips = yield* Effect.flip(TestDatabase.expectAtMost(reads, Db, { roundTrips: 0 }))
      assert.include(trips.message, "1 round trip where the test expects at most 0")
      const invalid = yield* Effect.flip(TestDatabase.expectAtMost(reads, Db, Number.NaN))
      assert.strictEqual(invalid._tag, "ConfigInvalid")
    })
  )

  inEach(
    "a query for each of many rows is N+1, and one query for all of them is not",
    Effect.gen(function* () {
      const names = ["a", "b", "c", "d", "e", "f"]
      const found = yield* Effect.forEach(names, findByName).pipe(TestDatabase.expectNoNPlusOne(Db), Effect.flip)
      assert.strictEqual(found._tag, "NPlusOne")
      assert.include(found.message, "6 times: SELECT * FROM item WHERE name = $1, at ")
      assert.include(found.message, "recordedDatabase.test.ts")
      yield* Effect.forEach(names.slice(1), findByName).pipe(TestDatabase.expectNoNPlusOne(Db))
      yield* Effect.forEach(names, findByName).pipe(TestDatabase.expectNoNPlusOne(Db, { most: 6 }))
      // with other statements in between, and each in a transaction of its own
      const mixed = Effect.forEach(names, (name) => Db.withTransaction(Effect.all([findByName(name), reads])))
      assert.strictEqual((yield* Effect.flip(TestDatabase.expectNoNPlusOne(mixed, Db)))._tag, "NPlusOne")
      // at the same time
      yield* Effect.forEach(names, findByName, { concurrency: "unbounded" }).pipe(TestDatabase.expectNoNPlusOne(Db))
      // batched
      const sql = yield* Db.reader
      const resolver = yield* SqlResolver.findById("ItemByName", {
        Id: Schema.String,
        Result: Schema.Struct({ name: Schema.String }),
        ResultId: ({ name }) => name,
        execute: (ids) => sql`SELECT name FROM item WHERE ${sql.in("name", ids)}`
      })
      const batched = yield* Effect.forEach(names, resolver.execute, { batching: true }).pipe(
        TestDatabase.expectNoNPlusOne(Db),
        TestDatabase.expectAtMost(Db, 1)
      )
      assert.strictEqual(batched.length, 6)
    })
  )

  it.scopedLive("the failure of the effect comes before the expectation", () =>
    recording(
      Effect.gen(function* () {
        const failed = yield* Effect.zipRight(insert("a"), Effect.fail("no")).pipe(
          TestDatabase.expectAtMost(Db, 0),
          DatabaseError.refine,
          Effect.flip
        )
        assert.strictEqual(failed, "no")
      })
    )
  )
})

describe("the shuffle of rows without an order", () => {
  const shuffled = TestDatabase.layerShuffled(Db)
  const shuffles = {
    "the database": shuffled,
    "a sandbox": Layer.provide(shuffled, sandbox),
    "a sandbox of the shuffled database": Layer.provide(sandbox, shuffled),
    "a recorded sandbox": shuffled.pipe(Layer.provide(recordedDb), Layer.provide(sandbox))
  }
  const added = ["a", "b", "c", "d"]
  for (const [stack, layer] of Object.entries(shuffles)) {
    it.scopedLive(`a missing ORDER BY is visible, and an ORDER BY is kept, over ${stack}`, () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const reader = yield* Db.reader
        yield* Effect.forEach(added, insert)
        const plain = Effect.map(reader<{ name: string }>`SELECT name FROM item`, (rows) =>
          rows.map(({ name }) => name)
        )
        const once = yield* plain
        assert.notDeepEqual(once, added)
        assert.sameMembers([...once], added)
        assert.deepStrictEqual(yield* plain, once)
        assert.deepStrictEqual(
          (yield* reader`SELECT name FROM item ORDER BY name`).map((row) => row.name),
          added
        )
        assert.notDeepEqual(
          (yield* sql`SELECT name FROM item`.values).map(([name]) => name),
          added
        )
        assert.notDeepEqual(yield* Db.withTransaction(plain), added)
        const streamed = yield* Stream.runCollect(sql<{ name: string }>`SELECT name FROM item`.stream)
        assert.notDeepEqual(
          Chunk.toArray(streamed).map(({ name }) => name),
          added
        )
        const inserted = yield* sql`INSERT INTO item (name) VALUES ('x'), ('y') RETURNING name`
        assert.deepStrictEqual(
          inserted.map((row) => row.name),
          ["x", "y"]
        )
        const two = yield* sql`SELECT name FROM item WHERE name IN ('x', 'y')`
        assert.deepStrictEqual(
          two.map((row) => row.name),
          ["y", "x"]
        )
      }).pipe(Effect.provide(Layer.provide(layer, real)))
    )
  }
})
