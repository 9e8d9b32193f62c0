/**
 * The dispatch of statements to their transactions or to servers. An opened database has one
 * executor.
 */

import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type { Session } from "../../Consistency.js"
import { SchemaInvalid, toSqlError } from "../../DatabaseError.js"
import { isNotSent } from "../../RetryPolicy.js"
import type { Role } from "../../Topology.js"
import type { Connection, Exchange, Request } from "../connection/connection.js"
import type { Caller } from "../pool/caller.js"
import { isReadOnly } from "../sql/commandScanner.js"
import { runAutocommit } from "../statement/autocommit.js"
import { withComment } from "../statement/workLabel.js"
import type { ConnectionSource } from "../topology/connectionSource.js"
import { scoped } from "../transaction/ambientScopes.js"
import { currentContext } from "../transaction/context.js"
import { causalSessionOf } from "../transaction/currentCausalSession.js"
import type { JoinedPart } from "../transaction/joinedPart.js"
import { runStatement } from "../transaction/levelStatement.js"
import type { StatementIsolation } from "../transaction/savepoint.js"
import type { Transaction } from "../transaction/transaction.js"
import { DatabaseTransactions } from "./databaseTransactions.js"
import { type MakeStream, makeStream } from "./rowStream.js"
import { deliverWhenStored } from "./sandboxNotifications.js"
import { sandboxRefusal } from "./sandboxRefusal.js"
import { mayRetryOnWriter, type Start } from "./statementRetry.js"

/** Connections that the fiber of a statement holds. */
type Held = ReadonlyArray<Connection>

const none: Held = []

/** Dispatcher of the statements of one opened database. */
export class Executor extends DatabaseTransactions {
  /** Makes the streams of a client. */
  streams(kind: Role): MakeStream {
    return makeStream(this, kind)
  }

  /**
   * Returns the executor of a sandbox of this database, given one that only runs its statements. A
   * database that is observed returns an executor that is observed as well.
   */
  observing(sandboxed: Executor): Executor {
    return sandboxed
  }

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
      const start = inTransaction(transaction, request, isolation, part)
      const result = this.retry.attempt(fiber, start, read, isNotSent)
      return this.sandbox === undefined ? result : deliverWhenStored(this, this.sandbox, plain, result)
    }
    if (this.sandbox !== undefined) {
      const around = ambient?.around(this) ?? this.sandbox
      const isCommit = around === this.sandbox && !callsNothing(request.text)
      const isolation = kind === "reader" ? "readOnly" : isCommit ? "autocommit" : "savepoint"
      const start = inTransaction(around, request, isolation)
      const result = this.retry.attempt(fiber, start, read, isNotSent)
      // the statement is independent of the transaction around it
      const mayWrite = around !== this.sandbox && !isReadOnly(request.text)
      const recorded = mayWrite ? Effect.tap(result, () => around.level.sandboxed?.recordIndependent()) : result
      return deliverWhenStored(this, this.sandbox, plain, recorded)
    }
    const held = ambient?.held(this) ?? none
    const caller = this.caller(fiber, request.site, work)
    if (kind === "reader") {
      const start = onReader(this.picker(kind, fiber, ambient), held, request, caller)
      return this.retry.attempt(fiber, start, read, this.retry.mayRetryRead)
    }
    const affinity = ambient?.readAffinity(this)
    if (affinity !== undefined) affinity.written = true
    const session = causalSessionOf(fiber.currentContext, ambient)
    return this.retry.attempt(fiber, this.onWriter(held, request, caller, session), read, mayRetryOnWriter(fiber))
  }

  private onWriter(held: Held, request: Request, caller: Caller | undefined, session: Session | undefined): Start {
    return (callback, deadline) =>
      runAutocommit(this.writes, deadline, held, request, "inDoubt", caller, session, callback)
  }
}

/** Checks if a text only reads, and calls no function, so that a COMMIT after it has nothing to do. */
const callsNothing = (text: string): boolean => !text.includes("(") && isReadOnly(text)

const onReader =
  (pick: () => ConnectionSource, held: Held, request: Request, caller: Caller | undefined): Start =>
  (callback, deadline) =>
    runAutocommit(pick(), deadline, held, request, "undone", caller, undefined, callback)

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
