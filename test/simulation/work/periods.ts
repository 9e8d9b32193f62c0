/**
 * The busy times of an episode. Between them little happens, as in most hours of a program, so that
 * connections become idle and old, and monitors alone see the servers.
 */
import type { Random } from "../loop/random.js"

/** Period of the virtual time, in ms. */
export interface Period {
  readonly from: number
  readonly to: number
}

/** Plans the busy times. */
export const planPeriods = (random: Random, millis: number): ReadonlyArray<Period> => {
  const all: Array<Period> = []
  let from = random.exponential(5000)
  while (from < millis) {
    const to = Math.min(millis, from + random.between(10_000, 90_000))
    all.push({ from, to })
    from = to + random.exponential(1_200_000)
  }
  return all
}

/** Returns the time until the next busy time begins, in ms. */
export const untilNext = (busy: ReadonlyArray<Period>, now: number): number => {
  const next = busy.find(({ from }) => from > now)
  return next === undefined ? Number.POSITIVE_INFINITY : next.from - now
}
