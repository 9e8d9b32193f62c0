/**
 * Where a connection comes from: a pool, or a search among several.
 */

import type { NoReplicaCaughtUp, TokenFromLostTimeline } from "../../DatabaseError.js"
import type { CheckoutError } from "../../Pool.js"
import type { Connection } from "../connection/connection.js"
import type { Borrower } from "../pool/borrower.js"
import type { PoolOptions } from "../pool/pool.js"

/** Why there is no connection. Nothing of what it was for has been sent. */
export type SourceError = CheckoutError | NoReplicaCaughtUp | TokenFromLostTimeline

/** Called once with a connection or a failure, unless it was given up. */
export type OnCheckout = (error: SourceError | undefined, connection: Connection | undefined) => void

/** As a pool gives its connections. */
export interface ConnectionSource {
  /** Of the server that the connection is of, when there is one. */
  readonly options: PoolOptions
  readonly checkout: (
    deadline: number,
    holding: ReadonlyArray<Connection>,
    settle: OnCheckout,
    who?: Borrower | undefined
  ) => () => void
  readonly checkin: (connection: Connection) => void
}
