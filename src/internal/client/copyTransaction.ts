/**
 * The transaction around a COPY: a savepoint of the open transaction, or a transaction of its own,
 * and the fiber that waits for the server.
 */

import type { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { Options } from "../../Copy.js"
import { SchemaInvalid, toSqlError } from "../../DatabaseError.js"
import { isNotSent } from "../../RetryPolicy.js"
import type { Role } from "../../Topology.js"
import type { Options as TransactionOptions } from "../../Transaction.js"
import * as clock from "../concurrency/clock.js"
import { aDuration, aFunction, anything, invalidOption, type OptionRules } from "../config/callOptionRules.js"
import type { Request } from "../connection/connection.js"
import type { Restore } from "../edge/cancellable.js"
import type { Copy as Data } from "../protocol/copyData.js"
import { withComment } from "../statement/workLabel.js"
import { scoped } from "../transaction/ambientScopes.js"
import { commitUninterruptibly, isSavepoint, rollback, sendCommit } from "../transaction/completion.js"
import { currentContext, type TransactionContext } from "../transaction/context.js"
import { runCopy } from "../transaction/levelStatement.js"
import { inMillis } from "../transaction/optionsInMillis.js"
import { nest, type Transaction } from "../transaction/transaction.js"
import type { Executor } from "./executor.js"

/** COPY in progress: its transaction, and the fiber that waits for the server. */
export interface RunningCopy {
  readonly transaction: Transaction
  readonly copying: Fiber.RuntimeFiber<number, SqlError>
  /**
   * Commits the transaction. Releases the savepoint of a writer, and rolls back that of a reader.
   * `restore` is `undefined` if the caller no longer waits for the result.
   */
  readonly keep: (restore: Restore | undefined) => Effect.Effect<void, SqlError>
}

/**
 * The timeout, in ms, for the remaining rows after the consumer of a `copyTo` has stopped, and for
 * the answer to the CopyFail of a `copyFrom`.
 */
export const endTimeout = 400

const optionRules: OptionRules<Options> = {
  // these are checked where the command is built
  format: anything,
  delimiter: anything,
  null: anything,
  header: anything,
  quote: anything,
  escape: anything,
  encoding: anything,
  statementTimeout: aDuration,
  onProgress: aFunction
}

/** Waits until a fiber has ended. Succeeds with `false` if that takes longer than `timeout` ms. */
export const endsWithin = (fiber: Fiber.RuntimeFiber<unknown, unknown>, timeout: number): Effect.Effect<boolean> =>
  Effect.async((resume) => {
    const stop = clock.later(timeout, () => resume(Effect.succeed(false)))
    fiber.addObserver(() => {
      stop()
      resume(Effect.succeed(true))
    })
  })

/** Returns the outcome of a fiber as an effect. */
export const outcomeOf = <A, E>(fiber: Fiber.RuntimeFiber<A, E>): Effect.Effect<A, E> =>
  Effect.flatten(Fiber.await(fiber))

/**
 * Creates a savepoint of the open transaction, or a transaction for the COPY. The COPY of a reader
 * is read-only, also inside of a transaction of a writer.
 */
const begin = (
  executor: Executor,
  kind: Role,
  fiber: Fiber.RuntimeFiber<unknown, unknown>,
  ambient: TransactionContext | undefined,
  around: Transaction | undefined,
  { statementTimeout }: Options
): Transaction => {
  const options: TransactionOptions = {
    ...(statementTimeout === undefined ? {} : { statementTimeout }),
    ...(kind === "reader" ? { access: "read only" } : {})
  }
  if (around !== undefined) return nest(executor, around, kind, around, inMillis(options))
  const affinity = ambient?.readAffinity(executor)
  if (affinity !== undefined && kind === "writer") affinity.written = true
  return executor.begin(kind, options, fiber, ambient)
}

/**
 * Commits the transaction of a COPY, or releases its savepoint. Rolls back after a failure. A
 * `copyFrom` in a savepoint counts as undone if its caller is interrupted meanwhile, but a `copyTo`
 * does not, because all its rows have been read.
 */
const commit = (transaction: Transaction, data: Data, restore: Restore | undefined): Effect.Effect<void, SqlError> =>
  Effect.catchAllCause(
    restore === undefined
      ? commitUninterruptibly(transaction)
      : sendCommit(transaction, restore, data._tag === "in" && isSavepoint(transaction)),
    (cause) =>
      Effect.zipRight(
        rollback(transaction, Cause.isInterrupted(cause) ? undefined : restore),
        Effect.failCause(Cause.map(cause, toSqlError))
      )
  )

/**
 * Begins the transaction of a COPY, and starts the COPY in a fiber that only `stopCopy` interrupts.
 */
export const startCopy = (
  executor: Executor,
  kind: Role,
  fiber: Fiber.RuntimeFiber<unknown, unknown>,
  plain: Request,
  data: Data,
  options: Options
): Effect.Effect<RunningCopy, SqlError> =>
  Effect.suspend(() => {
    const { database } = executor
    const invalid = invalidOption(database, options, optionRules)
    if (invalid !== undefined) return Effect.fail(toSqlError(invalid))
    const ambient = currentContext(fiber)
    const request = scoped(fiber.currentContext, ambient, database, withComment(plain, ambient?.work(fiber)))
    if (request instanceof SchemaInvalid) return Effect.fail(toSqlError(request))
    const around = executor.transactionFor(fiber, ambient, kind)
    const transaction = begin(executor, kind, fiber, ambient, around, options)
    if (kind === "writer") executor.recordCausalSession(fiber, ambient, transaction)
    const attempt = executor.retry.attempt(
      fiber,
      (callback) => runCopy(transaction.level, request, data, callback),
      (exchange) => exchange.result.rowCount ?? 0,
      isNotSent
    )
    const recorded = Effect.sync(() => {
      if (around !== undefined && kind === "writer" && transaction.level.touched)
        ambient?.part(around)?.recordSent(around)
    })
    return Effect.map(Effect.forkDaemon(Effect.interruptible(attempt)), (copying) => ({
      transaction,
      copying,
      keep: (restore) =>
        // the rollback also undoes the settings of the savepoint, which make it read-only
        kind === "reader" && transaction.level.parent !== undefined
          ? rollback(transaction, restore)
          : Effect.zipRight(commit(transaction, data, restore), recorded)
    }))
  })

/**
 * Stops a COPY and rolls it back. If the server waits for data, CopyFail is sent and its answer
 * awaited for `endTimeout`. A COPY that is still running is then cancelled like any other
 * statement.
 */
export const stopCopy = (
  { copying, transaction }: RunningCopy,
  data: Data,
  restore: Restore | undefined
): Effect.Effect<void> =>
  Effect.suspend(() => {
    const isAnswered = data._tag === "in" && data.isOpen ? endsWithin(copying, endTimeout) : Effect.void
    if (data._tag === "in") data.fail("the client has stopped the COPY")
    else data.discard()
    return isAnswered.pipe(
      Effect.zipRight(Fiber.interrupt(copying)),
      Effect.zipRight(Effect.suspend(() => rollback(transaction, restore)))
    )
  })
