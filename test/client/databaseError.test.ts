import { SqlError } from "@effect/sql/SqlError"
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberId from "effect/FiberId"
import { DatabaseError, RetryPolicy } from "effect-db"
import { describe } from "vitest"
import type { PlainFailure, StatementFailure } from "../../src/internal/connection/failure.js"
import { afterFirst } from "../../src/internal/connection/statementFailure.js"
import { toDatabaseError } from "../../src/internal/edge/databaseError.js"

const place = { database: "app", server: "localhost:5432" }

const unique = new DatabaseError.UniqueViolation({ ...place, constraint: "email", cause: new Error("duplicate key") })

describe("DatabaseError", () => {
  it.effect("refine returns the error that a SqlError stands for, and leaves other failures as they are", () =>
    Effect.gen(function* () {
      const refined = yield* Effect.fail(DatabaseError.toSqlError(unique)).pipe(DatabaseError.refine, Effect.flip)
      assert.strictEqual(refined, unique)
      assert.strictEqual(yield* Effect.fail("mine").pipe(DatabaseError.refine, Effect.flip), "mine")
      const foreign = new SqlError({ cause: new Error("boom"), message: "of another client" })
      const unknown = yield* Effect.fail(foreign).pipe(DatabaseError.refine, Effect.flip)
      assert.strictEqual(unknown._tag, "QueryFailed")
      assert.strictEqual(unknown.database, "unknown")
      const caught = yield* Effect.fail(DatabaseError.toSqlError(unique)).pipe(
        DatabaseError.refine,
        Effect.catchTag("UniqueViolation", (error) => Effect.succeed(error.constraint))
      )
      assert.strictEqual(caught, "email")
    })
  )

  it.effect("refine turns a defect into a failure if it is an error of this library, or has one as its cause", () =>
    Effect.gen(function* () {
      const sqlError = DatabaseError.toSqlError(unique)
      const wrapped = new Error("of an ORM", { cause: unique })
      for (const defect of [unique, sqlError, wrapped]) {
        assert.strictEqual(yield* Effect.die(defect).pipe(DatabaseError.refine, Effect.flip), unique)
      }
      const bug = new Error("a bug")
      const both = Cause.parallel(Cause.die(bug), Cause.die(sqlError))
      for (const cause of [Cause.die(bug), both, Cause.interrupt(FiberId.none)]) {
        const exit = yield* Effect.exit(DatabaseError.refine(Effect.failCause(cause)))
        assert.deepStrictEqual(exit, Exit.failCause(cause))
      }
    })
  )

  it.effect("catchAll handles each way in which a database can fail, and nothing else", () =>
    Effect.gen(function* () {
      const tag = DatabaseError.catchAll((error) => Effect.succeed(error._tag))
      const sqlError = DatabaseError.toSqlError(unique)
      const all: ReadonlyArray<Effect.Effect<never, SqlError | DatabaseError.DatabaseError>> = [
        Effect.fail(unique),
        Effect.fail(sqlError),
        Effect.die(sqlError)
      ]
      for (const failing of all) {
        assert.strictEqual(yield* tag(failing), "UniqueViolation")
        assert.strictEqual(yield* DatabaseError.catchAll(failing, () => Effect.succeed(1)), 1)
      }
      assert.strictEqual(yield* Effect.flip(tag(Effect.fail("mine"))), "mine")
      assert.strictEqual(yield* tag(Effect.succeed("fine")), "fine")
    })
  )

  it("each error has a status and a body that say what a client can do, without the server's message", async () => {
    const refused = (cause: DatabaseError.DatabaseError) =>
      new DatabaseError.CommitFailed({ ...place, sqlState: "40001", cause })
    const collision = new DatabaseError.SerializationFailure({ ...place, cause: new Error("secret") })
    const limit = "canceling statement"
    const figures = { waitedMillis: 1, total: 1, active: 1, idle: 0, waiting: 1 }
    const statuses: ReadonlyArray<readonly [error: DatabaseError.DatabaseError, status: number, says: string]> = [
      [collision, 409, "send it again"],
      [new DatabaseError.DeadlockDetected(place), 409, "send it again"],
      [refused(collision), 409, "send it again"],
      [new DatabaseError.RolledBackAtCommit({ ...place, cause: collision }), 409, "send it again"],
      [new DatabaseError.ConnectFailed({ ...place, reason: "unreachable" }), 503, "is unavailable"],
      [new DatabaseError.PoolExhausted({ ...place, ...figures, reason: "shed" }), 503, "is unavailable"],
      [new DatabaseError.Disconnected({ ...place, outcome: "undone" }), 503, "nothing was stored"],
      [new DatabaseError.Disconnected({ ...place, outcome: "inDoubt" }), 503, "check if it is stored"],
      [new DatabaseError.CommitOutcomeUnknown(place), 503, "check if it is stored"],
      [new DatabaseError.StatementTimeout({ ...place, limit }), 503, "too busy"],
      [new DatabaseError.LockTimeout({ ...place, limit }), 503, "too busy"],
      [
        new DatabaseError.QueryFailed({
          ...place,
          sqlState: "XX000",
          cause: new Error("cache lookup failed for type 16385")
        }),
        409,
        "send it again"
      ],
      [refused(unique), 500, "could not be stored"],
      [unique, 500, "could not be stored"],
      [new DatabaseError.QueryFailed({ ...place, sqlState: "42601" }), 500, "could not be stored"],
      ...[
        "SELECT 1 / 0",
        "/* report */ WITH a AS (SELECT 1) SELECT * FROM a",
        "TABLE item",
        "VALUES (1 / 0)",
        "SHOW nothing"
      ].map(
        (sql) =>
          [new DatabaseError.InvalidInput({ ...place, sqlState: "22012", sql }), 500, '"The request failed"'] as const
      ),
      ...[
        "INSERT INTO item SELECT 1 / 0",
        "WITH a AS (DELETE FROM item RETURNING 1 / 0) SELECT * FROM a",
        "SELECT 1 INTO item",
        "SELECT 1; UPDATE item SET amount = 1 / 0",
        "CALL p()"
      ].map(
        (sql) =>
          [new DatabaseError.InvalidInput({ ...place, sqlState: "22012", sql }), 500, "could not be stored"] as const
      )
    ]
    for (const [error, status, says] of statuses) {
      const response = DatabaseError.toResponse(error)
      const body = await response.text()
      assert.deepStrictEqual([error._tag, response.status], [error._tag, status])
      assert.strictEqual(response.headers.get("content-type"), "application/problem+json")
      assert.include(body, says)
      assert.notInclude(body, "secret")
      assert.deepStrictEqual(JSON.parse(body), { ...DatabaseError.toProblem(error) })
    }
  })

  it("error messages name the database and the server, and contain advice or figures", () => {
    assert.strictEqual(unique.message, 'database "app" at localhost:5432: duplicate key')
    const lost = new DatabaseError.Disconnected({ ...place, outcome: "inDoubt", cause: new Error("reset") })
    assert.include(lost.message, "check whether the write was applied before retrying")
    const exhausted = new DatabaseError.PoolExhausted({
      ...place,
      reason: "timeout",
      waitedMillis: 12.3,
      total: 2,
      active: 2,
      idle: 0,
      waiting: 5
    })
    assert.include(exhausted.message, "within 12 ms (total 2, active 2, idle 0, waiting 5)")
    assert.isTrue(DatabaseError.isDatabaseError(lost))
    assert.isFalse(DatabaseError.isDatabaseError(new Error("x")))
  })

  it("a message names the database once if its cause is of the same database, and otherwise both", () => {
    const sql = "INSERT INTO account VALUES ($1)"
    const cause = new DatabaseError.UniqueViolation({ ...place, sql, cause: new Error("duplicate key") })
    assert.strictEqual(
      new DatabaseError.CommitFailed({ ...place, sqlState: "23505", cause }).message,
      'database "app" at localhost:5432: the server refused COMMIT, so the transaction was rolled back: duplicate key'
    )
    assert.strictEqual(
      new DatabaseError.CommitVetoed({ database: "audit", server: "localhost:5433", cause }).message,
      'database "audit" at localhost:5433: a beforeCommit hook failed, so the transaction was rolled back: ' +
        'database "app" at localhost:5432: duplicate key'
    )
  })

  it("the message of an error ends with that of a foreign cause, even one with a field named sql", () => {
    const cause = Object.assign(new Error("boom"), { sql: "SELECT 1", where: { id: 1 } })
    assert.strictEqual(
      new DatabaseError.CommitVetoed({ ...place, cause }).message,
      'database "app" at localhost:5432: a beforeCommit hook failed, so the transaction was rolled back: boom'
    )
  })

  it("a message whose cause is DatabaseClosed names the database once, and otherwise both", () => {
    const vetoed = (closed: typeof place) =>
      new DatabaseError.CommitVetoed({ ...place, cause: new DatabaseError.DatabaseClosed(closed) }).message
    const veto = 'database "app" at localhost:5432: a beforeCommit hook failed, so the transaction was rolled back: '
    assert.strictEqual(vetoed(place), `${veto}the database is closed - use it only while its layer is open`)
    assert.strictEqual(
      vetoed({ ...place, database: "audit" }),
      `${veto}database "audit" at localhost:5432 is closed - use it only while its layer is open`
    )
  })

  it("the refusal of a statement in a failed transaction names the first failure, and the database once", () => {
    const refusal: PlainFailure<"QueryFailed"> = {
      _tag: "QueryFailed",
      ...place,
      sqlState: "25P02",
      cause: new Error("current transaction is aborted")
    }
    const first: PlainFailure<"UniqueViolation"> = {
      _tag: "UniqueViolation",
      ...place,
      sql: "SELECT 1",
      cause: new Error("duplicate key")
    }
    const errorAfter = (earlier: StatementFailure) => toDatabaseError(afterFirst(refusal, earlier))
    const second = errorAfter(first)
    assert.include(
      second.message,
      'database "app" at localhost:5432: current transaction is aborted; the first failure in it: duplicate key (25P02)'
    )
    assert.strictEqual(
      second._tag === "QueryFailed" && second.cause instanceof Error && second.cause.cause,
      toDatabaseError(first)
    )
    assert.include(
      errorAfter({ _tag: "Disconnected", ...place, server: "other:5432", outcome: "undone" }).message,
      'the first failure in it: database "app" at other:5432: the connection was lost'
    )
  })

  it("only a transient failure that has certainly stored nothing is replayable", () => {
    const lost = (outcome: "notSent" | "undone" | "inDoubt") => new DatabaseError.Disconnected({ ...place, outcome })
    assert.deepStrictEqual(
      [
        new DatabaseError.SerializationFailure(place),
        new DatabaseError.CommitFailed({
          ...place,
          sqlState: "40001",
          cause: new DatabaseError.SerializationFailure(place)
        }),
        new DatabaseError.CommitFailed({ ...place, sqlState: "23503", cause: unique }),
        new DatabaseError.CommitOutcomeUnknown(place),
        DatabaseError.toSqlError(lost("undone")),
        lost("notSent"),
        lost("inDoubt"),
        unique,
        "anything"
      ].map(RetryPolicy.isReplayable),
      [true, true, false, false, true, true, false, false, false]
    )
  })
})
