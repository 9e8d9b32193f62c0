import * as fs from "node:fs"
import { fileURLToPath } from "node:url"
import { SqlError } from "@effect/sql/SqlError"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { DatabaseError, RetryPolicy } from "effect-db"
import { describe } from "vitest"

const place = { database: "app", server: "localhost:5432" }

const unique = new DatabaseError.UniqueViolation({ ...place, constraint: "email", cause: new Error("duplicate key") })

describe("DatabaseError", () => {
  it.effect("refine gives what a SqlError says, and leaves other failures as they are", () =>
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

  it("messages name the database and the server, and say what to do", () => {
    assert.strictEqual(unique.message, 'database "app" at localhost:5432: duplicate key')
    const lost = new DatabaseError.Disconnected({ ...place, outcome: "inDoubt", cause: new Error("reset") })
    assert.include(lost.message, "look before you try again")
    const exhausted = new DatabaseError.PoolExhausted({
      ...place,
      reason: "timeout",
      waited: 12.3,
      total: 2,
      active: 2,
      idle: 0,
      waiting: 5
    })
    assert.include(exhausted.message, "within 12 ms (total 2, active 2, idle 0, waiting 5)")
    assert.isTrue(DatabaseError.isDatabaseError(lost))
    assert.isFalse(DatabaseError.isDatabaseError(new Error("x")))
  })

  it("only what is undone for certain may be replayed", () => {
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

  it("README's table of errors has every tag", () => {
    const readme = fs.readFileSync(fileURLToPath(new URL("../README.md", import.meta.url)), "utf8")
    const section = readme.slice(readme.indexOf("## Errors"), readme.indexOf("## Settings"))
    const tags = Object.entries(DatabaseError).flatMap(([name, value]) =>
      typeof value === "function" && value.prototype instanceof Error ? [name] : []
    )
    assert.isAbove(tags.length, 25)
    assert.deepStrictEqual(
      tags.filter((tag) => !section.includes(`\`${tag}\``)),
      []
    )
  })
})
