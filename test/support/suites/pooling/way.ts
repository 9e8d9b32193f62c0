/** The ways in which the tests open a pool, and the network between the pool and its server. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { type Database, RetryPolicy } from "effect-db"
import { Db, freshTable, Place } from "../../databases.js"
import { type Message, makeProxy, type Proxy } from "../../proxy.js"

/** A route to a server. */
export interface Route {
  readonly name: string
  /**
   * True if a connection has one session of the server for all of its life. Behind a pooler each
   * transaction may have another session.
   */
  readonly hasSessions: boolean
  readonly options: Partial<Database.Options>
  /** Returns the URL by which this route reaches the server of a URL. */
  readonly via: (url: Redacted.Redacted<string>) => Effect.Effect<Redacted.Redacted<string>, never, Scope.Scope>
}

/** A way to open a database. */
export interface Way {
  readonly order: "lifo" | "fifo"
  readonly strategy: "pooled" | "single"
  readonly route: Route
}

/** The network between a database and its server: a proxy. */
export class Network extends Context.Tag("test/Network")<Network, Proxy>() {}

type Options = Partial<Database.Options>

/** Returns the options of a way; the strategy `single` has no number of connections. */
const merge = ({ order, route, strategy }: Way, { maxConnections, maxOverflow, ...rest }: Options): Options => ({
  order,
  strategy,
  ...route.options,
  ...(strategy === "single" ? {} : { maxConnections: maxConnections ?? 10, maxOverflow: maxOverflow ?? 0 }),
  ...rest
})

/** Opens a new database as `Db` in a way. */
export const open = (way: Way, options: Options = {}): Layer.Layer<Db | Place> =>
  Layer.unwrapScoped(
    Effect.gen(function* () {
      const place = yield* freshTable
      const writer = yield* way.route.via(place.writer)
      return Layer.merge(Db.layer({ writer, ...merge(way, options) }), Layer.succeed(Place, place))
    })
  ).pipe(Layer.orDie)

/** Opens a new database as `Db` over a network that the test controls. */
export const openOverNetwork = (way: Way, options: Options = {}): Layer.Layer<Db | Place | Network> =>
  Layer.unwrapScoped(
    Effect.gen(function* () {
      const place = yield* freshTable
      const network = yield* makeProxy(yield* way.route.via(place.writer))
      return Layer.mergeAll(
        Db.layer({ writer: network.url, ...merge(way, options) }),
        Layer.succeed(Place, place),
        Layer.succeed(Network, network)
      )
    })
  ).pipe(Layer.orDie)

/**
 * Opens a new database over a controlled network, with an effect that closes it before the test is
 * over.
 */
export const openToClose = (way: Way, options: Options = {}) =>
  Effect.gen(function* () {
    const place = yield* freshTable
    const network = yield* makeProxy(yield* way.route.via(place.writer))
    const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
    const database = yield* Layer.buildWithScope(Db.layer({ writer: network.url, ...merge(way, options) }), scope)
    const context = database.pipe(Context.add(Place, place), Context.add(Network, network))
    return { context, network, close: Scope.close(scope, Exit.void) }
  })

/** Disables retries, so that the failures of the pool reach the test. */
export const once = RetryPolicy.layer(RetryPolicy.never)

/** Matches the request for a new connection. */
export const connects = ({ type }: Message): boolean => type === "startup"

/**
 * Makes the current connections half-open from their next message on; new ones work.
 */
export const halfOpen = Effect.flatMap(Network, (network) => {
  const last = network.accepted
  return network.when(({ connection }) => connection <= last, "freeze", Number.POSITIVE_INFINITY)
})
