/**
 * The expectations of a test about the work of an effect.
 */
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { Database } from "../../Database.js"
import { ConfigInvalid } from "../../DatabaseError.js"
import { type Limits, NPlusOne, type Recording, TooMany, toLines } from "../../Recording.js"
import { recorderOf } from "./openInstrumented.js"
import type { Recorder } from "./recorder.js"

/** The number of runs of a statement in a row that a test accepts by default. */
const mostRepeats = 5

/** Returns the recorder of a database, or fails if it is not recorded. */
const recorder = <Self>(tag: Context.Tag<Self, Database>): Effect.Effect<Recorder, ConfigInvalid, Self> =>
  Effect.flatMap(tag, (database) => {
    const found = recorderOf(database)
    if (found !== undefined) return Effect.succeed(found)
    const given = "a database that is not recorded"
    const expected = "the layer TestDatabase.layerRecorded around the test"
    return Effect.fail(
      new ConfigInvalid({ database: database.executor.database, setting: "recording", given, expected })
    )
  })

/** Returns the recording of a database so far. */
export const recording = <Self>(tag: Context.Tag<Self, Database>): Effect.Effect<Recording, ConfigInvalid, Self> =>
  Effect.map(recorder(tag), (found) => found.since())

/** Runs an effect, and returns its result with the recording of its time. */
export const recorded = <A, E, R, Self>(
  self: Effect.Effect<A, E, R>,
  tag: Context.Tag<Self, Database>
): Effect.Effect<readonly [A, Recording], E | ConfigInvalid, R | Self> =>
  Effect.flatMap(recorder(tag), (found) => {
    const mark = found.mark()
    return Effect.map(self, (result) => [result, found.since(mark)])
  })

const isCount = (value: number): boolean => Number.isInteger(value) && value >= 0

/** Returns the refusal of a limit that is no number of things. */
const invalidLimit = (database: string, setting: string, limit: number): ConfigInvalid =>
  new ConfigInvalid({ database, setting, given: String(limit), expected: "an integer of at least 0" })

/** Runs an effect, and fails if it has run more than the limits allow. */
export const expectAtMost = <A, E, R, Self>(
  self: Effect.Effect<A, E, R>,
  tag: Context.Tag<Self, Database>,
  limits: number | Limits
): Effect.Effect<A, E | ConfigInvalid | TooMany, R | Self> =>
  Effect.flatMap(recorded(self, tag), ([result, ran]): Effect.Effect<A, ConfigInvalid | TooMany> => {
    const { database } = ran
    const { roundTrips, statements, transactions }: Limits =
      typeof limits === "number" ? { statements: limits } : limits
    const figures = [
      ["statements", ran.statements.length, statements],
      ["transactions", ran.transactions.length, transactions],
      ["roundTrips", ran.roundTrips, roundTrips]
    ] as const
    for (const [what, count, most] of figures) {
      if (most === undefined) continue
      if (!isCount(most)) return Effect.fail(invalidLimit(database, what, most))
      if (count > most) return Effect.fail(new TooMany({ database, what, most, count, ran: toLines(ran) }))
    }
    return Effect.succeed(result)
  })

/** Runs an effect, and fails if it has repeated a statement more often than `most` times in a row. */
export const expectNoNPlusOne = <A, E, R, Self>(
  self: Effect.Effect<A, E, R>,
  tag: Context.Tag<Self, Database>,
  most: number = mostRepeats
): Effect.Effect<A, E | ConfigInvalid | NPlusOne, R | Self> =>
  Effect.flatMap(recorded(self, tag), ([result, ran]): Effect.Effect<A, ConfigInvalid | NPlusOne> => {
    const { database, repeated } = ran
    if (!isCount(most)) return Effect.fail(invalidLimit(database, "most", most))
    const found = repeated.filter(({ times }) => times > most)
    return found.length === 0 ? Effect.succeed(result) : Effect.fail(new NPlusOne({ database, repeated: found }))
  })
