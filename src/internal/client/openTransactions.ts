/**
 * The open transactions of a database that hold a connection, as `Db.status` reports them.
 */

import type { OpenTransaction } from "../../Topology.js"
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import type { ErrorLocation } from "../connection/statementFailure.js"
import type { TransactionSpan } from "../observability/transactionSpan.js"
import type { Borrower } from "../pool/borrower.js"
import type { ConnectionSource } from "../topology/connectionSource.js"
import type { ConnectionProvider } from "../transaction/connectionHolder.js"

/** Registry of the transactions that hold a connection. Adding and removing take constant time. */
export class OpenTransactions {
  /** The connection sources of these transactions, in no order. */
  private readonly lenders: Array<PoolLender> = []

  constructor(
    readonly database: string,
    readonly acquireTimeout: number
  ) {}

  /** Returns the transactions, the oldest first. */
  list(): ReadonlyArray<OpenTransaction> {
    const now = clock.now()
    return this.lenders
      .map(({ label, location, since }) => ({ server: location.server, label, ageMillis: now - since }))
      .sort((a, b) => b.ageMillis - a.ageMillis)
  }

  /** Adds a transaction that has got its connection. */
  add(lender: PoolLender): void {
    lender.since = clock.now()
    lender.index = this.lenders.push(lender) - 1
  }

  /**
   * Removes a transaction that returns its connection. The last one of the list takes its index.
   */
  remove(lender: PoolLender): void {
    const last = this.lenders.pop()
    if (last === undefined || last === lender) return
    this.lenders[lender.index] = last
    last.index = lender.index
  }
}

/** Source of a transaction's connection: a server's pool. */
export class PoolLender implements ConnectionProvider {
  /** The time of the checkout. */
  since = 0
  /** The index in the list of open transactions. */
  index = -1
  private source: ConnectionSource | undefined
  private deadline: number | undefined

  constructor(
    private readonly open: OpenTransactions,
    private readonly pick: () => ConnectionSource,
    private readonly held: () => ReadonlyArray<Connection>,
    readonly label: string | undefined,
    private readonly borrower: Borrower | undefined,
    private readonly span: TransactionSpan | undefined
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
      this.borrower
    )
  }

  checkin(connection: Connection): void {
    this.deadline = undefined
    this.open.remove(this)
    this.source?.checkin(connection)
  }
}
