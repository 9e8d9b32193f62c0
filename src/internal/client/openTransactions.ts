/**
 * The open transactions of a database that hold a connection, as `Db.status` reports them.
 */

import type { OpenTransaction } from "../../Topology.js"
import * as clock from "../concurrency/clock.js"
import type { ErrorLocation } from "../connection/statementFailure.js"

/** Transaction as the registry keeps it. */
interface Entry {
  readonly label: string | undefined
  readonly location: ErrorLocation
  /** The time of the checkout. */
  since: number
  /** The index in the list of open transactions. */
  index: number
}

/** Registry of the transactions that hold a connection. Adding and removing take constant time. */
export class OpenTransactions {
  /** The transactions, in no order. */
  private readonly entries: Array<Entry> = []

  constructor(
    readonly database: string,
    readonly acquireTimeout: number
  ) {}

  /** Returns the transactions, the oldest first. */
  list(): ReadonlyArray<OpenTransaction> {
    const now = clock.now()
    return this.entries
      .map(({ label, location, since }) => ({ server: location.server, label, ageMillis: now - since }))
      .sort((a, b) => b.ageMillis - a.ageMillis)
  }

  /** Adds a transaction after its checkout. */
  add(entry: Entry): void {
    entry.since = clock.now()
    entry.index = this.entries.push(entry) - 1
  }

  /**
   * Removes a transaction that returns its connection. The last transaction of the list moves to
   * the index that becomes free.
   */
  remove(entry: Entry): void {
    const last = this.entries.pop()
    if (last === undefined || last === entry) return
    this.entries[entry.index] = last
    last.index = entry.index
  }
}
