import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import type { Observation } from "effect-db"
import { Db } from "./databases.js"

/**
 * Runs an effect, and returns the observations of `Db` until its end. The first of them may be of a
 * statement that ran before the effect.
 */
export const observed = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const facts: Array<Observation.Observation> = []
    const listening = yield* Deferred.make<void>()
    const fiber = yield* Effect.forkScoped(
      Db.observations.pipe(
        Stream.tap((fact) => Effect.sync(() => facts.push(fact))),
        Stream.tap(() => Deferred.succeed(listening, undefined)),
        Stream.runDrain
      )
    )
    // an observation of this statement shows that the recorder listens
    const knock = Effect.zipRight(
      Effect.flatMap(Db.writer, (sql) => sql`SELECT 1`),
      Deferred.poll(listening)
    )
    yield* Effect.repeat(knock, { until: (heard) => heard._tag === "Some" })
    yield* self
    yield* Fiber.interrupt(fiber)
    return facts
  })
