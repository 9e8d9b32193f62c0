/**
 * The `PgClient` of a database for one role. Each statement runs in the transaction around it, or
 * else on a server that is chosen for it.
 */
import * as Reactivity from "@effect/experimental/Reactivity"
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Statement from "@effect/sql/Statement"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Stream from "effect/Stream"
import type { Client } from "../../Copy.js"
import { NotificationInvalid, type TransactionError, toSqlError } from "../../DatabaseError.js"
import type { Role } from "../../Topology.js"
import type { Options } from "../../Transaction.js"
import { type CallSite, callSite } from "../observability/callSite.js"
import { endpoint, hasTracer } from "../observability/transactionSpan.js"
import { checkMessage } from "../sql/notifyLimits.js"
import { currentContext } from "../transaction/context.js"
import { deferInvalidations, outliving } from "../transaction/invalidations.js"
import { inMillis } from "../transaction/optionsInMillis.js"
import { decidePropagation, raiseIsolation, retryRefused, rootOf } from "../transaction/propagation.js"
import { runAsPart, runIndependent, runInTransaction } from "../transaction/runInTransaction.js"
import { nest } from "../transaction/transaction.js"
import { invalidOfTransaction } from "../unitOfWork/optionRules.js"
import { json, makeCompiler } from "./compiler.js"
import { makeCopy } from "./copy.js"
import type { Executor } from "./executor.js"
import { makeStatementConstructor } from "./fastStatement.js"
import { makeReserve } from "./reserve.js"
import { retryTransaction } from "./retryTransaction.js"
import { makeSandboxReserve } from "./sandboxReserve.js"
import { reportServer } from "./serverOfSpan.js"
import { sessionModeRequired } from "./sessionModeRequired.js"
import { makeRows, makeSqlConnection } from "./sqlConnection.js"
import { clientConfig } from "./sqlPgConfig.js"
import { renameRows } from "./transformResultNames.js"

const byExit = (exit: Exit.Exit<unknown, unknown>): Exit.Exit<"commit" | "rollback"> =>
  Exit.succeed(Exit.isSuccess(exit) ? "commit" : "rollback")

/**
 * Runs an effect as the propagation of `options` decides: in a new transaction, in a savepoint, as
 * a part of the current transaction, outside of any, or not at all. `wrap` converts the failures of
 * the transaction itself.
 *
 * @internal
 */
export const withTransaction = <A, E, R, X>(
  executor: Executor,
  kind: Role,
  self: Effect.Effect<A, E, R>,
  options: Options,
  wrap: (error: TransactionError) => X,
  site: CallSite | undefined
): Effect.Effect<A, E | X, R> =>
  Effect.withFiberRuntime((fiber) => {
    const invalid = invalidOfTransaction(executor.database, options)
    if (invalid !== undefined) return Effect.fail(wrap(invalid))
    const ambient = currentContext(fiber)
    const current = executor.transactionFor(fiber, ambient, kind, site)
    const chosen = decidePropagation(executor, current, options)
    const { label, retry = false } = options
    if (current !== undefined && (chosen._tag === "join" || chosen._tag === "nest")) {
      const isTaken = retry === false || ambient?.takeRetry(rootOf(current), retry) === true
      // this check precedes `raiseIsolation`, so that a refused part changes nothing
      if (!isTaken && chosen._tag === "join") return Effect.fail(wrap(retryRefused(executor.database)))
      raiseIsolation(current, options, chosen._tag === "join")
    }
    switch (chosen._tag) {
      case "join":
        return ambient === undefined ? self : runAsPart(self, ambient, { label, site }, { database: executor }, byExit)
      case "outside":
        return runIndependent(self, executor)
      case "refuse":
        return Effect.fail(wrap(chosen.error))
      case "nest": {
        const inner: Options = kind === "reader" ? { ...options, access: "read only" } : options
        const nested = nest(executor, chosen.outer, kind, chosen.outer, inMillis(inner))
        nested.span = executor.span(fiber, options.label, ambient)
        return runInTransaction(self, ambient, nested, wrap)
      }
      case "begin": {
        let attempt = 0
        const next = () => {
          const transaction = executor.begin(kind, options, fiber, ambient, site)
          if (++attempt > 1) transaction.span?.tries(attempt)
          return transaction
        }
        return retry === false
          ? Effect.suspend(() => runInTransaction(self, ambient, next(), wrap))
          : retryTransaction(
              executor,
              fiber,
              next,
              (transaction) => runInTransaction(self, ambient, transaction, wrap),
              retry
            )
      }
    }
  })

/**
 * Makes a client for a role.
 *
 * @internal
 */
export const make = (
  executor: Executor,
  kind: Role,
  listen: (channel: string) => Stream.Stream<string, SqlError>
): Effect.Effect<Client, never, Reactivity.Reactivity> =>
  Effect.map(Reactivity.Reactivity, (reactivity) => {
    deferInvalidations(reactivity)
    const { options, session, writer } = executor.config
    const compiler = makeCompiler(options.transformQueryNames, options.transformJson)
    const transformRows =
      options.transformResultNames === undefined
        ? undefined
        : renameRows(options.transformResultNames, options.transformJson ?? true)
    const statements = makeSqlConnection(
      kind,
      (request, read) =>
        Effect.withFiberRuntime((fiber) =>
          executor.run(fiber, kind, hasTracer(fiber) ? reportServer(fiber, request) : request, read)
        ),
      executor.streams(kind)
    )
    // the server of a reader is not known before a statement is sent
    const attributes = kind === "writer" ? [...executor.attributes, ...endpoint(writer)] : executor.attributes
    const acquirer = Effect.succeed(statements)
    const makeStatement = (made: Statement.Compiler, transform: typeof transformRows) => {
      const { read, request } = makeRows(kind, transform)
      return makeStatementConstructor(
        Statement.make(acquirer, made, attributes, transform),
        (fiber, sql, params, site) => executor.run(fiber, kind, request(sql, params, site), read)
      )
    }
    const constructor = makeStatement(compiler, transformRows)
    const members = {
      [SqlClient.TypeId]: SqlClient.TypeId as SqlClient.TypeId,
      [PgClient.TypeId]: PgClient.TypeId,
      config: clientConfig(executor.config),
      withTransaction: <R, E, A>(self: Effect.Effect<A, E, R>) =>
        withTransaction(executor, kind, self, {}, toSqlError, callSite()),
      reactive: <A, E, R>(keys: Parameters<typeof reactivity.stream>[0], query: Effect.Effect<A, E, R>) =>
        reactivity.stream(keys, outliving(query)),
      reactiveMailbox: <A, E, R>(keys: Parameters<typeof reactivity.query>[0], query: Effect.Effect<A, E, R>) =>
        reactivity.query(keys, outliving(query)),
      json,
      listen,
      notify: (channel: string, payload: string) =>
        Effect.suspend(() => {
          const invalid = checkMessage(channel, payload)
          if (invalid !== undefined) {
            return Effect.fail(toSqlError(new NotificationInvalid({ database: executor.database, ...invalid })))
          }
          return Effect.asVoid(constructor`SELECT pg_notify(${channel}, ${payload})`.raw)
        })
    }
    const finish = (
      statement: Statement.Constructor,
      rename: typeof options.transformQueryNames,
      withoutTransforms: (client: Client) => Client
    ): Client => {
      const copy = makeCopy(executor, kind, rename, options.transformJson ?? true)
      const client: Client = Object.assign(statement, members, copy, {
        reserve: makeSandboxReserve(executor, kind),
        // the cast: `safe` is the client itself, and is set below
        safe: undefined as unknown as Client,
        withoutTransforms: () => withoutTransforms(client)
      })
      Object.assign(client, { safe: client })
      if (executor.sandbox !== undefined) return client
      // `reserve` is a getter, so that the call site is where the program reads the property
      return Object.defineProperty(client, "reserve", {
        configurable: true,
        enumerable: true,
        get: () =>
          session.mode === "session"
            ? makeReserve(executor, kind, callSite())
            : Effect.suspend(() => Effect.fail(toSqlError(sessionModeRequired(executor.database, "reserve"))))
      })
    }
    if (transformRows === undefined) return finish(constructor, options.transformQueryNames, (client) => client)
    const plain = finish(makeStatement(compiler.withoutTransform, undefined), undefined, (client) => client)
    return finish(constructor, options.transformQueryNames, () => plain)
  })
