/**
 * The ends of transactions of a unit that are in progress, from the `beforeCommit` hooks, which may
 * still veto, to the last commit.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberId from "effect/FiberId"
import { TransactionBusy } from "../../DatabaseError.js"
import type { Transaction } from "../transaction/transaction.js"

/** An end of some transactions. */
export interface End {
  readonly transactions: () => ReadonlyArray<Transaction>
  readonly over: Deferred.Deferred<void>
}

/** Set of the ends of one unit that are in progress. */
export class EndsUnderWay {
  private readonly all = new Set<End>()

  get size(): number {
    return this.all.size
  }

  /** Adds an end. */
  begin(transactions: End["transactions"]): End {
    const end: End = { transactions, over: Deferred.unsafeMake<void>(FiberId.none) }
    this.all.add(end)
    return end
  }

  /** Removes an end that is over, and resumes its waiters. */
  over(end: End): void {
    this.all.delete(end)
    Deferred.unsafeDone(end.over, Exit.void)
  }

  /** Checks whether one of these transactions is in an end in progress. */
  includes(transactions: ReadonlyArray<Transaction>): boolean {
    return [...this.all].some((end) => end.transactions().some((one) => transactions.includes(one)))
  }

  /**
   * Completes when all ends in progress are over, or fails with `TransactionBusy` after
   * `busyTimeout`, like a statement that waits for a nested transaction.
   */
  get allOver(): Effect.Effect<void, TransactionBusy> {
    return Effect.suspend(() => {
      const all = [...this.all]
      const over = Effect.forEach(all, ({ over }) => Deferred.await(over), { discard: true })
      const [first] = all.flatMap(({ transactions }) => transactions())
      if (first === undefined) return over
      const { location, provider } = first.level.connectionHolder
      return Effect.timeoutFail(over, {
        duration: provider.busyTimeout,
        onTimeout: () => new TransactionBusy({ ...location, waitedMillis: provider.busyTimeout })
      })
    })
  }
}
