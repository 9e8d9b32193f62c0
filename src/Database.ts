/**
 * Named databases, with one class for each.
 *
 * The name is a type, so a program that does not provide one of its databases does not compile.
 *
 * @since 0.1.0
 */

import * as Reactivity from "@effect/experimental/Reactivity"
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Statement from "@effect/sql/Statement"
import * as PgClient from "@effect/sql-pg/PgClient"
import type * as Config from "effect/Config"
import type * as ConfigError from "effect/ConfigError"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type Consistency, CurrentConsistency } from "./Consistency.js"
import type * as Copy from "./Copy.js"
import * as DatabaseConfig from "./DatabaseConfig.js"
import {
  type DatabaseError,
  type ListenError,
  refine,
  type StartupError,
  type TransactionError
} from "./DatabaseError.js"
import { withTransaction } from "./internal/client/client.js"
import { checkOwner, NamedClass, names, takeName } from "./internal/client/databaseNames.js"
import type { Executor } from "./internal/client/executor.js"
import { openConfigured, openDatabase, openSandbox } from "./internal/client/openDatabase.js"
import * as clock from "./internal/concurrency/clock.js"
import { configured } from "./internal/config/unwrapConfig.js"
import { makeSandboxListen } from "./internal/listen/sandboxListen.js"
import { type Listen, makeListen } from "./internal/listen/streams.js"
import { callSite, callSiteOfPart } from "./internal/observability/callSite.js"
import type { Observers } from "./internal/observability/observers.js"
import { schemaChange } from "./internal/sql/schemaScopes.js"
import { inScopes } from "./internal/transaction/ambientScopes.js"
import { contextOf } from "./internal/transaction/context.js"
import type { RegisteredHook } from "./internal/transaction/hook.js"
import { registerHook } from "./internal/transaction/registerHook.js"
import { runIndependent } from "./internal/transaction/runInTransaction.js"
import { endEarly } from "./internal/unitOfWork/manualCompletion.js"
import type { Notification } from "./Notification.js"
import type { Observation } from "./Observation.js"
import type { Schema } from "./Tenant.js"
import type { OpenTransaction, Role, ServerStatus } from "./Topology.js"
import type * as Transaction from "./Transaction.js"
import type * as UnitOfWork from "./UnitOfWork.js"

/**
 * Options of a database.
 *
 * @see `DatabaseConfig.DatabaseOptions`
 * @since 0.1.0
 * @category models
 */
export type Options = DatabaseConfig.DatabaseOptions

/**
 * Figures of a database at one moment.
 *
 * @see {@link Members} for `status`
 * @since 0.1.0
 * @category models
 */
export interface Status {
  /** The name of the database. */
  readonly database: string
  /** The servers with their pools, the writer first. */
  readonly servers: ReadonlyArray<ServerStatus>
  /** The transactions that hold a connection, the oldest first. */
  readonly transactions: ReadonlyArray<OpenTransaction>
}

/**
 * Open database.
 *
 * @see {@link Service} for the class that opens it
 * @since 0.1.0
 * @category models
 */
export interface Database {
  /** The client of the primary. */
  readonly writer: Copy.Client
  /**
   * The client of a replica, or of the primary if no replica can serve the read. It is read-only.
   */
  readonly reader: Copy.Client
  /** The client for reads in an open transaction, if there is one, else the same as `reader`. */
  readonly any: Copy.Client
  /** @internal */ readonly executor: Executor
  /** @internal */ readonly listen: Listen
  /** @internal */ readonly observers: Observers
  /** @internal The class that has opened it. */
  readonly owner: NamedClass
  /** @internal The scope in which its servers are open. */
  readonly scope: Scope.Scope
}

/**
 * Opens a sandbox of a database. Each transaction in it is a savepoint of one transaction that is
 * never committed.
 *
 * @internal
 */
export const sandbox = (
  live: Database,
  options: Pick<Transaction.Options, "isolation">
): Effect.Effect<Database, never, Reactivity.Reactivity | Scope.Scope> => openSandbox(live, makeSandboxListen, options)

/**
 * Opens a database once more, with changed settings.
 *
 * @internal
 */
export const reopen = (
  live: Database,
  config: DatabaseConfig.DatabaseConfig
): Effect.Effect<Database, StartupError, Reactivity.Reactivity | Scope.Scope> =>
  openConfigured(live.owner, config, makeListen)

/**
 * Options of `invalidate`: conditions for the connections to close, and the mode of closing them.
 *
 * A connection matches if it meets all given conditions; without a condition all match.
 *
 * @see {@link Members} for `invalidate`, which takes them
 * @since 0.1.0
 * @category models
 */
export interface Invalidate {
  /**
   * `"soft"` closes an idle connection at its next checkout, and a connection in use at its checkin.
   * `"hard"` closes connections at once, and statements in progress on them fail.
   *
   * @default "soft"
   */
  readonly mode?: "soft" | "hard" | undefined
  /**
   * Matches connections that have been open for at least this time. A plain number is in
   * milliseconds.
   *
   * @default 0
   */
  readonly olderThan?: Duration.DurationInput | undefined
  /**
   * Matches the connection of this backend process, as `pg_backend_pid()` returns it.
   *
   * @default undefined (every process)
   */
  readonly processId?: number | undefined
  /**
   * Matches the connections of this server, by its name in `status`.
   *
   * @default undefined (every server)
   */
  readonly server?: string | undefined
}

/**
 * Members of the class of a named database.
 *
 * Clients, combinators and hooks require the database, which `layer` provides.
 *
 * @see {@link Service}
 * @since 0.1.0
 * @category models
 */
export interface Members<Self> {
  /**
   * Opens the database for as long as the layer lives, then drains and closes it. Fails with
   * `ConfigInvalid`, or with `ConnectFailed` if the writer cannot be reached.
   */
  readonly layer: (options: Options) => Layer.Layer<Self, StartupError>
  /**
   * Opens the database as `layer` does, with settings from `Config` beside plain values. Fails with
   * `ConfigError` if one of them is missing or cannot be read.
   */
  readonly layerConfig: (
    config: DatabaseConfig.ConfigOptions | Config.Config<Options>
  ) => Layer.Layer<Self, StartupError | ConfigError.ConfigError>
  /**
   * Opens the database as `layer` does, with the writer from the environment, as libpq reads it: from
   * the variables `PGHOST`, `PGUSER` and so on, from the service file and from the password file. The
   * names of the variables begin with `prefix` (default `""`). Fails with `ConfigError` if the
   * service cannot be read. See `DatabaseConfig.fromEnv`.
   */
  readonly layerEnv: (
    prefix?: string,
    options?: DatabaseConfig.ConfigCommonOptions
  ) => Layer.Layer<Self, StartupError | ConfigError.ConfigError>
  /**
   * Provides the writer under the tags of `@effect/sql` and `@effect/sql-pg`: for Migrator, Model,
   * SqlResolver, sql-drizzle and sql-kysely.
   */
  readonly layerSqlClient: Layer.Layer<SqlClient.SqlClient | PgClient.PgClient, never, Self>
  /** Returns the client of the primary. It opens nothing. */
  readonly writer: Effect.Effect<Copy.Client, never, Self>
  /**
   * Returns the client of a replica, or of the primary if no replica can serve the read. It is
   * read-only: the server refuses writes. It opens nothing.
   */
  readonly reader: Effect.Effect<Copy.Client, never, Self>
  /**
   * Returns the client for reads in the open transaction of a reader, or, if there is none, in the
   * open transaction of a writer. Without an open transaction it is the same as `reader`.
   */
  readonly any: Effect.Effect<Copy.Client, never, Self>
  /**
   * Runs an effect in a transaction on the primary. Nothing is sent before its first statement. A
   * success commits; a failure, a defect and an interruption roll back. Inside of another transaction
   * it is a savepoint, unless `propagation` has another value.
   *
   * It fails as the effect does; with `ConnectFailed`, `PoolExhausted` or `PoolSelfDeadlock` if it gets
   * no connection; with `CommitFailed`, `CommitVetoed`, `RolledBackAtCommit` or `CommitOutcomeUnknown`
   * at its end; and with `PropagationRefused` or `OptionsConflict` if it does not fit into the
   * transaction around it.
   *
   * @see `UnitOfWork.run` for transactions of several databases
   */
  readonly withTransaction: {
    // TypeScript compares a function in a pipe with its last overload, so `withTransaction` without
    // a call does not compile there, and the type error says that it must be called
    <A, E, R>(
      self: Effect.Effect<A, E, R>,
      options?: Transaction.Options
    ): Effect.Effect<A, E | TransactionError, R | Self>
    (
      options?: Transaction.Options & UnitOfWork.Called<"withTransaction()">
    ): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | TransactionError, R | Self>
  }
  /**
   * Sets the consistency of the reads of an effect on this database. The innermost call counts.
   *
   * @see `Consistency.withSession` for reads of what a client has written in earlier units of work
   */
  readonly withConsistency: {
    (consistency: Consistency): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
    <A, E, R>(self: Effect.Effect<A, E, R>, consistency: Consistency): Effect.Effect<A, E, R>
  }
  /**
   * Sets the schema, or several in order, in which unqualified names in the statements of an effect
   * on this database are looked up. The innermost call counts. A qualified name is looked up in its
   * own schema, and the schema of a tenant takes precedence over this one. Statements fail with
   * `SchemaInvalid` if a name cannot be that of a schema. See `Tenant.withTenant` for the details.
   */
  readonly withSchema: {
    (schema: Schema): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
    <A, E, R>(self: Effect.Effect<A, E, R>, schema: Schema): Effect.Effect<A, E, R>
  }
  /**
   * Runs a hook before COMMIT, inside of the transaction; its failure rolls back, as `CommitVetoed`.
   * Outside of a transaction it runs at once.
   */
  readonly beforeCommit: <E, R>(hook: Effect.Effect<unknown, E, R>) => Effect.Effect<void, never, R | Self>
  /**
   * Runs a hook after COMMIT of the outermost transaction, outside of it. Its failure is logged.
   * Outside of a transaction it runs at once.
   */
  readonly afterCommit: <E, R>(hook: Effect.Effect<unknown, E, R>) => Effect.Effect<void, never, R | Self>
  /**
   * Runs a hook after a rollback of the transaction or savepoint in which it is registered, outside of
   * it. Its failure is logged.
   */
  readonly afterRollback: <E, R>(hook: Effect.Effect<unknown, E, R>) => Effect.Effect<void, never, R | Self>
  /**
   * Runs a hook after a COMMIT without an answer whose outcome could not be proved
   * (`CommitOutcomeUnknown`): the transaction may be stored or not. The hook runs outside of the
   * transaction, also if the caller of the transaction was interrupted before the answer arrived. A
   * failure of the hook is logged.
   */
  readonly afterUnknown: <E, R>(hook: Effect.Effect<unknown, E, R>) => Effect.Effect<void, never, R | Self>
  /**
   * Commits the work of the unit on this database so far; the next statement begins another
   * transaction. Without a unit it does nothing. Fails with `PropagationRefused` in a transaction by
   * `withTransaction` and in `UnitOfWork.nested`, with `TransactionBusy` while another commit of the
   * transaction is in progress, with `TransactionEnded` after the end of the unit, and otherwise as
   * the end of a transaction does.
   *
   * @see `UnitOfWork.commit` for all databases
   */
  readonly commit: Effect.Effect<void, TransactionError, Self>
  /**
   * Rolls back the work of the unit on this database so far; the next statement begins another
   * transaction. Without a unit it does nothing. Fails with `PropagationRefused` in a transaction by
   * `withTransaction` and in `UnitOfWork.nested`, and with `TransactionEnded` after the end of the
   * unit.
   *
   * @see `UnitOfWork.rollback` for all databases
   */
  readonly rollback: Effect.Effect<void, TransactionError, Self>
  /**
   * Runs an effect outside of every transaction of this database, each statement on a connection of
   * its own. Statements that belong together need `withTransaction` or a unit of work inside of the
   * effect. Such a unit of work has its own transaction on this database, and on other databases it
   * joins the unit around the effect.
   *
   * @see `UnitOfWork.outside` for all databases
   */
  readonly independent: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R | Self>
  /**
   * Returns the notifications of a channel (LISTEN), outside of every transaction. If the connection
   * is lost, the stream continues on another one with a `Gap`, because messages may be missing.
   *
   * All listeners of a database share one connection to the primary, beside its pools. Each listener
   * has a buffer of `bufferSize` messages (default 4096); if the buffer overflows, only this listener
   * receives a `Gap`.
   *
   * Fails with `NotificationInvalid` for a name that no channel can have, with `ConfigInvalid` behind
   * a transaction pooler, with `DatabaseClosed` when the layer is released, and with a permanent
   * failure to connect, such as a wrong password.
   *
   * The `listen` of a client returns only payloads, which cannot report a gap: it fails with
   * `ListenFailed` instead.
   */
  readonly listen: (
    channel: string,
    options?: { readonly bufferSize?: number | undefined }
  ) => Stream.Stream<Notification, ListenError, Self>
  /**
   * Sends a message (NOTIFY). In a transaction, the message is delivered after COMMIT, and equal
   * messages arrive as one. Fails with `NotificationInvalid`, or as a statement does.
   */
  readonly notify: (channel: string, payload?: string) => Effect.Effect<void, DatabaseError, Self>
  /** Returns the figures of this moment: servers, pools and open transactions. */
  readonly status: Effect.Effect<Status, never, Self>
  /**
   * Closes the open connections that match, as `mode` says, and returns their number. The listening
   * connection can match, too: with `"soft"` another connection takes over and no message is missed,
   * with `"hard"` its listeners receive a `Gap`.
   */
  readonly invalidate: (options?: Invalidate) => Effect.Effect<number, never, Self>
  /**
   * Holds back the checkouts of all pools, such as for a planned switch-over to another server, until
   * `resume`. Statements and transactions that hold a connection go on, and `drain` waits for their
   * end, at most for this time (default 0). Returns the number of connections that are still in use.
   * Callers wait until `acquireTimeout`, and then fail with `PoolExhausted` and the reason `paused`.
   * If the wait is interrupted, this call no longer holds checkouts back; `resume` ends the wait.
   *
   * A transaction that needs a second connection waits for `resume`, too. The proof of a COMMIT whose
   * answer was lost goes on: `drain` waits for its end, and it counts as a connection in use. The
   * listening connection is not affected. In a sandbox of `TestDatabase` it does nothing, and returns 0.
   */
  readonly pause: (options?: {
    readonly drain?: Duration.DurationInput | undefined
  }) => Effect.Effect<number, never, Self>
  /** Serves the callers that `pause` has held back. Has no effect if the database is not paused. */
  readonly resume: Effect.Effect<void, never, Self>
  /**
   * Returns the observations from the subscription on. Each consumer has a buffer of 4096
   * observations; if the buffer is full, the oldest are dropped.
   */
  readonly observations: Stream.Stream<Observation, never, Self>
}

/**
 * Tag of a named database, with its members.
 *
 * @see {@link Service}
 * @since 0.1.0
 * @category models
 */
export interface Class<Self, Name extends string> extends Context.Tag<Self, Database>, Members<Self> {
  new (_: never): Context.TagClassShape<`effect-db/Database/${Name}`, Database>
  /** The name of the database, in errors and observations. */
  readonly databaseName: Name
}

/** Checks if a transaction may become a part of the one around it. */
const joins = ({ propagation }: Transaction.Options): boolean =>
  propagation === "required" || propagation === "mandatory" || propagation === "supports"

const membersOf = <Self>(tag: Context.Tag<Self, Database>, name: string): Members<Self> => {
  const named = new NamedClass(name)
  const scoped = (options: Options) =>
    Layer.scoped(
      tag,
      Effect.flatMap(Effect.serviceOption(tag), (around) =>
        Effect.zipRight(takeName(named, Option.getOrUndefined(around)?.owner), openDatabase(named, options, makeListen))
      )
    ).pipe(Layer.provide(names), Layer.provide(Reactivity.layer))
  const layerConfig: Members<Self>["layerConfig"] = (config) =>
    Layer.unwrapEffect(Effect.map(configured<Options>(config), scoped))
  const own = (database: Database): Database => {
    checkOwner(named, database.owner)
    return database
  }
  const opened = Effect.map(tag, own)
  const client = (kind: Role | "any") => Effect.map(tag, (database) => own(database)[kind])
  const hook =
    (kind: RegisteredHook) =>
    <E, R>(effect: Effect.Effect<unknown, E, R>) =>
      Effect.flatMap(opened, ({ executor }) => registerHook(executor, kind, effect))
  return {
    layer: scoped,
    layerConfig,
    layerEnv: (prefix, options) => layerConfig({ ...options, writer: DatabaseConfig.fromEnv(prefix) }),
    layerSqlClient: Layer.effectContext(
      Effect.map(opened, ({ writer }) =>
        Context.make(SqlClient.SqlClient, writer).pipe(Context.add(PgClient.PgClient, writer))
      )
    ),
    writer: client("writer"),
    reader: client("reader"),
    any: client("any"),
    withTransaction: dual(
      (args) => Effect.isEffect(args[0]),
      <A, E, R>(self: Effect.Effect<A, E, R>, options: Transaction.Options = {}) => {
        const site = joins(options) ? callSiteOfPart(options.label) : callSite()
        return Effect.flatMap(opened, ({ executor }) =>
          withTransaction(executor, "writer", self, options, (error): TransactionError => error, site)
        )
      }
    ),
    withConsistency: dual(2, <A, E, R>(self: Effect.Effect<A, E, R>, consistency: Consistency) =>
      Effect.mapInputContext(self, (context: Context.Context<R>) =>
        Context.add(
          context,
          CurrentConsistency,
          new Map([...Context.get(context, CurrentConsistency), [name, consistency]])
        )
      )
    ),
    withSchema: dual(2, <A, E, R>(self: Effect.Effect<A, E, R>, schema: Schema) =>
      inScopes(self, schemaChange(name, schema))
    ),
    beforeCommit: hook("beforeCommit"),
    afterCommit: hook("afterCommit"),
    afterRollback: hook("afterRollback"),
    afterUnknown: hook("afterUnknown"),
    commit: Effect.flatMap(opened, ({ executor }) => endEarly(executor, "commit")),
    rollback: Effect.flatMap(opened, ({ executor }) => endEarly(executor, "rollback")),
    independent: (self) => Effect.flatMap(opened, ({ executor }) => runIndependent(self, executor)),
    listen: (channel, options) =>
      Stream.unwrap(Effect.map(opened, ({ listen }) => listen.notifications(channel, options))),
    notify: (channel, payload = "") => Effect.flatMap(opened, ({ writer }) => refine(writer.notify(channel, payload))),
    status: Effect.map(opened, ({ executor }) => ({
      database: name,
      servers: executor.topology.status,
      transactions: executor.openTransactions.list()
    })),
    invalidate: ({ mode = "soft", olderThan = 0, processId, server } = {}) =>
      Effect.map(opened, ({ executor, listen }) => {
        const before = clock.now() - Duration.toMillis(olderThan)
        const servers = executor.topology.servers.filter(({ name }) => server === undefined || name === server)
        const targets = servers.flatMap<Pick<Listen, "invalidate">>(({ pools, role }) =>
          role === "writer" ? [...pools, listen] : pools
        )
        return targets.reduce((sum, target) => sum + target.invalidate({ mode, before, processId }), 0)
      }),
    pause: ({ drain = 0 } = {}) =>
      Effect.flatMap(opened, ({ executor: { sandbox, topology } }) =>
        // a sandbox has its only connection already
        sandbox !== undefined
          ? Effect.succeed(0)
          : Effect.async<number>((resume) => {
              const cancel = topology.pause(Duration.toMillis(drain), (inUse) => resume(Effect.succeed(inUse)))
              return Effect.sync(cancel)
            })
      ),
    resume: Effect.map(opened, ({ executor }) => {
      if (executor.sandbox === undefined) executor.topology.resume()
    }),
    observations: Stream.unwrap(
      Effect.map(opened, ({ observers }) =>
        Stream.asyncPush<Observation>(
          (emit) =>
            Effect.acquireRelease(
              Effect.sync(() => observers.add((observation) => void emit.single(observation))),
              (remove) => Effect.sync(remove)
            ),
          { bufferSize: 4096, strategy: "sliding" }
        )
      )
    )
  }
}

/**
 * Makes the class of a named database.
 *
 * The name identifies the database in types, in transactions and in errors. Two classes with one name
 * in one context are refused with `ConfigInvalid`.
 *
 * @see {@link Members} for the members of the class
 * @see `DatabaseConfig.DatabaseOptions` for the settings of `layer`
 * @see `TestDatabase.layer` for a database in tests
 * @example
 * ```ts
 * import { Config, Effect } from "effect"
 * import { Database } from "effect-db"
 *
 * export class Db extends Database.Service<Db>()("app") {}
 *
 * export const DbLive = Db.layerConfig({ writer: Config.redacted("DATABASE_URL") })
 *
 * export const program = Effect.gen(function*() {
 *   const sql = yield* Db.writer
 *   return yield* sql<{ now: Date }>`SELECT now()`
 * }).pipe(Effect.provide(DbLive))
 * ```
 *
 * @since 0.1.0
 * @category constructors
 */
export const Service =
  <Self>() =>
  <const Name extends string>(name: Name): Class<Self, Name> => {
    const tag = Context.Tag(`effect-db/Database/${name}`)<Self, Database>()
    return Object.assign(tag, { databaseName: name, ...membersOf<Self>(tag, name) })
  }

/**
 * Returns a client of another library, or of another database layer, for use inside of transactions
 * of this library.
 *
 * The client does not take part in these transactions: its statements run on its own connections,
 * and an effect in its `withTransaction` runs outside of them. Without `isolate`, statements of the
 * client inside of a transaction fail with a `SqlError` whose cause is `ForeignClient`.
 *
 * @see `UnitOfWork.outside` for statements of this library outside of a transaction
 * @see `DatabaseError.ForeignClient` for the error without it
 * @example
 * ```ts
 * import { PgClient } from "@effect/sql-pg"
 * import { Effect, Redacted } from "effect"
 * import { Database } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const program = Effect.gen(function*() {
 *   const other = Database.isolate(yield* PgClient.make({ url: Redacted.make("postgres://localhost/other") }))
 *   yield* Db.withTransaction(other`SELECT 1`)
 * })
 * ```
 *
 * @since 0.1.0
 * @category combinators
 */
export const isolate = <Client extends SqlClient.SqlClient>(client: Client): Client => {
  const outside = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.mapInputContext(self, (context: Context.Context<R>) =>
      contextOf(context as Context.Context<never>) === undefined
        ? context
        : // the cast: the slot is not a part of R
          (Context.omit(SqlClient.TransactionConnection)(context) as Context.Context<R>)
    )
  // the cast: a statement has the arguments of its constructor, which its type does not show
  const { acquirer, compiler, spanAttributes, transformRows } = client.unsafe("") as unknown as {
    readonly acquirer: Parameters<typeof Statement.make>[0]
    readonly compiler: Statement.Compiler
    readonly spanAttributes: ReadonlyArray<readonly [string, unknown]>
    readonly transformRows: Parameters<typeof Statement.make>[3]
  }
  const statement = Statement.make(outside(acquirer), compiler, spanAttributes, transformRows)
  const isolated: Client = Object.assign(statement, {
    ...client,
    ...statement,
    withTransaction: <R, E, A>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E | SqlError, R> =>
      outside(client.withTransaction(self)),
    reserve: outside(client.reserve),
    withoutTransforms: () => isolate(client.withoutTransforms())
  })
  return Object.assign(isolated, { safe: isolated })
}
