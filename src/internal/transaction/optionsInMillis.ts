/**
 * The options of a transaction as the core takes them: with timeouts in ms.
 */
import * as Duration from "effect/Duration"
import type { Options } from "../../Transaction.js"
import type { Timeouts } from "../sql/timeouts.js"

/** Options of a transaction, with timeouts in ms. */
export type PlainOptions = Omit<Options, "statementTimeout" | "lockTimeout"> &
  Pick<Timeouts, "statementTimeout" | "lockTimeout">

/** Returns options with their timeouts in ms; without timeouts they are returned as they are. */
export const inMillis = (options: Options): PlainOptions => {
  const { lockTimeout, statementTimeout } = options
  // the casts: the timeouts are not given, or replaced
  if (lockTimeout === undefined && statementTimeout === undefined) return options as PlainOptions
  return {
    ...(options as PlainOptions),
    ...(lockTimeout === undefined ? {} : { lockTimeout: Duration.toMillis(lockTimeout) }),
    ...(statementTimeout === undefined ? {} : { statementTimeout: Duration.toMillis(statementTimeout) })
  }
}
