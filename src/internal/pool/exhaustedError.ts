/** The `PoolExhausted` error, built without a stack. */

import { PoolExhausted } from "../../DatabaseError.js"
import * as clock from "../concurrency/clock.js"
import type { Checkout } from "./leakDetection.js"

type Fields = ConstructorParameters<typeof PoolExhausted>[0]

/** The fields that are always present. */
type PoolState = Pick<
  Fields,
  "database" | "server" | "reason" | "waitedMillis" | "total" | "active" | "idle" | "waiting"
>

/** Builds the error. `oldest` is the checkout that has been held for longest. */
export const exhaustedError = (
  state: PoolState,
  connecting: Fields["connecting"],
  lastConnectFailure: string | undefined,
  oldest: Checkout | undefined
): PoolExhausted => {
  // load shedding makes many of these, and the stack of a callback has no frame of the caller
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = 0
  const error = new PoolExhausted(
    {
      ...state,
      ...(connecting === undefined ? {} : { connecting }),
      ...(lastConnectFailure === undefined ? {} : { lastConnectFailure }),
      ...(oldest === undefined
        ? {}
        : {
            longestCheckout: {
              heldMillis: clock.now() - oldest.since,
              fiber: oldest.borrower?.fiber,
              location: oldest.borrower?.location
            }
          })
    },
    // the values come from the pool itself
    { disableValidation: true }
  )
  Error.stackTraceLimit = stackTraceLimit
  return error
}
