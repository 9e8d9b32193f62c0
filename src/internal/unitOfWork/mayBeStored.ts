import type { Transaction } from "../transaction/transaction.js"

/** Checks whether the work of a transaction is stored, or may be. */
export const mayBeStored = (transaction: Transaction): boolean => {
  const { level, stores } = transaction
  return level.holder.mayHaveStored || (stores && (level.state === "committed" || level.state === "unknown"))
}
