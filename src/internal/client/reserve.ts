/**
 * A connection that is reserved for a scope. Its statements are in no transaction, unless the
 * program begins one by hand.
 */
import type { Connection as SqlConnection } from "@effect/sql/SqlConnection"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { SessionConfig } from "../../DatabaseConfig.js"
import { SchemaInvalid, type StatementError, TransactionEnded, toSqlError } from "../../DatabaseError.js"
import { isNotSent } from "../../RetryPolicy.js"
import type { Outcome } from "../../SqlState.js"
import type { Role } from "../../Topology.js"
import { FifoLock } from "../concurrency/fifoLock.js"
import type { Connection, Failure, OnExchange } from "../connection/connection.js"
import type { StatementFailure } from "../connection/failure.js"
import { afterFirst, type ErrorLocation, statementFailure } from "../connection/statementFailure.js"
import { toDatabaseError } from "../edge/databaseError.js"
import type { CallSite } from "../observability/callSite.js"
import type { ConnectionSource, OnCheckout } from "../topology/connectionSource.js"
import { scopesOf } from "../transaction/ambientScopes.js"
import { currentContext } from "../transaction/context.js"
import { causalSessionOf } from "../transaction/currentCausalSession.js"
import type { Executor } from "./executor.js"
import { runReadOnly } from "./readOnlyReserve.js"
import { makeSqlConnection, type Run } from "./sqlConnection.js"

const none: ReadonlyArray<never> = []

const scopeEnded = new Error("the scope of the reserved connection has ended")

/**
 * Makes a function that runs statements on one connection, one after the other. `reader` has the
 * settings of a reader's session, which must not write.
 */
export const makeRun = (
  location: ErrorLocation,
  connection: Connection,
  hasEnded: () => boolean,
  reader?: SessionConfig | undefined
): Run => {
  const turns = new FifoLock()
  /** The first failure of the transaction that the program has begun by hand. */
  let first: StatementFailure | undefined
  const failed = (failure: Failure, outcome: Outcome): StatementError => {
    const plain = afterFirst(statementFailure(location, failure, outcome), first)
    if (connection.status === "E") first ??= plain
    return toDatabaseError(plain)
  }
  return (request, read) =>
    Effect.async((resume) => {
      let sent = false
      let isDone = false
      let isLeft = false
      const leave = turns.acquire(() => {
        if (hasEnded()) {
          turns.release()
          return resume(Effect.fail(toSqlError(new TransactionEnded({ ...location, cause: scopeEnded }))))
        }
        sent = true
        const finish: OnExchange = (failure, exchange) => {
          isDone = true
          turns.release()
          if (connection.status !== "E") first = undefined
          const outcome = failure?._tag === "lost" && !failure.sent ? "notSent" : "inDoubt"
          resume(
            failure === undefined
              ? Effect.sync(() => read(exchange))
              : Effect.fail(toSqlError(failed(failure, outcome)))
          )
        }
        if (reader === undefined) connection.run(none, request, none, finish)
        else runReadOnly(connection, reader, request, () => !isLeft, finish)
      })
      return Effect.sync(() => {
        isLeft = true
        if (!sent) leave()
        else if (!isDone) connection.cancel()
      })
    })
}

/**
 * Returns a failure if schema scopes are in effect, because a reserved connection cannot apply
 * them: the program begins and ends transactions on it by hand, so a `SET LOCAL` could end early,
 * and names could be looked up in a wrong schema.
 */
export const refuseSchemaScopes = (
  { database }: Executor,
  context: Context.Context<never>
): Effect.Effect<never, SqlError> | undefined => {
  if (scopesOf(context)?.find(database) === undefined) return undefined
  const given = "in effect on a reserved connection"
  const expected = "none: run SET search_path in that session"
  return Effect.fail(toSqlError(new SchemaInvalid({ database, given, expected })))
}

/** Reserves a connection for a scope. */
export const makeReserve = (
  executor: Executor,
  kind: Role,
  site: CallSite | undefined
): Effect.Effect<SqlConnection, SqlError, Scope.Scope> =>
  Effect.withFiberRuntime((fiber) => {
    const refusal = refuseSchemaScopes(executor, fiber.currentContext)
    if (refusal !== undefined) return refusal
    const ambient = currentContext(fiber)
    const held = ambient?.held(executor) ?? none
    const pick = executor.picker(kind, fiber, ambient)
    const caller = executor.caller(fiber, site, ambient?.work(fiber))
    const deadline = executor.retry.deadline()
    // the results of statements on a reserved connection are not inspected, so their writes have no
    // token
    const session = kind === "writer" ? causalSessionOf(fiber.currentContext, ambient) : undefined
    let endUnreported = () => {}
    let taken: { readonly pool: ConnectionSource; readonly connection: Connection } | undefined
    let ended = false
    const attempt = Effect.async<NonNullable<typeof taken>, StatementError>((resume) => {
      const pool = pick()
      const settle: OnCheckout = (failure, connection) => {
        if (connection !== undefined) {
          taken = { pool, connection }
          if (session !== undefined) endUnreported = session.beginUnreported(executor.database)
          resume(Effect.succeed(taken))
        } else if (failure !== undefined) resume(Effect.fail(toDatabaseError(failure)))
      }
      const cancel = pool.checkout(deadline, held, settle, caller)
      return Effect.sync(cancel)
    })
    const checkout = executor.retry.attemptCheckout(
      attempt,
      deadline,
      kind === "reader" ? executor.retry.mayRetryRead : isNotSent
    )
    // the finalizer is added before the checkout, so that an interruption in between leaks no
    // connection
    const release = Effect.addFinalizer(() =>
      Effect.sync(() => {
        ended = true
        if (taken === undefined) return
        taken.pool.checkin(taken.connection)
        endUnreported()
      })
    )
    return Effect.map(Effect.zipRight(release, Effect.mapError(checkout, toSqlError)), ({ connection, pool }) => {
      const location = { database: pool.options.database, server: pool.options.server.name }
      const plain = makeRun(location, connection, () => ended, kind === "reader" ? pool.options.session : undefined)
      const run: Run = (request, read) =>
        Effect.withFiberRuntime((fiber) => {
          return refuseSchemaScopes(executor, fiber.currentContext) ?? plain(request, read)
        })
      return makeSqlConnection(kind, run, (request, transformRows) =>
        Stream.unwrap(
          Effect.map(
            run(request, (exchange): ReadonlyArray<object> => exchange.result.rows),
            (rows) => Stream.fromIterable(transformRows === undefined ? rows : transformRows(rows))
          )
        )
      )
    })
  })
