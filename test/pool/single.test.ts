import { callers, idle, pooling } from "../support/suites/pooling.js"

// the order of idle connections does not matter for a single one
pooling("single", "lifo", (way) => {
  callers(way)
  idle(way)
})
