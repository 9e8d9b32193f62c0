/**
 * The end of a transaction in two phases, as effects.
 */
import * as Effect from "effect/Effect"
import { ConfigInvalid, type TransactionError } from "../../DatabaseError.js"
import type { DatabaseIdentity, Decision } from "../consistency/preparedTransaction.js"
import { toDatabaseError } from "../edge/databaseError.js"
import { observe } from "./completion.js"
import { endPreparedLevel, identifyLevel, prepareLevel } from "./levelPrepare.js"
import type { PreparedTransactions } from "./preparedTransactions.js"
import type { Transaction } from "./transaction.js"

/** Transaction of a database whose transactions may end in two phases. */
export interface PreparableTransaction {
  readonly transaction: Transaction
  readonly prepared: PreparedTransactions
}

/** Returns the transaction if it may end in two phases. */
export const preparable = (transaction: Transaction): PreparableTransaction | undefined => {
  const { prepared } = transaction.origin
  return prepared === undefined ? undefined : { transaction, prepared }
}

/** Error of a database whose server takes no prepared transactions. */
export const refusesPrepare = (database: string, given: string): ConfigInvalid =>
  new ConfigInvalid({
    database,
    setting: "twoPhase",
    given,
    expected: "max_prepared_transactions above 0 on the server, or no twoPhase"
  })

/**
 * Returns the identity of the database of a transaction. Fails if the transaction cannot be kept, or if
 * the server takes no prepared transactions.
 */
export const identify = ({
  prepared,
  transaction: { level, origin }
}: PreparableTransaction): Effect.Effect<DatabaseIdentity, TransactionError> =>
  Effect.async((resume) => {
    const giveUp = identifyLevel(level, prepared, (result) => {
      if ("identity" in result) resume(Effect.succeed(result.identity))
      else if ("failure" in result) resume(Effect.fail(toDatabaseError(result.failure)))
      else resume(Effect.fail(refusesPrepare(origin.database, result.error.message)))
    })
    return Effect.sync(giveUp)
  })

/** Prepares a transaction, or undoes it and fails. */
export const prepare = (transaction: Transaction, gid: string): Effect.Effect<void, TransactionError> =>
  Effect.async((resume) => {
    transaction.span?.ends("commit")
    const giveUp = prepareLevel(transaction.level, gid, (failure) => {
      const error = failure === undefined ? undefined : toDatabaseError(failure)
      if (error !== undefined) observe(transaction, error)
      resume(error === undefined ? Effect.void : Effect.fail(error))
    })
    return Effect.sync(giveUp)
  })

/** Ends a prepared transaction by a decision, for up to `timeout` ms; later the recovery ends it. */
export const endPrepared = (
  { prepared, transaction }: PreparableTransaction,
  gid: string,
  decision: Decision,
  timeout: number
): Effect.Effect<void> =>
  Effect.async((resume) => {
    endPreparedLevel(transaction.level, gid, decision, prepared, timeout, () => {
      observe(transaction)
      resume(Effect.void)
    })
  })

/** Leaves a prepared transaction to the recovery, because its decision is not known. */
export const leavePrepared = ({ transaction }: PreparableTransaction): void => {
  transaction.level.state = "unknown"
  transaction.level.release()
  observe(transaction)
}
