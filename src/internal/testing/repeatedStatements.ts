/**
 * The statements of a recording that were repeated: N+1 queries, if they were repeated often.
 */
import type { RepeatedStatement } from "../../Recording.js"
import type { StatementCall } from "./statementCall.js"

/**
 * Returns the number of calls of which each has begun after the end of the one before. Calls that
 * overlap run at the same time, and count as one.
 */
const sequential = (calls: ReadonlyArray<StatementCall>): number => {
  let count = 0
  let end = Number.NEGATIVE_INFINITY
  for (const { begunAt, endedAt = Number.POSITIVE_INFINITY } of calls) {
    if (begunAt > end) {
      count++
      end = endedAt
    } else end = Math.min(end, endedAt)
  }
  return count
}

/**
 * Returns file, line and column of a call. The name of the function is left out, because V8 derives
 * it from the way in which the function was called.
 */
const placeOf = ({ location }: StatementCall): string | undefined =>
  location === undefined ? undefined : (/\(([^()]*)\)$/.exec(location)?.[1] ?? location)

/**
 * Returns the statements with the same handle, text and location that ran one after the other; those
 * with the most runs first.
 */
export const repeatedIn = (calls: ReadonlyArray<StatementCall>): ReadonlyArray<RepeatedStatement> => {
  const groups = new Map<string, Array<StatementCall>>()
  for (const call of calls) {
    const key = JSON.stringify([call.role, placeOf(call), call.text])
    const group = groups.get(key)
    if (group === undefined) groups.set(key, [call])
    else group.push(call)
  }
  const all: Array<RepeatedStatement> = []
  for (const [first, ...others] of groups.values()) {
    if (first === undefined) continue
    const { location, text } = first
    all.push({ text, location, times: sequential([first, ...others]) })
  }
  return all.filter(({ times }) => times > 1).sort((a, b) => b.times - a.times)
}
