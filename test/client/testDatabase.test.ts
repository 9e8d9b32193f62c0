import { assert, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { DatabaseError, TestDatabase, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { audit, event, events } from "../support/audit.js"
import { Audit, collide, Db, fresh, insert, type Place, stored } from "../support/databases.js"

const names = Effect.flatMap(Db.reader, (sql) =>
  Effect.map(sql<{ name: string }>`SELECT name FROM item ORDER BY name`, (rows) => rows.map((row) => row.name))
)

/** Runs a test in a sandbox, and asserts that the database outside of it is unchanged. */
const sandboxed = <A, E>(test: Effect.Effect<A, E, Db | Place>) =>
  Effect.gen(function* () {
    yield* insert("there before")
    const result = yield* Effect.provide(test, TestDatabase.layer(Db))
    assert.deepStrictEqual(yield* stored, ["there before"])
    return result
  }).pipe(Effect.provide(fresh()))

describe("TestDatabase", () => {
  it.scopedLive("a sandbox rolls back everything, statements and transactions", () =>
    sandboxed(
      Effect.gen(function* () {
        yield* insert("a")
        yield* Db.withTransaction(insert("b"))
        yield* UnitOfWork.run(insert("c"))
        assert.deepStrictEqual(yield* names, ["a", "b", "c", "there before"])
        assert.deepStrictEqual(yield* stored, ["there before"])
      })
    )
  )

  it.scopedLive("a failure in a sandbox rolls back the transaction around it, and no more", () =>
    sandboxed(
      Effect.gen(function* () {
        yield* insert("a")
        yield* Effect.ignore(insert("a"))
        yield* Effect.ignore(Db.withTransaction(Effect.zipRight(insert("b"), insert("a"))))
        yield* Effect.ignore(UnitOfWork.run(Effect.zipRight(insert("c"), Effect.fail("no"))))
        const rolledBack = yield* Effect.flip(Db.withTransaction(Effect.ignore(insert("a"))))
        assert.strictEqual(rolledBack._tag, "RolledBackAtCommit")
        assert.deepStrictEqual(yield* names, ["a", "there before"])
      })
    )
  )

  it.scopedLive("hooks in a sandbox run as if the transaction were committed", () =>
    sandboxed(
      Effect.gen(function* () {
        const log: Array<string> = []
        const note = (text: string) => Effect.sync(() => void log.push(text))
        yield* Db.withTransaction(
          Effect.all([insert("a"), Db.afterCommit(note("after")), Db.beforeCommit(note("before"))])
        )
        yield* Effect.ignore(
          Db.withTransaction(Effect.all([insert("b"), Db.afterRollback(note("undone")), Effect.fail("no")]))
        )
        yield* UnitOfWork.run(Effect.all([insert("c"), Db.afterCommit(note("unit"))]))
        assert.deepStrictEqual(log, ["before", "after", "undone", "unit"])
      })
    )
  )

  it.scopedLive("a reader in a sandbox cannot write, and the refusal leaves the sandbox usable", () =>
    sandboxed(
      Effect.gen(function* () {
        const reader = yield* Db.reader
        const refused = yield* reader`DELETE FROM item`.pipe(DatabaseError.refine, Effect.flip)
        assert.strictEqual(refused._tag, "ReadOnlyViolation")
        yield* insert("a")
        assert.deepStrictEqual(yield* names, ["a", "there before"])
      })
    )
  )

  it.scopedLive("independent work and new transactions in a sandbox run inside of it, without a deadlock", () =>
    sandboxed(
      Effect.gen(function* () {
        yield* Db.withTransaction(
          Effect.gen(function* () {
            yield* insert("a")
            yield* Db.independent(insert("b"))
            yield* Db.withTransaction(insert("c"), { propagation: "requiresNew" })
            yield* UnitOfWork.runNew(insert("d"))
          })
        )
        assert.deepStrictEqual(yield* names, ["a", "b", "c", "d", "there before"])
      })
    )
  )

  it.scopedLive("a statement that would end the sandbox is refused, and leaves the sandbox usable", () =>
    sandboxed(
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const enders = ["COMMIT", "/* now */ end", "ROLLBACK", "abort", "COMMIT AND CHAIN", "PREPARE TRANSACTION 'x'"]
        yield* insert("a")
        for (const text of [...enders, "BEGIN; INSERT INTO item (name) VALUES ('b'); COMMIT"]) {
          const tries = [
            sql.unsafe(text),
            Stream.runDrain(sql.unsafe(text).stream),
            Db.withTransaction(sql.unsafe(text))
          ]
          for (const one of tries) {
            const error = yield* Effect.flip(DatabaseError.refine(one))
            assert.deepStrictEqual([error._tag, error.message.includes("would end the sandbox")], ["QueryFailed", true])
          }
        }
        yield* Db.withTransaction(Effect.zipRight(sql`SAVEPOINT mine`, sql`ROLLBACK TO mine`))
        yield* sql`CREATE FUNCTION two() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END`
        yield* insert("c")
        assert.deepStrictEqual(yield* names, ["a", "c", "there before"])
      })
    )
  )

  it.scopedLive("a transaction by hand on a reserved connection is a savepoint of the sandbox", () =>
    sandboxed(
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const add = (name: string) => `INSERT INTO item (name) VALUES ('${name}')`
        const byHand = (...texts: ReadonlyArray<string>) =>
          Effect.scoped(
            Effect.flatMap(sql.reserve, (reserved) => Effect.forEach(texts, (text) => reserved.executeRaw(text, [])))
          )
        yield* byHand("BEGIN", add("a"), "COMMIT", add("b"))
        assert.deepStrictEqual(yield* stored, ["there before"])
        yield* byHand(
          "START TRANSACTION ISOLATION LEVEL READ COMMITTED",
          add("c"),
          "ROLLBACK",
          "BEGIN",
          add("d"),
          "END"
        )
        // unfinished work is rolled back when the connection is returned
        yield* byHand("BEGIN", add("e"))
        yield* Effect.flip(byHand("BEGIN", add("f"), "nonsense"))
        yield* byHand("COMMIT", "ROLLBACK")
        const chain = yield* Effect.flip(DatabaseError.refine(byHand("BEGIN", add("g"), "COMMIT AND CHAIN")))
        assert.include(chain.message, "would end the sandbox")
        const [begun] = yield* byHand("BEGIN")
        assert.deepStrictEqual(begun, { command: "BEGIN", rowCount: null, oid: null, rows: [], fields: [] })
        assert.deepStrictEqual(yield* names, ["a", "b", "d", "there before"])
      })
    )
  )

  it.scopedLive("concurrent transactions, streams and several commands in one text work in a sandbox", () =>
    sandboxed(
      Effect.gen(function* () {
        const sql = yield* Db.writer
        yield* Effect.forEach([1, 2, 3, 4], (n) => Db.withTransaction(Effect.zipRight(insert(`t${n}`), names)), {
          concurrency: 4
        })
        yield* sql`CREATE TABLE extra (n int); INSERT INTO extra VALUES (1), (2)`
        assert.strictEqual(yield* Stream.runCount(sql`SELECT * FROM extra`.stream), 2)
        assert.strictEqual((yield* names).length, 5)
      })
    )
  )

  it.scopedLive(
    "a failed text of several commands leaves the sandbox usable, and a writer can run inside a reader's transaction",
    () =>
      sandboxed(
        Effect.gen(function* () {
          const sql = yield* Db.writer
          const reader = yield* Db.reader
          yield* Effect.ignore(sql`INSERT INTO item (name) VALUES ('x'); SELECT 1 / 0`)
          yield* insert("a")
          yield* reader.withTransaction(Effect.zipRight(reader`SELECT 1`, insert("b")))
          assert.deepStrictEqual(yield* names, ["a", "b", "there before"])
        })
      )
  )

  it.scopedLive("a unit of work in a sandbox ends as it would outside, with its hooks, on two databases", () =>
    sandboxed(
      Effect.gen(function* () {
        const log: Array<string> = []
        const note = (text: string) => Effect.sync(() => void log.push(text))
        const early = Effect.all([
          Effect.all([insert("early"), event("early"), Db.afterCommit(note("early is kept")), UnitOfWork.commit]),
          Effect.all([insert("late"), Db.afterCommit(note("never")), Db.afterRollback(note("late is gone"))]),
          Effect.fail("no")
        ])
        assert.strictEqual(yield* Effect.flip(UnitOfWork.run(early)), "no")
        let attempts = 0
        const again = Effect.suspend(() =>
          Effect.all([insert("again"), event("again"), ++attempts < 3 ? collide : Effect.void])
        )
        yield* UnitOfWork.run(again, { retry: true })
        const aborted = Effect.all([
          insert("not stored"),
          event("aborted"),
          Effect.ignore(Effect.flatMap(Audit.writer, (sql) => sql`SELECT 1/0`))
        ])
        const refused = yield* UnitOfWork.run(aborted).pipe(DatabaseError.refine, Effect.flip)
        assert.strictEqual(refused._tag, "RolledBackAtCommit")
        assert.deepStrictEqual(log, ["early is kept", "late is gone"])
        assert.deepStrictEqual(yield* names, ["again", "early", "there before"])
        assert.deepStrictEqual(yield* events, ["again", "early"])
      }).pipe(Effect.provide(Layer.provide(TestDatabase.layer(Audit), audit)))
    )
  )

  layer(Layer.provideMerge(TestDatabase.layer(Db), fresh()))("a sandbox as a layer of a group of tests", (it) => {
    it.effect("the layer of a sandbox serves a group of tests", () =>
      Effect.gen(function* () {
        yield* insert("a")
        assert.deepStrictEqual(yield* names, ["a"])
      })
    )
  })
})
