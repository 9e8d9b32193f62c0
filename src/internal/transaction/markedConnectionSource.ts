/**
 * The connections of transactions whose COMMITs have markers: the table is checked before the first
 * transaction, and old markers are deleted between two transactions.
 */
import { connectReason } from "../../SqlState.js"
import type { Connection } from "../connection/connection.js"
import type { PlainFailure } from "../connection/failure.js"
import { codeOf, type ErrorLocation } from "../connection/statementFailure.js"
import type { OutcomeTableState } from "../outcome/outcomeTable.js"
import type { Caller } from "../pool/caller.js"
import type { PoolDependencies } from "../pool/poolDependencies.js"
import type { ConnectionSource, OnCheckout } from "../topology/connectionSource.js"
import type { CommitMarkers } from "./outcomesByMarker.js"

/** Returns the failure of a database whose table of markers cannot be used, if there is one. */
export const outcomeTableFailure = (
  location: ErrorLocation,
  state: OutcomeTableState
): PlainFailure<"ConnectFailed"> | undefined => {
  if (state === "late") {
    const cause = new Error(
      "the table effect_db.outcome was not checked in time: another session may hold a lock on it"
    )
    return { _tag: "ConnectFailed", ...location, reason: "unresponsive", cause }
  }
  if (typeof state === "string") return undefined
  if ("fault" in state) return { _tag: "ConnectFailed", ...location, reason: "outcomeTable", cause: state.fault }
  const { error } = state.failure
  return {
    _tag: "ConnectFailed",
    ...location,
    reason: state.failure._tag === "lost" ? connectReason(codeOf(error), error.message) : "outcomeTable",
    cause: error
  }
}

/** Source of the connections of a writer's transactions. */
export class CommitMarkerSource implements ConnectionSource {
  constructor(
    private readonly source: ConnectionSource,
    private readonly markers: CommitMarkers
  ) {}

  get options(): PoolDependencies {
    return this.source.options
  }

  checkout(deadline: number, holding: ReadonlyArray<Connection>, callback: OnCheckout, caller?: Caller): () => void {
    const { markers, source } = this
    let preparing: Connection | undefined
    let isCancelled = false
    const cancel = source.checkout(
      deadline,
      holding,
      (failure, connection) => {
        if (connection === undefined || markers.isReady) return callback(failure, connection)
        preparing = connection
        markers.prepare(connection, deadline, (state) => {
          preparing = undefined
          const { options } = source
          const refusal = outcomeTableFailure({ database: options.database, server: options.server.name }, state)
          if (refusal === undefined && !isCancelled) return callback(undefined, connection)
          source.checkin(connection)
          if (!isCancelled) callback(refusal, undefined)
        })
      },
      caller
    )
    return () => {
      isCancelled = true
      if (preparing === undefined) cancel()
      else preparing.abort("cancelled")
    }
  }

  checkin(connection: Connection): void {
    this.markers.sweep(connection, () => this.source.checkin(connection))
  }
}
