/** The caller of a checkout. */

import type { Connection } from "../connection/connection.js"
import type { CheckoutFailure } from "../connection/failure.js"

/** A callback that receives a connection or a failure, once, unless the checkout was cancelled. */
export type OnCheckout = (failure: CheckoutFailure | undefined, connection: Connection | undefined) => void

/** Caller of a checkout, as reports of leaks and observations show it. */
export interface Caller {
  /** The name of its fiber. */
  readonly fiber: string
  /** Its location in the program, if it is known. */
  readonly location: string | undefined
  /** The label of the work that the connection is for. */
  readonly label: string | undefined
}
