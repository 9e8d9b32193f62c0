/**
 * Which server serves a read: a service, and a pure choice.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Layer from "effect/Layer"

/**
 * A server that could serve the read.
 *
 * @since 0.1.0
 * @category models
 */
export interface Candidate {
  readonly name: string
  /** Connections in use and callers who wait for one. */
  readonly load: number
}

/**
 * What is known of the read. `turn` counts the reads of this database, `random` is between 0 and 1.
 *
 * @since 0.1.0
 * @category models
 */
export interface Ask {
  readonly database: string
  readonly turn: number
  readonly random: number
}

/**
 * Chooses one of the candidates, by its index; there are at least two. It must not throw.
 *
 * @since 0.1.0
 * @category models
 */
export type Choose = (ask: Ask, candidates: ReadonlyArray<Candidate>) => number

/**
 * One after the other.
 *
 * @since 0.1.0
 * @category policies
 */
export const roundRobin: Choose = (ask, candidates) => ask.turn % candidates.length

/**
 * Any of them.
 *
 * @since 0.1.0
 * @category policies
 */
export const random: Choose = (ask, candidates) => Math.floor(ask.random * candidates.length)

/**
 * The one with the fewest connections in use and callers waiting; among equals one after the other.
 *
 * @since 0.1.0
 * @category policies
 */
export const leastBusy: Choose = (ask, candidates) => {
  let best = 0
  let least = Number.POSITIVE_INFINITY
  for (let i = 0; i < candidates.length; i++) {
    const at = (ask.turn + i) % candidates.length
    const candidate = candidates[at]
    if (candidate !== undefined && candidate.load < least) {
      best = at
      least = candidate.load
    }
  }
  return best
}

/**
 * The choice in force when a database's layer is built. Without a layer it is {@link roundRobin}.
 *
 * @example
 * import { Layer, Redacted } from "effect"
 * import { Database, Router } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const DbLive = Db.layer({
 *   writer: Redacted.make("postgres://me:secret@primary/app"),
 *   readers: [Redacted.make("postgres://me:secret@one/app"), Redacted.make("postgres://me:secret@two/app")]
 * }).pipe(Layer.provide(Router.layerLeastBusy))
 *
 * @since 0.1.0
 * @category services
 */
export class Router extends Context.Reference<Router>()("effect-db/Router", {
  defaultValue: (): Choose => roundRobin
}) {}

/**
 * A choice of your own.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = (choose: Choose): Layer.Layer<never> => Layer.succeedContext(Context.make(Router, choose))

/**
 * @since 0.1.0
 * @category layers
 */
export const layerRoundRobin: Layer.Layer<never> = layer(roundRobin)

/**
 * @since 0.1.0
 * @category layers
 */
export const layerRandom: Layer.Layer<never> = layer(random)

/**
 * @since 0.1.0
 * @category layers
 */
export const layerLeastBusy: Layer.Layer<never> = layer(leastBusy)
