/**
 * The check that the server of a connection for writes takes writes.
 */
import type { CloseReason } from "../../Observation.js"
import { isUnproved } from "../../SqlState.js"
import { type Exchange, ExchangeRequest, type Failure, type OnExchange } from "../protocol/exchange.js"
import * as messages from "../protocol/frontendMessages.js"
import { isWriteRefused } from "./exchangeFailure.js"

const takesNoWrites = "its server takes no writes: it is a standby, or was made read-only"

/** The query that fails if the server takes no writes. */
const roleProof = messages.constantStep(
  `SELECT CASE WHEN pg_catalog.pg_is_in_recovery() OR pg_catalog.current_setting('default_transaction_read_only')
  OPERATOR(pg_catalog.=) 'on' THEN '${takesNoWrites}' ELSE '1' END::pg_catalog.int4`
)

/** Members of a connection that the check uses. */
export interface CheckedConnection {
  readonly broken: CloseReason | undefined
  readonly isPooled: boolean
  readonly takesNoWrites: boolean
  readonly markBroken: (reason: CloseReason) => void
}

/**
 * Count of the writes that were refused right after a proof of the role, on the connections of one
 * pool. A failed proof resets the count. The count is kept for the pool, because a transaction
 * whose first write was refused runs again on another connection.
 */
export interface RefusedWrites {
  count: number
}

/** Initial state of the check. */
export interface RoleSettings {
  /** True if the connection is for writes, so that its server must take writes. */
  readonly isForWrites: boolean
  /** True if the role of the server is unknown after the login. */
  readonly isDoubted: boolean
  readonly refused: RefusedWrites
}

/** Check of the role of one connection's server. */
export class RoleCheck {
  readonly isForWrites: boolean
  /**
   * True if the server must still prove that it takes writes. PostgreSQL 13 does not report its
   * role at login, and a pooler may report the role of any of its servers.
   */
  isDoubted: boolean
  /** True if the last exchange has proved that the server takes writes. */
  private isProved = false
  private readonly refused: RefusedWrites

  constructor(
    private readonly connection: CheckedConnection,
    { isDoubted, isForWrites, refused }: RoleSettings
  ) {
    this.refused = refused
    this.isForWrites = isForWrites
    this.isDoubted = isDoubted
  }

  /**
   * Checks if a failure means only that the server takes no writes, so that nothing has run. The
   * failure must be that of an autocommit statement or of the first statement of a transaction.
   * Behind a pooler the result is likely but not certain, and a proof follows before the next
   * exchange.
   */
  explains(failure: Failure): boolean {
    return this.isForWrites && (this.connection.broken === "wrongRole" || (this.isDoubted && isWriteRefused(failure)))
  }

  /**
   * Builds the request of a proof. The proof is an exchange of its own: after a BEGIN it would be
   * the first query of the transaction, and an isolation level must be set before the first query.
   * `proceed` is called after a successful proof, `callback` after a failed or interrupted one.
   */
  makeProof(callback: OnExchange, proceed: () => void): ExchangeRequest {
    const request = new ExchangeRequest(
      () => roleProof.simple,
      (failure, exchange) => {
        if (failure === undefined && !exchange.isStopped) return proceed()
        // the statement was not sent
        exchange.acknowledged = 0
        callback(failure?._tag === "lost" ? { ...failure, sent: false, acknowledged: 0 } : failure, exchange)
      }
    )
    request.isDescribed = false
    request.provesRole = true
    request.isMaintenance = true
    return request
  }

  /**
   * Records the meaning of an exchange for the role of the server, and returns the failure of the
   * exchange. Marks the connection as broken if its server takes no writes. A failed proof counts
   * as a loss before anything was sent.
   */
  record({ request: { provesRole } }: Exchange, failure: Failure | undefined): Failure | undefined {
    if (!this.isForWrites) return failure
    const { connection } = this
    const wasProved = this.isProved
    this.isProved = provesRole && failure === undefined
    if (this.isProved) this.isDoubted = false
    if (failure?._tag !== "refused") return failure
    if (provesRole && isUnproved(failure.error.code ?? "")) {
      this.refused.count = 0
      connection.markBroken("wrongRole")
      return { _tag: "lost", error: new Error(takesNoWrites), sent: false, acknowledged: 0 }
    }
    if (isWriteRefused(failure)) {
      if (connection.takesNoWrites && !connection.isPooled) connection.markBroken("wrongRole")
      // A refusal right after a proof may have two reasons: the pooler has sent the proof to
      // another server, or the program has made its own transaction read-only. After two such
      // refusals the program counts as the reason.
      else if (connection.isPooled && (!wasProved || this.refused.count < 2)) {
        this.isDoubted = true
        if (wasProved) this.refused.count++
      }
    }
    return failure
  }
}
