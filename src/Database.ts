/**
 * Named databases: one class each, whose name is a type, so that a program that forgets to provide one does not compile.
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
import type { Executor } from "./internal/client/executor.js"
import { checkOwner, NamedClass, names, takeName } from "./internal/client/namedClass.js"
import { openDatabase, openSandbox } from "./internal/client/openDatabase.js"
import * as clock from "./internal/concurrency/clock.js"
import { configured } from "./internal/config/configured.js"
import { type Listen, makeListen } from "./internal/listen/streams.js"
import { callSite, callSiteOfPart } from "./internal/observability/callSite.js"
import type { Observers } from "./internal/observability/observers.js"
import { schemaChange } from "./internal/sql/schemaScopes.js"
import { contextOf } from "./internal/transaction/context.js"
import { inScopes } from "./internal/transaction/contextSlot.js"
import { type RegisteredHook, registerHook } from "./internal/transaction/hooks.js"
import { runIndependent } from "./internal/transaction/withTransaction.js"
import type { Notification } from "./Notification.js"
import type { Observation } from "./Observation.js"
import type { Schema } from "./Tenant.js"
import type { OpenTransaction, Role, ServerStatus } from "./Topology.js"
import type * as Transaction from "./Transaction.js"
import * as UnitOfWork from "./UnitOfWork.js"

/**
 * The settings of a database.
 *
 * @since 0.1.0
 * @category models
 */
export type Options = DatabaseConfig.DatabaseOptions

/**
 * A database's figures at one moment.
 *
 * @since 0.1.0
 * @category models
 */
export interface Status {
  readonly database: string
  readonly servers: ReadonlyArray<ServerStatus>
  readonly transactions: ReadonlyArray<OpenTransaction>
}

/**
 * An opened database.
 *
 * @since 0.1.0
 * @category models
 */
export interface Database {
  readonly writer: Copy.Client
  readonly reader: Copy.Client
  readonly any: Copy.Client
  /** @internal */ readonly executor: Executor
  /** @internal */ readonly listen: Listen
  /** @internal */ readonly observers: Observers
  /** @internal The class that has opened it. */
  readonly owner: NamedClass
}

/**
 * Opens the same database with every transaction as a savepoint of a transaction that is never
 * committed.
 *
 * @internal
 */
export const sandbox = (live: Database): Effect.Effect<Database, never, Reactivity.Reactivity | Scope.Scope> =>
  openSandbox(live, makeListen)

/**
 * Which connections are to be closed, and how.
 *
 * @since 0.1.0
 * @category models
 */
export interface Invalidate {
  readonly mode?: "soft" | "hard" | undefined
  /** Only those that have been open for longer. */
  readonly olderThan?: Duration.DurationInput | undefined
  /** Only the one of this server process, as `pg_backend_pid()` gives it. */
  readonly processId?: number | undefined
  /** Only those of this server, as `status` names it. */
  readonly server?: string | undefined
}

/**
 * The members of a named database's class.
 *
 * @since 0.1.0
 * @category models
 */
export interface Statics<Self> {
  /** Opens the database for as long as the layer lives, then drains and closes it. */
  readonly layer: (options: Options) => Layer.Layer<Self, StartupError>
  /** The same, with settings from `Config`, beside others as plain values. */
  readonly layerConfig: (
    config: DatabaseConfig.ConfigOptions | Config.Config<Options>
  ) => Layer.Layer<Self, StartupError | ConfigError.ConfigError>
  /**
   * The same, with the writer from libpq's environment: `PGHOST`, `PGUSER` and so on, each with `prefix` before its name, the service file
   * and the password file. See `DatabaseConfig.fromEnv`.
   */
  readonly layerEnv: (
    prefix?: string,
    options?: Omit<DatabaseConfig.ConfigOptions, "writer">
  ) => Layer.Layer<Self, StartupError | ConfigError.ConfigError>
  /** The writer under the ecosystem's own tags, for Migrator, Model, SqlResolver, sql-drizzle, sql-kysely. */
  readonly layerSqlClient: Layer.Layer<SqlClient.SqlClient | PgClient.PgClient, never, Self>
  /** The client of the primary. Getting it opens nothing. */
  readonly writer: Effect.Effect<Copy.Client, never, Self>
  /** The client of a replica, or of the primary, read-only; the server refuses writes. Getting it opens nothing. */
  readonly reader: Effect.Effect<Copy.Client, never, Self>
  /** The client for reads in what is open already, a reader's transaction before a writer's, else as `reader`. */
  readonly any: Effect.Effect<Copy.Client, never, Self>
  /** Runs an effect in a transaction on the primary. Nothing is sent before its first statement. */
  readonly withTransaction: {
    // the last one is what a pipe looks at, which so refuses it where it is not called, and says how to
    <A, E, R>(
      self: Effect.Effect<A, E, R>,
      options?: Transaction.Options
    ): Effect.Effect<A, E | TransactionError, R | Self>
    (
      options?: Transaction.Options & UnitOfWork.Called<"withTransaction()">
    ): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | TransactionError, R | Self>
  }
  /** What reads of this database must see, for one effect. */
  readonly withConsistency: {
    (consistency: Consistency): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
    <A, E, R>(self: Effect.Effect<A, E, R>, consistency: Consistency): Effect.Effect<A, E, R>
  }
  /**
   * Where the unqualified names of this database's statements are looked up, for one effect: in one schema, or in several, one after the
   * other. The innermost counts; a name that is qualified is looked up where it says, and a tenant's schema is before this one: see
   * `Tenant.withTenant`, which also says how.
   */
  readonly withSchema: {
    (schema: Schema): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
    <A, E, R>(self: Effect.Effect<A, E, R>, schema: Schema): Effect.Effect<A, E, R>
  }
  /** Before COMMIT, inside of the transaction; a failure rolls it back, as `CommitVetoed`. Outside of one: at once. */
  readonly beforeCommit: <E, R>(hook: Effect.Effect<unknown, E, R>) => Effect.Effect<void, never, R | Self>
  /** After COMMIT of the outermost transaction, outside of it. A failure is reported. Outside of one: at once. */
  readonly afterCommit: <E, R>(hook: Effect.Effect<unknown, E, R>) => Effect.Effect<void, never, R | Self>
  /** After a rollback, of the transaction or of the savepoint it was registered in; outside of it. A failure is reported. */
  readonly afterRollback: <E, R>(hook: Effect.Effect<unknown, E, R>) => Effect.Effect<void, never, R | Self>
  /**
   * After a COMMIT whose answer did not come (`CommitOutcomeUnknown`), also where the caller was interrupted meanwhile and waits no longer;
   * outside of the transaction, which may be stored or not. A failure is reported.
   */
  readonly afterUnknown: <E, R>(hook: Effect.Effect<unknown, E, R>) => Effect.Effect<void, never, R | Self>
  /** Commits what the unit of work has done so far on this database; the next statement begins another transaction. */
  readonly commit: Effect.Effect<void, TransactionError, Self>
  /** Rolls back what the unit of work has done so far on this database; the next statement begins another transaction. */
  readonly rollback: Effect.Effect<void, TransactionError, Self>
  /**
   * Runs an effect outside of every transaction of this database, each statement on a connection of its own. What is to be one whole in it
   * is a `withTransaction`, or a unit of work: on this database that has a transaction of its own, on others it leaves its end to a unit
   * around it.
   */
  readonly independent: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R | Self>
  /**
   * Hears a channel (LISTEN), outside of every transaction. After a loss it goes on, with a `Gap` first: messages may have been missed.
   *
   * All listeners of a database share one connection to the primary, beside its pools; each has a buffer of its own, of `bufferSize`
   * messages (default 4096), and one who lets it overflow gets a `Gap` and disturbs nobody. What a person must mend fails the stream.
   *
   * The `listen` of a client gives payloads only, in which a gap has no place: it fails with `ListenFailed` instead.
   */
  readonly listen: (
    channel: string,
    options?: { readonly bufferSize?: number | undefined }
  ) => Stream.Stream<Notification, ListenError, Self>
  /** Sends a message (NOTIFY); inside of a transaction on its COMMIT, or never. Equal ones of one transaction arrive as one. */
  readonly notify: (channel: string, payload?: string) => Effect.Effect<void, DatabaseError, Self>
  /** The figures of this moment. */
  readonly status: Effect.Effect<Status, never, Self>
  /**
   * Closes connections that are open, and gives how many it meant: `"soft"` (default) at their next checkout or when they come back,
   * `"hard"` now, with what is under way on them. Without more options it means all. Of the listening connection `"soft"` means that
   * another takes over, and nothing is missed; `"hard"` makes a `Gap`.
   */
  readonly invalidate: (options?: Invalidate) => Effect.Effect<number, never, Self>
  /** What happens, live. A consumer who is slow loses the oldest facts. */
  readonly observations: Stream.Stream<Observation, never, Self>
}

/**
 * The tag of a named database, with its members.
 *
 * @since 0.1.0
 * @category models
 */
export interface Class<Self, Name extends string> extends Context.Tag<Self, Database>, Statics<Self> {
  new (_: never): Context.TagClassShape<`effect-db/Database/${Name}`, Database>
  readonly databaseName: Name
}

/** Tells whether a transaction may turn out to be a part of the one around it. */
const joins = ({ propagation }: Transaction.Options): boolean =>
  propagation === "required" || propagation === "mandatory" || propagation === "supports"

const statics = <Self>(tag: Context.Tag<Self, Database>, name: string): Statics<Self> => {
  const named = new NamedClass(name)
  const scoped = (options: Options) =>
    Layer.scoped(
      tag,
      Effect.flatMap(Effect.serviceOption(tag), (around) =>
        Effect.zipRight(takeName(named, Option.getOrUndefined(around)?.owner), openDatabase(named, options, makeListen))
      )
    ).pipe(Layer.provide(names), Layer.provide(Reactivity.layer))
  const layerConfig: Statics<Self>["layerConfig"] = (config) =>
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
    commit: Effect.flatMap(opened, ({ executor }) => UnitOfWork.endEarly(executor, "commit")),
    rollback: Effect.flatMap(opened, ({ executor }) => UnitOfWork.endEarly(executor, "rollback")),
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
        const meant = executor.topology.servers.filter(({ name }) => server === undefined || name === server)
        const targets = meant.flatMap<Pick<Listen, "invalidate">>(({ pools, role }) =>
          role === "writer" ? [...pools, listen] : pools
        )
        return targets.reduce((sum, target) => sum + target.invalidate({ mode, before, processId }), 0)
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
 * Makes the class of a named database. The name tells databases apart, in types, in transactions and in errors.
 *
 * @example
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
 *
 * @since 0.1.0
 * @category constructors
 */
export const Service =
  <Self>() =>
  <const Name extends string>(name: Name): Class<Self, Name> => {
    const tag = Context.Tag(`effect-db/Database/${name}`)<Self, Database>()
    return Object.assign(tag, { databaseName: name, ...statics<Self>(tag, name) })
  }

/**
 * A client of another library, or of another database layer, that may be used inside of our transactions: it does not see them, and its
 * statements run on its own connections. Inside of its own `withTransaction` ours are not seen either.
 *
 * @since 0.1.0
 * @category combinators
 */
export const isolate = <Client extends SqlClient.SqlClient>(client: Client): Client => {
  const outside = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.mapInputContext(self, (context: Context.Context<R>) =>
      contextOf(context as Context.Context<never>) === undefined
        ? context
        : // the slot is no part of R
          (Context.omit(SqlClient.TransactionConnection)(context) as Context.Context<R>)
    )
  // a statement has more than its type shows: what it was made with
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
