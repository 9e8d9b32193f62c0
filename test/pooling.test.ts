/** The promises of a pool, for each way to open one. */
import * as Effect from "effect/Effect"
import { describe } from "vitest"
import type { Route } from "./suites/pooling/way.js"
import { pooling } from "./suites/pooling.js"

// another way to reach a server, such as a pooler in between, is a row here
const routes: ReadonlyArray<Route> = [{ name: "directly", hasSessions: true, options: {}, via: Effect.succeed }]

for (const route of routes) {
  for (const strategy of ["pooled", "single"] as const) {
    for (const order of ["lifo", "fifo"] as const) {
      describe(`${strategy}, ${order}, ${route.name}`, () => pooling({ order, strategy, route }))
    }
  }
}
