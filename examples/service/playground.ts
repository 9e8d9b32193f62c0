import { Clock, Context, Duration, Effect, FiberHandle, Layer, Option, Ref, Schema } from "effect"
import type { EmbeddedPostgres } from "effect-db"
import { failed, killOn, type Server, type ServersFailed } from "./servers.js"

/** The time after which a frozen replica thaws, so that the next visitor finds it running. */
const frozenFor = Duration.seconds(30)

export const State = Schema.Struct({
  embedded: Schema.Boolean.annotations({ description: "True if the service has started the servers itself" }),
  frozenFor: Schema.Number.annotations({ description: "The seconds until the replica thaws; 0 if it is not frozen" })
}).annotations({ identifier: "ServersState" })

export const Killed = Schema.Struct({ killed: Schema.Number }).annotations({ identifier: "Killed" })

export interface Acts {
  /** Ends the connections to all servers, except frozen ones; returns their number. */
  readonly kill: Effect.Effect<number, ServersFailed>
  readonly freeze: Effect.Effect<void, ServersFailed>
  readonly thaw: Effect.Effect<void, ServersFailed>
  readonly state: Effect.Effect<typeof State.Type>
}

/** The actions with which a visitor disturbs the servers, to see that the service keeps working; none if the service has not started them. */
export class Playground extends Context.Tag("example/Playground")<Playground, Option.Option<Acts>>() {}

export const none = Layer.succeed(Playground, Option.none())

export const noState: typeof State.Type = { embedded: false, frozenFor: 0 }

const make = (postgres: EmbeddedPostgres.EmbeddedPostgres.Service) =>
  Effect.gen(function* () {
    const frozenUntil = yield* Ref.make(0)
    const forgotten = yield* FiberHandle.make()

    const servers = [postgres.primary, ...postgres.replicas]
    const thawNow = Effect.zipRight(
      Effect.forEach(servers, (server) => server.thaw, { discard: true }),
      Ref.set(frozenUntil, 0)
    )
    yield* Effect.addFinalizer(() => Effect.ignore(thawNow))

    // `terminateBackends` would wait for a frozen replica, so while there is one the primary is called alone
    const killAnswering = Effect.gen(function* () {
      const primary = yield* Effect.mapError(postgres.currentPrimary, failed)
      const databases = (["app", "audit"] as const).map(
        (database): Server => ({ database, role: "primary", url: primary.url(database) })
      )
      const counts = yield* Effect.forEach(databases, killOn, { concurrency: "unbounded" })
      return counts.reduce((sum, count) => sum + count, 0)
    })

    const replicas = Effect.gen(function* () {
      const primary = yield* Effect.option(postgres.currentPrimary)
      return yield* Effect.filter(
        servers.filter((server) => !Option.contains(primary, server)),
        (server) => server.isRunning
      )
    })

    const acts: Acts = {
      kill: Effect.flatMap(Ref.get(frozenUntil), (until) =>
        until === 0 ? Effect.mapError(postgres.terminateBackends(), failed) : killAnswering
      ),
      freeze: Effect.gen(function* () {
        yield* Ref.set(frozenUntil, (yield* Clock.currentTimeMillis) + Duration.toMillis(frozenFor))
        yield* FiberHandle.run(forgotten, Effect.delay(Effect.ignore(thawNow), frozenFor))
        yield* Effect.forEach(yield* replicas, (replica) => replica.freeze, { discard: true })
      }).pipe(
        Effect.tapError(() => Effect.ignore(thawNow)),
        Effect.mapError(failed),
        Effect.uninterruptible
      ),
      thaw: thawNow.pipe(Effect.mapError(failed), Effect.uninterruptible),
      state: Effect.zipWith(Ref.get(frozenUntil), Clock.currentTimeMillis, (until, now) => ({
        embedded: true,
        frozenFor: Math.max(0, Math.ceil((until - now) / 1000))
      }))
    }
    return Option.some(acts)
  })

/** The actions on servers that the service has started. A frozen replica is thawed after `frozenFor`, and when the service ends. */
export const embedded = (postgres: EmbeddedPostgres.EmbeddedPostgres.Service) =>
  Layer.scoped(Playground, make(postgres))
