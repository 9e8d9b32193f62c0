/**
 * The promises of a pool, whichever way it is opened: one test for each sentence on pools in the
 * promises of SQLAlchemy and HikariCP. A promise without a meaning for a way is not among its
 * tests.
 *
 * They are several suites, so that several files can run them side by side. An order selects among
 * idle connections: tests that do not depend on it run with one of the two.
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

/** Runs a suite on every route to a server, or on those only that lead to sessions. */
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

/** Adds the tests of the checkout of idle connections. */
export const idle = (way: Way): void => {
  life(way)
  validation(way)
  // the rest examines sessions
  if (!way.route.hasSessions) return
  invalidation(way)
  use(way)
}

/** Adds the tests of the number of connections and of the wait for them. */
export const callers = (way: Way): void => {
  limits(way)
  waiting(way)
  if (way.strategy === "pooled") growth(way)
  if (!way.route.hasSessions) return
  leaks(way)
  events(way)
  if (way.strategy === "pooled") strategies(way)
}

/** Adds the tests of the work on connections, at the end, too. It is for sessions. */
export const upkeep = (way: Way): void => {
  sessions(way)
  closing(way)
}
