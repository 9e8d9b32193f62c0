/**
 * The order of commits. If the first COMMIT fails, nothing is stored yet. So the COMMITs that are
 * most likely to fail come first.
 */
import { isSavepoint } from "../transaction/completion.js"
import type { Transaction } from "../transaction/transaction.js"
import type { Order } from "./commitOptions.js"

/**
 * Returns the transactions in the order in which they are committed. Savepoints are last, because
 * they can still be undone after a failed COMMIT.
 */
export const inCommitOrder = (transactions: ReadonlyArray<Transaction>, order: Order): ReadonlyArray<Transaction> => {
  if (transactions.length < 2) return transactions
  const ordered = byRank(transactions, order)
  return ordered.some(isSavepoint)
    ? [...ordered].sort((a, b) => Number(isSavepoint(a)) - Number(isSavepoint(b)))
    : ordered
}

const byRank = (transactions: ReadonlyArray<Transaction>, order: Order): ReadonlyArray<Transaction> => {
  if (order === "touched") return transactions
  const rank =
    order === "safest"
      ? riskRank
      : ({ origin }: Transaction) => {
          const index = order.indexOf(origin.database)
          return index < 0 ? order.length : index
        }
  return [...transactions].sort((a, b) => rank(a) - rank(b))
}

/**
 * Returns a rank by the risk of a failed COMMIT, 0 for the highest: serializable transactions are
 * refused most often, and read-only ones have nothing to lose.
 */
const riskRank = ({ options, readOnly }: Transaction): number =>
  readOnly ? 2 : options.isolation === "serializable" ? 0 : 1
