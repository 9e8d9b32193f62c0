/**
 * A reserved connection in a sandbox, which has one connection for all statements. A transaction
 * that the program begins by hand is a savepoint of the sandbox. From its first statement to its
 * end, other statements of the sandbox wait.
 */
import { TransactionConnection } from "@effect/sql/SqlClient"
import type { Connection as SqlConnection } from "@effect/sql/SqlConnection"
import type { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type TransactionError, toSqlError } from "../../DatabaseError.js"
import type { Role } from "../../Topology.js"
import type { Options } from "../../Transaction.js"
import type { Exchange } from "../connection/connection.js"
import { commandsIn } from "../sql/commandScanner.js"
import { rollback, sendCommit } from "../transaction/completion.js"
import { contextOf, currentContext } from "../transaction/context.js"
import { OpenContext } from "../transaction/insideContext.js"
import type { Transaction } from "../transaction/transaction.js"
import { slotOf } from "../transaction/transactionSlot.js"
import type { Executor } from "./executor.js"
import { refuseSchemaScopes } from "./reserve.js"
import { makeSqlConnection, type Run } from "./sqlConnection.js"

const begins = /^(?:BEGIN|START TRANSACTION)\b/
const commits = /^(?:COMMIT|END)(?: WORK| TRANSACTION)?$/
const rollsBack = /^(?:ROLLBACK|ABORT)(?: WORK| TRANSACTION)?$/

/** Returns the isolation and access that the text of a BEGIN requires. */
const optionsOf = (text: string): Options => {
  const isolation = /\bISOLATION\s+LEVEL\s+(SERIALIZABLE|REPEATABLE\s+READ)\b/i.exec(text)?.[1]
  return {
    isolation: isolation === undefined ? undefined : /^S/i.test(isolation) ? "serializable" : "repeatable read",
    access: /\bREAD\s+ONLY\b/i.test(text) ? "read only" : undefined
  }
}

/**
 * Makes an exchange for a statement that is not sent, as if the server had executed it. The cast:
 * only the results of an exchange are read.
 */
const answered = (command: string): Exchange =>
  ({ result: { command, rowCount: null, oid: null, rows: [], fields: [] }, results: [] }) as unknown as Exchange

/**
 * Reserves a connection of a sandbox for a scope. At the end of the scope, an open transaction on
 * it is rolled back.
 */
export const makeSandboxReserve = (
  executor: Executor,
  kind: Role
): Effect.Effect<SqlConnection, SqlError, Scope.Scope> =>
  Effect.withFiberRuntime((fiber) => {
    const refusal = refuseSchemaScopes(executor, fiber.currentContext)
    if (refusal !== undefined) return refusal
    let own: Transaction | undefined
    const leave = () => {
      const transaction = own
      own = undefined
      return transaction
    }
    const undoOwn = Effect.suspend(() => {
      const transaction = leave()
      return transaction === undefined ? Effect.void : rollback(transaction, undefined)
    })
    /**
     * Commits the transaction and returns the tag that the server would return. For a failed
     * transaction that is ROLLBACK, because COMMIT then rolls back without an error.
     */
    const commitOwn = Effect.uninterruptibleMask((restore) =>
      Effect.suspend(() => {
        const transaction = leave()
        if (transaction === undefined) return Effect.succeed("COMMIT")
        return Effect.catchAll(Effect.as(sendCommit(transaction, restore), "COMMIT"), (error: TransactionError) =>
          Effect.zipRight(
            rollback(transaction, undefined),
            error._tag === "RolledBackAtCommit" ? Effect.succeed("ROLLBACK") : Effect.fail(toSqlError(error))
          )
        )
      })
    )
    /**
     * Returns a context with the transaction that the program has begun by hand, if there is one.
     */
    const inside = (context: Context.Context<never>): Context.Context<never> =>
      own === undefined
        ? context
        : Context.add(context, TransactionConnection, slotOf(context, new OpenContext(contextOf(context), own)))
    const run: Run = (request, read) =>
      Effect.withFiberRuntime((fiber) => {
        const refusal = refuseSchemaScopes(executor, fiber.currentContext)
        if (refusal !== undefined) return refusal
        const [command = "", ...others] = commandsIn(request.text)
        const isOnly = others.length === 0
        if (isOnly && begins.test(command)) {
          own ??= executor.begin(kind, optionsOf(request.text), fiber, currentContext(fiber))
          return Effect.sync(() => read(answered("BEGIN")))
        }
        if (isOnly && commits.test(command)) return Effect.map(commitOwn, (tag) => read(answered(tag)))
        if (isOnly && rollsBack.test(command)) return Effect.map(undoOwn, () => read(answered("ROLLBACK")))
        return Effect.mapInputContext(
          Effect.withFiberRuntime((fiber) => executor.run(fiber, kind, request, read)),
          inside
        )
      })
    const stream = executor.streams(kind)
    return Effect.as(
      Effect.addFinalizer(() => undoOwn),
      makeSqlConnection(kind, run, (request, transformRows) =>
        Stream.unwrap(
          Effect.withFiberRuntime(
            (fiber) =>
              refuseSchemaScopes(executor, fiber.currentContext) ??
              Effect.succeed(Stream.mapInputContext(stream(request, transformRows), inside))
          )
        )
      )
    )
  })
