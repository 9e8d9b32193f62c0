/**
 * A reserved connection in a sandbox, which has one connection for all: a transaction that is begun and ended by hand on it is nested in the
 * sandbox instead. While it is open, other statements of the sandbox wait for its end.
 */
import { TransactionConnection } from "@effect/sql/SqlClient"
import type { Connection as SqlConnection } from "@effect/sql/SqlConnection"
import type { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Flight } from "../../Connection.js"
import { type TransactionError, toSqlError } from "../../DatabaseError.js"
import type { Transaction } from "../../Transaction.js"
import { carrierOf, currentCarrier, type Kind, TransactionCarrier } from "../transaction/context.js"
import { commit, undo } from "../transaction/completion.js"
import type { Engine } from "./executor.js"
import { refusesScopes } from "./reserve.js"
import { slotOf } from "../transaction/contextSlot.js"
import { commandsIn } from "../sql/commands.js"
import { makeStatements, type Run } from "./sqlConnection.js"
import { makeStream } from "./rowStream.js"

const begins = /^(?:BEGIN|START TRANSACTION)\b/
const commits = /^(?:COMMIT|END)(?: WORK| TRANSACTION)?$/
const rollsBack = /^(?:ROLLBACK|ABORT)(?: WORK| TRANSACTION)?$/

/** Returns the result of a statement that is done without the server. Of a flight only its results are read. */
const answered = (command: string): Flight =>
  ({ result: { command, rowCount: null, oid: null, rows: [], fields: [] }, results: [] }) as unknown as Flight

/** Reserves a connection of a sandbox for a scope; a transaction that is open on it is undone with the scope. */
export const makeSandboxReserve = (engine: Engine, kind: Kind): Effect.Effect<SqlConnection, SqlError, Scope.Scope> =>
  Effect.withFiberRuntime((fiber) => {
    const refusal = refusesScopes(engine, fiber.currentContext)
    if (refusal !== undefined) return Effect.fail(toSqlError(refusal))
    let own: Transaction | undefined
    const leave = () => {
      const transaction = own
      own = undefined
      return transaction
    }
    const undoOwn = Effect.suspend(() => {
      const transaction = leave()
      return transaction === undefined ? Effect.void : undo(transaction, undefined)
    })
    /** Returns the tag that the server would: COMMIT rolls a failed transaction back, without an error. */
    const commitOwn = Effect.uninterruptibleMask((restore) =>
      Effect.suspend(() => {
        const transaction = leave()
        if (transaction === undefined) return Effect.succeed("COMMIT")
        return Effect.catchAll(Effect.as(commit(transaction, restore), "COMMIT"), (error: TransactionError) =>
          Effect.zipRight(
            undo(transaction, undefined),
            error._tag === "RolledBackAtCommit" ? Effect.succeed("ROLLBACK") : Effect.fail(toSqlError(error))
          )
        )
      })
    )
    /** Returns the context of the transaction that is open by hand, if there is one. */
    const inside = (context: Context.Context<never>): Context.Context<never> =>
      own === undefined
        ? context
        : Context.add(context, TransactionConnection, slotOf(context, new TransactionCarrier(carrierOf(context), own)))
    const run: Run = (request, read) =>
      Effect.withFiberRuntime((fiber) => {
        const refusal = refusesScopes(engine, fiber.currentContext)
        if (refusal !== undefined) return Effect.fail(toSqlError(refusal))
        const [command = "", ...others] = commandsIn(request.text)
        const isOnly = others.length === 0
        if (isOnly && begins.test(command)) {
          own ??= engine.begin(kind, {}, fiber, currentCarrier(fiber))
          return Effect.sync(() => read(answered("BEGIN")))
        }
        if (isOnly && commits.test(command)) return Effect.map(commitOwn, (tag) => read(answered(tag)))
        if (isOnly && rollsBack.test(command)) return Effect.map(undoOwn, () => read(answered("ROLLBACK")))
        return Effect.mapInputContext(
          Effect.withFiberRuntime((fiber) => engine.run(fiber, kind, request, read)),
          inside
        )
      })
    const stream = makeStream(engine, kind)
    return Effect.as(
      Effect.addFinalizer(() => undoOwn),
      makeStatements(kind, run, (request, transformRows) =>
        Stream.mapInputContext(stream(request, transformRows), inside)
      )
    )
  })
