/** A runtime on a new database, and the rejections of its promises. */
import * as Effect from "effect/Effect"
import { DatabaseRuntime } from "effect-db"
import { Db, freshTable, Place, stored } from "./databases.js"

/** Returns the value that a promise rejects with, or "no failure" if it does not. */
export const rejectionOf = (promise: Promise<unknown>): Effect.Effect<unknown> =>
  Effect.promise(() =>
    promise.then(
      () => "no failure",
      (error: unknown) => error
    )
  )

/**
 * Makes a runtime on a new database. The runtime is closed when the scope ends, open or not.
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
