/**
 * The check of the numbers of connections of a pool.
 */
import type { GivenOptions } from "./optionNames.js"
import { count, Invalid, oneOf } from "./optionParsers.js"

/** Checks the strategy and the numbers of connections of a pool, and fills in the defaults. */
export const connectionCounts = (options: GivenOptions) => {
  const strategy = oneOf("strategy", options.strategy, "pooled", "none", "single", "assertSingle")
  const isOne = strategy === "single" || strategy === "assertSingle"
  const maxConnections = count("maxConnections", options.maxConnections, isOne ? 1 : 10, 1)
  const minConnections = count("minConnections", options.minConnections, 0, 0)
  const maxOverflow = count("maxOverflow", options.maxOverflow, 0, 0)
  if (isOne && maxConnections + maxOverflow > 1) {
    throw new Invalid("maxConnections", String(maxConnections + maxOverflow), `1 with the strategy ${strategy}`)
  }
  const maxIdle = strategy === "none" ? 0 : maxConnections
  if (minConnections > maxIdle) throw new Invalid("minConnections", String(minConnections), `at most ${maxIdle} here`)
  return { strategy, maxConnections, minConnections, maxOverflow }
}

/** Checks the limit of connections for reads on the primary, and fills in the default. */
export const primaryReads = ({ maxPrimaryReads }: GivenOptions, most: number): number => {
  const given = count("maxPrimaryReads", maxPrimaryReads, most, 1)
  if (given > most) throw new Invalid("maxPrimaryReads", String(given), `at most maxConnections, which is ${most}`)
  return given
}
