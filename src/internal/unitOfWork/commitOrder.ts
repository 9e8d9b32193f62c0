/**
 * The order of commits. The first COMMIT may fail without harm, so those that are likely to fail
 * come first.
 */
import { isSavepoint } from "../transaction/completion.js"
import type { Transaction } from "../transaction/transaction.js"
import type { Order } from "./unitOfWork.js"

/**
 * Returns the transactions in the order of their ends: savepoints come last, because they can still
 * be undone when a COMMIT has failed.
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
 * Returns a rank by risk: a server may refuse serializable work, hardly any other, and a read-only
 * transaction loses nothing.
 */
const riskRank = ({ options, readOnly }: Transaction): number =>
  readOnly ? 2 : options.isolation === "serializable" ? 0 : 1
