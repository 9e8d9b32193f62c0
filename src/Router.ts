/**
 * The choice of the server for a read among the replicas that may serve it.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Layer from "effect/Layer"

/**
 * Server that could serve a read.
 *
 * @since 0.1.0
 * @category models
 */
export interface Candidate {
  /** The server, as `host:port`. */
  readonly name: string
  /** The number of connections in use and of callers in the wait queue. */
  readonly load: number
}

/**
 * Read for which a server is chosen.
 *
 * @since 0.1.0
 * @category models
 */
export interface Ask {
  /** The name of the database. */
  readonly database: string
  /** The number of reads of this database so far. */
  readonly turn: number
  /** A random number from 0 to 1, without 1. */
  readonly random: number
}

/**
 * Function that returns the index of the chosen candidate.
 *
 * There are at least two candidates. The function must be fast and must not throw.
 *
 * @since 0.1.0
 * @category models
 */
export type Choose = (ask: Ask, candidates: ReadonlyArray<Candidate>) => number

/**
 * Chooses one candidate after the other.
 *
 * @see {@link leastBusy} for replicas of different speed
 * @since 0.1.0
 * @category policies
 */
export const roundRobin: Choose = (ask, candidates) => ask.turn % candidates.length

/**
 * Chooses a random candidate.
 *
 * @since 0.1.0
 * @category policies
 */
export const random: Choose = (ask, candidates) => Math.floor(ask.random * candidates.length)

/**
 * Chooses the candidate with the least load, and among equals one after the other.
 *
 * @see {@link roundRobin} for equal shares
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
 * Choice that is used by the layers of databases that are built with it.
 *
 * Without a layer it is {@link roundRobin}.
 *
 * @see {@link layer} for your own choice
 * @example
 * ```ts
 * import { Layer, Redacted } from "effect"
 * import { Database, Router } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const DbLive = Db.layer({
 *   writer: Redacted.make("postgres://me:secret@primary/app"),
 *   readers: [Redacted.make("postgres://me:secret@one/app"), Redacted.make("postgres://me:secret@two/app")]
 * }).pipe(Layer.provide(Router.layerLeastBusy))
 * ```
 *
 * @since 0.1.0
 * @category services
 */
export class Router extends Context.Reference<Router>()("effect-db/Router", {
  defaultValue: (): Choose => roundRobin
}) {}

/**
 * Returns a layer with a choice of the program.
 *
 * Provide it to the layer of the database.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = (choose: Choose): Layer.Layer<never> => Layer.succeedContext(Context.make(Router, choose))

/**
 * Layer with {@link roundRobin}, which is the default.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerRoundRobin: Layer.Layer<never> = layer(roundRobin)

/**
 * Layer with {@link random}.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerRandom: Layer.Layer<never> = layer(random)

/**
 * Layer with {@link leastBusy}.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerLeastBusy: Layer.Layer<never> = layer(leastBusy)
