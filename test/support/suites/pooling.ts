/**
 * The guarantees of a pool, for each way to open it: one test for each guarantee that SQLAlchemy and
 * HikariCP document. A guarantee that has no meaning for a way has no test there.
 *
 * There are several suites, so that several files can run them in parallel. The order, lifo or
 * fifo, selects among idle connections; suites that do not depend on it run with one order.
 */
import * as Effect from "effect/Effect"
import { describe } from "vitest"
import { behindBouncer, hasBouncer, makeBouncer } from "../bouncer.js"
import { closing } from "./pooling/closing.js"
import { events } from "./pooling/events.js"
import { growth } from "./pooling/growth.js"
import { invalidation } from "./pooling/invalidation.js"
import { leaks } from "./pooling/leaks.js"
import { life } from "./pooling/life.js"
import { limits } from "./pooling/limits.js"
import { sessions } from "./pooling/sessions.js"
import { strategies } from "./pooling/strategies.js"
import { use } from "./pooling/use.js"
import { validation } from "./pooling/validation.js"
import { waiting } from "./pooling/waiting.js"
import type { Route, Way } from "./pooling/way.js"

const routes: ReadonlyArray<Route> = [
  { name: "directly", hasSessions: true, options: {}, via: Effect.succeed },
  ...(hasBouncer
    ? [
        {
          name: behindBouncer,
          hasSessions: false,
          options: { mode: "transactionPooler" },
          via: (url) => Effect.map(makeBouncer(url, { default_pool_size: 50 }), (bouncer) => bouncer.url)
        } satisfies Route
      ]
    : [])
]

/** Runs a suite on each route to a server, or only on the routes with sessions. */
export const pooling = (
  strategy: Way["strategy"],
  order: Way["order"],
  suite: (way: Way) => void,
  { onSessions = false }: { readonly onSessions?: boolean } = {}
): void => {
  for (const route of routes) {
    if (onSessions && !route.hasSessions) continue
    describe(`${strategy}, ${order}, ${route.name}`, () => suite({ order, strategy, route }))
  }
}

/** Adds the tests of connections, idle and in use: lifetime, validation and invalidation. */
export const idle = (way: Way): void => {
  life(way)
  validation(way)
  // the others depend on the identity of sessions
  if (!way.route.hasSessions) return
  invalidation(way)
  use(way)
}

/** Adds the tests of callers: the number of connections, and the wait for one. */
export const callers = (way: Way): void => {
  limits(way)
  waiting(way)
  if (way.strategy === "pooled") growth(way)
  if (!way.route.hasSessions) return
  leaks(way)
  events(way)
  if (way.strategy === "pooled") strategies(way)
}

/**
 * Adds the tests of `onConnect`, `onCheckout` and `resetOnReturn`, and of the close of a pool. These
 * tests need a route with sessions.
 */
export const upkeep = (way: Way): void => {
  sessions(way)
  closing(way)
}
