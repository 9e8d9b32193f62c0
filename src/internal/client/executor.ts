/**
 * The dispatch of statements to their transactions or to servers. An opened database has one
 * executor.
 */

import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import { SchemaInvalid, toSqlError } from "../../DatabaseError.js"
import { isNotSent } from "../../RetryPolicy.js"
import type { Role } from "../../Topology.js"
import type { WorkLabel } from "../../Transaction.js"
import type { Connection, Exchange, Request } from "../connection/connection.js"
import { runAutocommit } from "../statement/autocommit.js"
import { withComment } from "../statement/workLabel.js"
import { scoped } from "../transaction/ambientScopes.js"
import { causalSessionOf } from "../transaction/causalSession.js"
import { currentContext, type TransactionContext } from "../transaction/context.js"
import type { JoinedPart } from "../transaction/joinedPart.js"
import { runStatement } from "../transaction/levelStatement.js"
import type { StatementIsolation } from "../transaction/savepoint.js"
import type { Transaction } from "../transaction/transaction.js"
import { DatabaseTransactions } from "./databaseTransactions.js"
import { sandboxRefusal } from "./sandboxRefusal.js"
import { mayRetryOnWriter, type Start } from "./statementRetry.js"

const none: ReadonlyArray<never> = []

/** Dispatcher of the statements of one opened database. */
export class Executor extends DatabaseTransactions {
  /** Runs a statement of a fiber in its transaction or on a server. */
  run<A>(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    kind: Role,
    plain: Request,
    read: (exchange: Exchange) => A
  ): Effect.Effect<A, SqlError> {
    const ambient = currentContext(fiber)
    const work = ambient?.work(fiber)
    const request = scoped(fiber.currentContext, ambient, this.database, withComment(plain, work))
    if (request instanceof SchemaInvalid) return Effect.fail(toSqlError(request))
    const refusal = sandboxRefusal(this, request)
    if (refusal !== undefined) return Effect.fail(toSqlError(refusal))
    const transaction = this.transactionFor(fiber, ambient, kind, request.site, work)
    if (transaction !== undefined) {
      const isolation = kind === "reader" && !transaction.readOnly ? "readOnly" : "none"
      if (kind === "writer") this.recordCausalSession(fiber, ambient, transaction)
      const part = kind === "writer" ? ambient?.part(transaction) : undefined
      return this.retry.attempt(fiber, inTransaction(transaction, request, isolation, part), read, isNotSent)
    }
    if (this.sandbox !== undefined) {
      const around = ambient?.around(this) ?? this.sandbox
      const start = inTransaction(around, request, kind === "reader" ? "readOnly" : "savepoint")
      return this.retry.attempt(fiber, start, read, isNotSent)
    }
    const held = ambient?.held(this) ?? none
    const affinity = ambient?.readAffinity(this)
    if (affinity !== undefined && kind === "writer") affinity.written = true
    return kind === "writer"
      ? this.retry.attempt(fiber, this.onWriter(fiber, ambient, work, request, held), read, mayRetryOnWriter(fiber))
      : this.retry.attempt(fiber, this.onReader(fiber, ambient, work, request, held), read, this.retry.mayRetryRead)
  }

  private onWriter(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined,
    work: WorkLabel | undefined,
    request: Request,
    held: ReadonlyArray<Connection>
  ): Start {
    const caller = this.caller(fiber, request.site, work)
    const session = causalSessionOf(fiber.currentContext, ambient)
    return (callback, deadline) =>
      runAutocommit(this.writes, deadline, held, request, "inDoubt", caller, session, callback)
  }

  private onReader(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined,
    work: WorkLabel | undefined,
    request: Request,
    held: ReadonlyArray<Connection>
  ): Start {
    const pick = this.routing.picker(fiber, ambient, ambient?.readAffinity(this))
    const caller = this.caller(fiber, request.site, work)
    return (callback, deadline) => runAutocommit(pick(), deadline, held, request, "undone", caller, undefined, callback)
  }
}

const inTransaction =
  (transaction: Transaction, request: Request, isolation: StatementIsolation, part?: JoinedPart | undefined): Start =>
  (callback) =>
    runStatement(
      transaction.level,
      request,
      isolation,
      callback,
      part === undefined ? undefined : () => part.recordSent(transaction)
    )
