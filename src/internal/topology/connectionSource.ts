/**
 * The source of the connection of a read or a transaction: a pool, or a selection among the pools
 * of several servers.
 */

import type { Connection } from "../connection/connection.js"
import type { SourceFailure } from "../connection/failure.js"
import type { Caller } from "../pool/caller.js"
import type { PoolDependencies } from "../pool/poolDependencies.js"

/** Callback that receives a connection or a failure, once, unless the checkout was cancelled. */
export type OnCheckout = (failure: SourceFailure | undefined, connection: Connection | undefined) => void

/** Source of connections, with the checkout and checkin of a pool. */
export interface ConnectionSource {
  /** The options of the pool that has assigned the connection, after a checkout. */
  readonly options: PoolDependencies
  readonly checkout: (
    deadline: number,
    holding: ReadonlyArray<Connection>,
    callback: OnCheckout,
    caller?: Caller
  ) => () => void
  readonly checkin: (connection: Connection) => void
}
