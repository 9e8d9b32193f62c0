/**
 * The service that chooses the server of a read.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Layer from "effect/Layer"

/**
 * Server that could serve a read.
 *
 * @see {@link Choose}, which receives it
 * @since 0.1.0
 * @category models
 */
export interface Candidate {
  /**
   * The server: `host:port`, `a:5432,b:5432` for several hosts, the folder of a Unix socket, or
   * the `name` of a server that is given as a `socket`.
   */
  readonly name: string
  /** The number of connections in use and of callers in the wait queue. */
  readonly load: number
  /** The `weight` of the server in the settings. */
  readonly weight: number
  /**
   * The time that the server is behind the primary, in milliseconds; `undefined` if it is not known.
   * A server beyond `maxLag` or `maxLagBytes` is a candidate only if all readers are behind and
   * `whenAllBehind` is `"leastBehind"`.
   */
  readonly lagMillis: number | undefined
  /** The same lag in bytes of the log. */
  readonly lagBytes: number | undefined
  /** The average time of a round trip, in milliseconds; `undefined` if it is not known. */
  readonly latencyMillis: number | undefined
}

/**
 * Data for the choice of a server for a read.
 *
 * @see {@link Choose}, which receives it
 * @since 0.1.0
 * @category models
 */
export interface Ask {
  /** The name of the database. */
  readonly database: string
  /** The number of earlier choices for this database. */
  readonly turn: number
  /** A random number from 0 to 1, without 1. */
  readonly random: number
}

/**
 * Function that returns the index of one of the candidates.
 *
 * There are at least two candidates. The function must not throw; an index out of range means the
 * first candidate.
 *
 * @see {@link layer} to use it
 * @since 0.1.0
 * @category models
 */
export type Choose = (ask: Ask, candidates: ReadonlyArray<Candidate>) => number

/**
 * Chooses the servers in turn.
 *
 * @see {@link layerRoundRobin}
 * @example
 * ```ts
 * import { Router } from "effect-db"
 *
 * // reads of the database "reports" go to the first candidate, other reads to the servers in turn
 * export const RouterLive = Router.layer((ask, candidates) =>
 *   ask.database === "reports" ? 0 : Router.roundRobin(ask, candidates)
 * )
 * ```
 *
 * @since 0.1.0
 * @category policies
 */
export const roundRobin: Choose = (ask, candidates) => ask.turn % candidates.length

/**
 * Chooses a server at random.
 *
 * @see {@link layerRandom}
 * @example
 * ```ts
 * import { Router } from "effect-db"
 *
 * const common = { weight: 1, lagMillis: 0, lagBytes: 0, latencyMillis: 1 }
 * const candidates = [{ ...common, name: "one:5432", load: 3 }, { ...common, name: "two:5432", load: 0 }]
 * console.log(Router.random({ database: "app", turn: 0, random: 0.7 }, candidates)) // 1: two:5432
 * ```
 *
 * @since 0.1.0
 * @category policies
 */
export const random: Choose = (ask, candidates) => Math.floor(ask.random * candidates.length)

/**
 * Chooses the server with the lowest load, and among servers with the same load in turn.
 *
 * @see {@link layerLeastBusy}
 * @example
 * ```ts
 * import { Router } from "effect-db"
 *
 * const common = { weight: 1, lagMillis: 0, lagBytes: 0, latencyMillis: 1 }
 * const candidates = [{ ...common, name: "one:5432", load: 3 }, { ...common, name: "two:5432", load: 0 }]
 * console.log(Router.leastBusy({ database: "app", turn: 0, random: 0.2 }, candidates)) // 1: two:5432
 * ```
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
 * Chooses a server at random, by the weights in the settings.
 *
 * @see {@link layerWeighted}
 * @see `DatabaseConfig.ServerSettings` for the setting `weight`
 * @example
 * ```ts
 * import { Router } from "effect-db"
 *
 * const common = { load: 0, lagMillis: 0, lagBytes: 0, latencyMillis: 1 }
 * const candidates = [{ ...common, name: "one:5432", weight: 3 }, { ...common, name: "two:5432", weight: 1 }]
 * console.log(Router.weighted({ database: "app", turn: 0, random: 0.7 }, candidates)) // 0: one:5432
 * ```
 *
 * @since 0.3.0
 * @category policies
 */
export const weighted: Choose = (ask, candidates) => {
  let left = ask.random * candidates.reduce((sum, { weight }) => sum + weight, 0)
  const chosen = candidates.findIndex(({ weight }) => {
    left -= weight
    return left < 0
  })
  return Math.max(0, chosen)
}

/**
 * Chooses the faster of two servers that are drawn at random: the server with the lower product of its
 * latency and its load plus one. If the latency of one is not known, the load alone decides.
 *
 * Two draws keep all programs from choosing the same server at the same time.
 *
 * @see {@link layerFastest}
 * @example
 * ```ts
 * import { Router } from "effect-db"
 *
 * const common = { load: 0, weight: 1, lagMillis: 0, lagBytes: 0 }
 * const candidates = [
 *   { ...common, name: "here:5432", latencyMillis: 1 },
 *   { ...common, name: "far:5432", latencyMillis: 30 }
 * ]
 * console.log(Router.fastest({ database: "app", turn: 0, random: 0.7 }, candidates)) // 0: here:5432
 * ```
 *
 * @since 0.3.0
 * @category policies
 */
export const fastest: Choose = (ask, candidates) => {
  const { length } = candidates
  // one random number gives two different draws
  const draw = Math.floor(ask.random * length * (length - 1))
  const first = Math.floor(draw / (length - 1))
  const second = (first + 1 + (draw % (length - 1))) % length
  const [one, other] = [candidates[first], candidates[second]]
  if (one === undefined || other === undefined) return first
  const areKnown = one.latencyMillis !== undefined && other.latencyMillis !== undefined
  const costOf = ({ latencyMillis = 1, load }: Candidate) => (areKnown ? latencyMillis : 1) * (load + 1)
  return costOf(other) < costOf(one) ? second : first
}

/**
 * Service that chooses the server of a read, by default {@link roundRobin}.
 *
 * A database uses the service that is in its context when its layer is built.
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
 * Provides your own function that chooses the server of a read.
 *
 * @example
 * ```ts
 * import { Router } from "effect-db"
 *
 * // a server in this zone, if there is one among the candidates
 * export const RouterLive = Router.layer((_, candidates) =>
 *   Math.max(0, candidates.findIndex(({ name }) => name.startsWith("zone-a.")))
 * )
 * ```
 *
 * @see {@link layerRoundRobin}, {@link layerRandom} and {@link layerLeastBusy}
 * @since 0.1.0
 * @category layers
 */
export const layer = (choose: Choose): Layer.Layer<never> => Layer.succeedContext(Context.make(Router, choose))

/**
 * Provides {@link roundRobin}, the default.
 *
 * @see {@link layerLeastBusy} and {@link layerRandom} for other choices
 * @see {@link Router} for an example
 * @since 0.1.0
 * @category layers
 */
export const layerRoundRobin: Layer.Layer<never> = layer(roundRobin)

/**
 * Provides {@link random}.
 *
 * @see {@link layerRoundRobin} and {@link layerLeastBusy} for other choices
 * @see {@link Router} for an example
 * @since 0.1.0
 * @category layers
 */
export const layerRandom: Layer.Layer<never> = layer(random)

/**
 * Provides {@link leastBusy}.
 *
 * @see {@link layerRoundRobin} and {@link layerRandom} for other choices
 * @see {@link Router} for an example
 * @since 0.1.0
 * @category layers
 */
export const layerLeastBusy: Layer.Layer<never> = layer(leastBusy)

/**
 * Provides {@link weighted}.
 *
 * @see {@link layerFastest} for a choice by the latency
 * @see {@link Router} for an example
 * @since 0.3.0
 * @category layers
 */
export const layerWeighted: Layer.Layer<never> = layer(weighted)

/**
 * Provides {@link fastest}.
 *
 * @see {@link layerLeastBusy} for a choice by the load alone
 * @see {@link Router} for an example
 * @since 0.3.0
 * @category layers
 */
export const layerFastest: Layer.Layer<never> = layer(fastest)
