/** The failures of effects, refined and checked. */
import { assert } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { DatabaseError } from "effect-db"

/** Returns the refined failure of an effect; dies if the effect succeeds. */
export const failure = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.catchAll(Effect.flip(DatabaseError.refine(self)), () => Effect.dieMessage("it has not failed"))

/** Returns the refined failure of an effect; any exit but one failure of this tag fails the test. */
export const taggedFailure = <Tag extends DatabaseError.DatabaseError["_tag"], A, E, R>(
  tag: Tag,
  self: Effect.Effect<A, E, R>
): Effect.Effect<Extract<DatabaseError.DatabaseError, { readonly _tag: Tag }>, never, R> =>
  Effect.map(Effect.exit(DatabaseError.refine(self)), (exit) => {
    const isIt = (error: unknown): error is Extract<DatabaseError.DatabaseError, { readonly _tag: Tag }> =>
      DatabaseError.isDatabaseError(error) && error._tag === tag
    if (Exit.isFailure(exit) && Cause.isFailType(exit.cause) && isIt(exit.cause.error)) return exit.cause.error
    return assert.fail(`no ${tag}, but ${Exit.isSuccess(exit) ? "a success" : Cause.pretty(exit.cause)}`)
  })

/** Returns the tag of an error that has one; any other value is returned as it is. */
export const tagOf = (error: unknown): unknown => (error instanceof Error && "_tag" in error ? error._tag : error)
