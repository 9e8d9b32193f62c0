/**
 * The open transactions of a database that hold a connection, as `Db.status` reports them.
 */

import type { OpenTransaction } from "../../Topology.js"
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import type { ErrorLocation } from "../connection/statementFailure.js"
import type { TransactionSpan } from "../observability/transactionSpan.js"
import type { Caller } from "../pool/caller.js"
import type { ConnectionSource } from "../topology/connectionSource.js"
import type { CommitOutcomes } from "../transaction/commitOutcomes.js"
import type { ConnectionProvider } from "../transaction/connectionHolder.js"

/** Registry of the transactions that hold a connection. Adding and removing take constant time. */
export class OpenTransactions {
  /** The connection providers of these transactions, in no order. */
  private readonly providers: Array<PoolConnectionProvider> = []

  constructor(
    readonly database: string,
    readonly acquireTimeout: number
  ) {}

  /** Returns the transactions, the oldest first. */
  list(): ReadonlyArray<OpenTransaction> {
    const now = clock.now()
    return this.providers
      .map(({ label, location, since }) => ({ server: location.server, label, ageMillis: now - since }))
      .sort((a, b) => b.ageMillis - a.ageMillis)
  }

  /** Adds a transaction after its checkout. */
  add(provider: PoolConnectionProvider): void {
    provider.since = clock.now()
    provider.index = this.providers.push(provider) - 1
  }

  /**
   * Removes a transaction that returns its connection. The last transaction of the list moves to
   * the index that becomes free.
   */
  remove(provider: PoolConnectionProvider): void {
    const last = this.providers.pop()
    if (last === undefined || last === provider) return
    this.providers[provider.index] = last
    last.index = provider.index
  }
}

/** Provider of a transaction's connection from a pool. */
export class PoolConnectionProvider implements ConnectionProvider {
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
    private readonly caller: Caller | undefined,
    private readonly span: TransactionSpan | undefined,
    readonly outcomes: CommitOutcomes | undefined
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
