/** The `PoolExhausted` failure. */

import * as clock from "../concurrency/clock.js"
import type { PlainFailure } from "../connection/failure.js"
import type { Checkout } from "./leakDetection.js"

type Exhausted = PlainFailure<"PoolExhausted">

/** Fields that are always present. */
type PoolState = Pick<
  Exhausted,
  "database" | "server" | "reason" | "waitedMillis" | "total" | "active" | "idle" | "waiting"
>

/**
 * Builds the failure. `oldest` is the longest checkout; with the reason `single`, the checkout in
 * progress or else the first waiter.
 */
export const exhaustedFailure = (
  state: PoolState,
  connecting: Exhausted["connecting"],
  lastConnectFailure: string | undefined,
  oldest: Checkout | undefined
): Exhausted => ({
  _tag: "PoolExhausted",
  ...state,
  ...(connecting === undefined ? {} : { connecting }),
  ...(lastConnectFailure === undefined ? {} : { lastConnectFailure }),
  ...(oldest === undefined
    ? {}
    : {
        longestCheckout: {
          heldMillis: clock.now() - oldest.since,
          fiber: oldest.caller?.fiber,
          location: oldest.caller?.location
        }
      })
})
