/** A runtime on a new database, and the rejections of its promises. */
import * as Effect from "effect/Effect"
import { DatabaseRuntime } from "effect-db"
import { Db, freshTable, Place, stored } from "./databases.js"

/** Returns the value that a promise rejects with. */
export const rejectionOf = (promise: Promise<unknown>): Effect.Effect<unknown> =>
  Effect.promise(() =>
    promise.then(
      () => "no failure",
      (error: unknown) => error
    )
  )

/**
 * Opens a runtime on a new database, which is closed at the end of the test, whatever has it open.
 */
export const fresh = (options?: DatabaseRuntime.Options) =>
  Effect.gen(function* () {
    const place = yield* freshTable
    const runtime = DatabaseRuntime.make(
      { db: Db },
      Db.layer({ writer: place.writer, readers: [place.reader] }),
      options
    )
    yield* Effect.addFinalizer(() => Effect.promise(() => runtime.close()))
    return {
      runtime,
      db: runtime.databases.db,
      stored: Effect.provideService(stored, Place, place),
      place
    }
  })
