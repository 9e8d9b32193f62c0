/** The promises of a pool, for each way to open one. */
import * as Effect from "effect/Effect"
import { describe } from "vitest"
import { behindBouncer, hasBouncer, makeBouncer } from "./fixtures/bouncer.js"
import type { Route } from "./suites/pooling/way.js"
import { pooling } from "./suites/pooling.js"

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

for (const route of routes) {
  for (const strategy of ["pooled", "single"] as const) {
    for (const order of ["lifo", "fifo"] as const) {
      describe(`${strategy}, ${order}, ${route.name}`, () => pooling({ order, strategy, route }))
    }
  }
}
