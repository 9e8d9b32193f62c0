import { Effect, Layer, Schedule } from "effect"
import { EmbeddedPostgres } from "effect-db"

const revive = (server: EmbeddedPostgres.EmbeddedPostgres.Server) =>
  Effect.gen(function* () {
    yield* Effect.repeat(server.isRunning, { while: (runs) => runs, schedule: Schedule.spaced("200 millis") })
    yield* Effect.logWarning(`the embedded ${server.name} has ended; it is started again`)
    yield* server.start
    yield* Effect.logInfo(`the embedded ${server.name} runs again`)
  }).pipe(
    Effect.forever,
    Effect.catchAll(({ message }) => Effect.logError(`${message}\n  the server stays down: restart the service`))
  )

/** Restarts the embedded servers if they end while the service runs, for example because the system was out of memory. */
export const layer = Layer.scopedDiscard(
  Effect.flatMap(EmbeddedPostgres.EmbeddedPostgres, ({ primary, replicas }) =>
    Effect.forEach([primary, ...replicas], (server) => Effect.forkScoped(revive(server)))
  )
)
