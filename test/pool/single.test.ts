import { callers, idle, pooling } from "../support/suites/pooling.js"

// one connection is in any order
pooling("single", "lifo", (way) => {
  callers(way)
  idle(way)
})
