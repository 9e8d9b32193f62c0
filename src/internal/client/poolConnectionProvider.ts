/**
 * The connection of a transaction from a pool. While the transaction holds it, the transaction is
 * among the open ones.
 */

import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import type { ErrorLocation } from "../connection/statementFailure.js"
import type { TransactionSpan } from "../observability/transactionSpan.js"
import type { Caller } from "../pool/caller.js"
import type { ConnectionSource } from "../topology/connectionSource.js"
import type { ConnectionProvider } from "../transaction/connectionHolder.js"
import type { CommitMarkers } from "../transaction/outcomesByMarker.js"
import type { CommitOutcomes } from "../transaction/outcomesByStatus.js"
import type { OpenTransactions } from "./openTransactions.js"

/** Provider of a transaction's connection from a pool. */
export class PoolConnectionProvider implements ConnectionProvider {
  // the registry of the open transactions sets both
  since = 0
  index = -1
  private source: ConnectionSource | undefined
  private deadline: number | undefined

  constructor(
    private readonly open: OpenTransactions,
    private readonly pick: () => ConnectionSource,
    private readonly held: () => ReadonlyArray<Connection>,
    readonly label: string | undefined,
    private readonly caller: Caller | undefined,
    private readonly span: TransactionSpan | undefined,
    readonly outcomes: CommitOutcomes | undefined,
    readonly markers: CommitMarkers | undefined
  ) {}

  get busyTimeout(): number {
    return this.open.acquireTimeout
  }

  get location(): ErrorLocation {
    return { database: this.open.database, server: this.source?.options.server.name ?? "" }
  }

  checkout(settle: Parameters<ConnectionProvider["checkout"]>[0]): () => void {
    const source = this.pick()
    this.source = source
    // all attempts share one deadline
    this.deadline ??= clock.now() + this.open.acquireTimeout
    const since = this.span === undefined ? 0 : clock.now()
    return source.checkout(
      this.deadline,
      this.held(),
      (failure, connection) => {
        if (connection !== undefined) {
          this.open.add(this)
          this.span?.begins(connection.server, clock.now() - since)
        }
        settle(failure, connection)
      },
      this.caller
    )
  }

  checkin(connection: Connection): void {
    this.deadline = undefined
    this.open.remove(this)
    this.source?.checkin(connection)
  }
}
