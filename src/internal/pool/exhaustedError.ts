/**
 * What somebody is told who gets no connection.
 */

import { PoolExhausted } from "../../DatabaseError.js"
import * as clock from "../concurrency/clock.js"
import type { Checkout } from "./leakDetection.js"

type Fields = ConstructorParameters<typeof PoolExhausted>[0]

/** What is always known. */
type Known = Pick<Fields, "database" | "server" | "reason" | "waited" | "total" | "active" | "idle" | "waiting">

/** `oldest` is who holds a connection for longest. */
export const exhaustedError = (
  known: Known,
  connecting: Fields["connecting"],
  lastConnectFailure: string | undefined,
  oldest: Checkout | undefined
): PoolExhausted => {
  // under overload these are many, and the stack of a callback tells nobody anything
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = 0
  const error = new PoolExhausted(
    {
      ...known,
      ...(connecting === undefined ? {} : { connecting }),
      ...(lastConnectFailure === undefined ? {} : { lastConnectFailure }),
      ...(oldest === undefined
        ? {}
        : {
            oldestLoan: { held: clock.now() - oldest.since, fiber: oldest.who?.fiber, place: oldest.who?.place }
          })
    },
    // the values are our own
    { disableValidation: true }
  )
  Error.stackTraceLimit = stackTraceLimit
  return error
}
