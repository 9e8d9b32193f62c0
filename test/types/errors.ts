/** Types of errors after `DatabaseError.refine`. `tsc` is the test; nothing here runs. */
import { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import { DatabaseError } from "effect-db"
import { expectTypeOf } from "vitest"

type Work<E> = Effect.Effect<string, E, "needed">

export const refineRemovesSqlError = (work: Work<SqlError | "refused">) => {
  expectTypeOf(DatabaseError.refine(work)).toEqualTypeOf<Work<"refused" | DatabaseError.DatabaseError>>()
  // @ts-expect-error: no SqlError is left
  expectTypeOf(DatabaseError.refine(work)).toEqualTypeOf<Work<SqlError | "refused" | DatabaseError.DatabaseError>>()
}

export const tagsAreCaught = (work: Work<SqlError>) => [
  work.pipe(
    DatabaseError.refine,
    Effect.catchTag("UniqueViolation", (error) => Effect.succeed(error.constraint))
  ),
  work.pipe(
    DatabaseError.refine,
    // @ts-expect-error: there is no such tag
    Effect.catchTag("UniqueConstraintViolation", () => Effect.void)
  ),
  work.pipe(
    // @ts-expect-error: before `refine` the tag is not seen
    Effect.catchTag("UniqueViolation", () => Effect.void)
  )
]

class Mine {
  readonly _tag = "Mine"
}

export const catchAllLeavesTheOthers = (work: Work<SqlError | DatabaseError.DatabaseError | Mine>) => {
  const handled = work.pipe(
    DatabaseError.catchAll((error) => {
      expectTypeOf(error).toEqualTypeOf<DatabaseError.DatabaseError>()
      return Effect.succeed(error.database)
    })
  )
  expectTypeOf(handled).toEqualTypeOf<Work<Mine>>()
  expectTypeOf(DatabaseError.catchAll(work, () => Effect.fail(1))).toEqualTypeOf<Work<Mine | number>>()
}

export const catchAllFollowsOtherHandlers = (work: Work<SqlError | Mine>) => {
  const isUnique = (error: DatabaseError.DatabaseError | Mine): error is DatabaseError.UniqueViolation =>
    error._tag === "UniqueViolation"
  const handled = work.pipe(
    DatabaseError.refine,
    Effect.catchIf(isUnique, (error) => Effect.succeed(error.constraint ?? "")),
    Effect.catchTag("ForeignKeyViolation", (error) => Effect.succeed(error.table ?? "")),
    DatabaseError.catchAll(() => Effect.fail("unavailable" as const))
  )
  expectTypeOf(handled).toEqualTypeOf<Work<Mine | "unavailable">>()
}

export const fieldsAreTyped = (error: DatabaseError.UniqueViolation, lost: DatabaseError.Disconnected) => {
  expectTypeOf(error.constraint).toEqualTypeOf<string | undefined>()
  expectTypeOf(lost.outcome).toEqualTypeOf<"notSent" | "undone" | "inDoubt">()
  // @ts-expect-error: a violation has no outcome
  expectTypeOf(error.outcome)
}

export const invalidInputIsCaught = (work: Work<SqlError>) =>
  work.pipe(
    DatabaseError.refine,
    Effect.catchTag("InvalidInput", (error) => {
      expectTypeOf(error).toEqualTypeOf<DatabaseError.InvalidInput>()
      expectTypeOf(error.sqlState).toEqualTypeOf<string>()
      expectTypeOf(error.sql).toEqualTypeOf<string | undefined>()
      return Effect.succeed(error.position)
    })
  )

export const otherErrorsAreDatabaseErrors = (error: DatabaseError.DatabaseError | SqlError) => {
  if (error instanceof SqlError) return
  expectTypeOf(error).toEqualTypeOf<DatabaseError.DatabaseError>()
}
