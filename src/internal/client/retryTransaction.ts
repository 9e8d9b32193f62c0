/**
 * The attempts of a whole transaction outside of any other.
 */

import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import { RetryPolicy } from "../../RetryPolicy.js"
import type { Retry } from "../transaction/context.js"
import type { Origin, Transaction } from "../transaction/transaction.js"
import { reasonOf, replayable, retryWork } from "../unitOfWork/attempts.js"
import { mayBeStored } from "../unitOfWork/mayBeStored.js"

const none: ReadonlyArray<never> = []

/**
 * Runs a transaction, and repeats it by `retry` while it is certainly undone and another attempt
 * may succeed.
 */
export const retryTransaction = <A, E, R>(
  own: Origin,
  fiber: Fiber.RuntimeFiber<unknown, unknown>,
  begin: () => Transaction,
  once: (transaction: Transaction) => Effect.Effect<A, E, R>,
  retry: Retry
): Effect.Effect<A, E, R> => {
  let transaction: Transaction | undefined
  const next = Effect.suspend(() => {
    transaction = begin()
    return once(transaction)
  })
  // another attempt of this transaction cannot repair a failure on another database
  const originOf = (database: string) => (database === own.database ? own : undefined)
  const reasonFor = (exit: Exit.Exit<A, E>) =>
    Exit.isSuccess(exit) || transaction === undefined || mayBeStored(transaction)
      ? undefined
      : replayable(reasonOf(transaction.failures, exit.cause), originOf, exit.cause)
  const policy = Context.get(fiber.currentContext, RetryPolicy)
  const transactions = () => (transaction === undefined ? none : [transaction])
  return Effect.uninterruptibleMask((restore) => retryWork(restore, next, reasonFor, transactions, retry, policy))
}
