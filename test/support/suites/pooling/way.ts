/** The ways in which the tests of a pool open it, and the network between it and its server. */
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
   * True if a connection is a session of the server; otherwise its settings, locks and process ids
   * are those of the client before.
   */
  readonly hasSessions: boolean
  readonly options: Partial<Database.Options>
  /** The URL to be used instead of the server's own. */
  readonly via: (url: Redacted.Redacted<string>) => Effect.Effect<Redacted.Redacted<string>, never, Scope.Scope>
}

/** A way to open a database. */
export interface Way {
  readonly order: "lifo" | "fifo"
  readonly strategy: "pooled" | "single"
  readonly route: Route
}

/** The network between a database and its server. */
export class Wire extends Context.Tag("test/Wire")<Wire, Proxy>() {}

type Options = Partial<Database.Options>

/** Returns the options of a way: with one connection for all there is no number of them. */
const merge = ({ order, route, strategy }: Way, { maxConnections, maxOverflow, ...rest }: Options): Options => ({
  order,
  strategy,
  ...route.options,
  ...(strategy === "single" ? {} : { maxConnections: maxConnections ?? 10, maxOverflow: maxOverflow ?? 0 }),
  ...rest
})

/** Opens a new database as `Db` in that way. */
export const open = (way: Way, options: Options = {}): Layer.Layer<Db | Place> =>
  Layer.unwrapScoped(
    Effect.gen(function* () {
      const place = yield* freshTable
      const writer = yield* way.route.via(place.writer)
      return Layer.merge(Db.layer({ writer, ...merge(way, options) }), Layer.succeed(Place, place))
    })
  ).pipe(Layer.orDie)

/** Opens a new database as `Db` over a network that the test controls. */
export const openOverWire = (way: Way, options: Options = {}): Layer.Layer<Db | Place | Wire> =>
  Layer.unwrapScoped(
    Effect.gen(function* () {
      const place = yield* freshTable
      const wire = yield* makeProxy(yield* way.route.via(place.writer))
      return Layer.mergeAll(
        Db.layer({ writer: wire.url, ...merge(way, options) }),
        Layer.succeed(Place, place),
        Layer.succeed(Wire, wire)
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
    const wire = yield* makeProxy(yield* way.route.via(place.writer))
    const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
    const database = yield* Layer.buildWithScope(Db.layer({ writer: wire.url, ...merge(way, options) }), scope)
    const context = database.pipe(Context.add(Place, place), Context.add(Wire, wire))
    return { context, wire, close: Scope.close(scope, Exit.void) }
  })

/** Disables retries, so that the failure is that of the pool. */
export const once = RetryPolicy.layer(RetryPolicy.never)

/** Matches the request for a new connection. */
export const connects = ({ type }: Message): boolean => type === "startup"

/**
 * Makes the current connections half-open from their next message on, without a notice; new ones
 * are not affected.
 */
export const halfOpen = Effect.flatMap(Wire, (wire) => {
  const last = wire.accepted
  return wire.when(({ connection }) => connection <= last, "freeze", Number.POSITIVE_INFINITY)
})
