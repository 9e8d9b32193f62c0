/**
 * The end of a transaction in two phases, as effects.
 */
import * as Effect from "effect/Effect"
import { ConfigInvalid, type TransactionError } from "../../DatabaseError.js"
import { cancellable } from "../edge/cancellable.js"
import { toDatabaseError } from "../edge/databaseError.js"
import type { DatabaseIdentity, Decision } from "../outcome/preparedTransactionCommands.js"
import { observe } from "./completion.js"
import { endPreparedLevel, identifyLevel, interruptedTimeout, prepareLevel } from "./levelPrepare.js"
import type { PreparedTransactions } from "./preparedTransactionRecovery.js"
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

/** Builds the error of a database whose server takes no prepared transactions. */
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

/**
 * Prepares a transaction, or undoes it and fails. `onPrepared` is called when it is prepared, also if
 * the caller is interrupted at that moment.
 */
export const prepare = (
  transaction: Transaction,
  gid: string,
  onPrepared: () => void
): Effect.Effect<void, TransactionError> =>
  cancellable((resume) => {
    transaction.span?.ends("commit")
    let isOver = false
    let onOver = () => {}
    const giveUp = prepareLevel(transaction.level, gid, (failure) => {
      isOver = true
      const error = failure === undefined ? undefined : toDatabaseError(failure)
      // in any other state, another caller has ended the transaction, or it is still open
      if (error !== undefined && transaction.level.state === "failed") observe(transaction, error)
      if (error === undefined) onPrepared()
      resume(error === undefined ? Effect.void : Effect.fail(error))
      onOver()
    })
    return () =>
      Effect.async<void>((onEnded) => {
        giveUp()
        if (isOver || transaction.level.connectionHolder.lost === undefined) return onEnded(Effect.void)
        onOver = () => onEnded(Effect.void)
      })
  })

/**
 * Ends a prepared transaction by a decision, for up to `timeout` ms; later the recovery ends it. An
 * interrupted caller waits for up to `interruptedTimeout`.
 */
export const endPrepared = (
  { prepared, transaction }: PreparableTransaction,
  gid: string,
  decision: Decision,
  timeout: number
): Effect.Effect<void> =>
  cancellable((resume) => {
    let onEnd = () => {}
    const limit = endPreparedLevel(transaction.level, gid, decision, prepared, timeout, () => {
      observe(transaction)
      resume(Effect.void)
      onEnd()
    })
    return () =>
      Effect.async<void>((onEnded) => {
        onEnd = () => onEnded(Effect.void)
        limit(interruptedTimeout)
      })
  })

/** Leaves a prepared transaction to the recovery, because its decision is not known. */
export const leavePrepared = ({ transaction }: PreparableTransaction): void => {
  transaction.level.state = "unknown"
  transaction.level.release()
  observe(transaction)
}
