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
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type Consistency, CurrentConsistency } from "./Consistency.js"
import type * as Copy from "./Copy.js"
import * as DatabaseConfig from "./DatabaseConfig.js"
import {
  ConnectFailed,
  type DatabaseError,
  type ListenError,
  refine,
  type StartupError,
  type TransactionError
} from "./DatabaseError.js"
import * as Client from "./internal/client/client.js"
import { Executor } from "./internal/client/executor.js"
import { makeLifecycleHooks } from "./internal/client/lifecycleHooks.js"
import { checkOwner, NamedClass, names, takeName } from "./internal/client/namedClass.js"
import * as clock from "./internal/concurrency/clock.js"
import { configured } from "./internal/config/configured.js"
import type { Connection } from "./internal/connection/connection.js"
import { makeCredentialSource } from "./internal/edge/credentials.js"
import { toDatabaseError } from "./internal/edge/databaseError.js"
import { revealRedactedValues } from "./internal/edge/redactedValues.js"
import { reportBeforeInterrupt } from "./internal/edge/reportBeforeInterrupt.js"
import { type Listen, makeListen } from "./internal/listen/streams.js"
import { callSite, callSiteOfPart, recordCallSites } from "./internal/observability/callSite.js"
import { makeLogger } from "./internal/observability/logger.js"
import { makePoolMetrics } from "./internal/observability/poolMetrics.js"
import type { Pool } from "./internal/pool/pool.js"
import { schemaChange } from "./internal/sql/schemaScopes.js"
import { proveRole } from "./internal/topology/serverRole.js"
import { Topology } from "./internal/topology/topology.js"
import { rollback } from "./internal/transaction/completion.js"
import { contextOf } from "./internal/transaction/context.js"
import { inScopes } from "./internal/transaction/contextSlot.js"
import type { RegisteredHook } from "./internal/transaction/hook.js"
import { registerHook } from "./internal/transaction/registerHook.js"
import { runIndependent } from "./internal/transaction/withTransaction.js"
import { endEarly } from "./internal/unitOfWork/endEarly.js"
import type { Notification } from "./Notification.js"
import type { Observation, Observer } from "./Observation.js"
import { Router } from "./Router.js"
import { type ConnectReason, isNotYet } from "./SqlState.js"
import type { Schema } from "./Tenant.js"
import type { OpenTransaction, Role, ServerStatus } from "./Topology.js"
import type * as Transaction from "./Transaction.js"
import type * as UnitOfWork from "./UnitOfWork.js"

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
  /** @internal */ readonly engine: Executor
  /** @internal */ readonly listen: Listen
  /** @internal */ readonly observers: Observers
  /** @internal The class that has opened it. */
  readonly owner: NamedClass
}

/** @internal */
export class Observers implements Observer {
  private readonly all = new Set<(observation: Observation) => void>()
  /** The servers of which it was told that they prove nothing. */
  private readonly unproved = new Set<string>()

  /** `tell` is for what nobody has asked to be told, and is to know all the same. */
  constructor(private readonly tell: (observation: Observation) => void) {}

  get active(): boolean {
    return this.all.size > 0
  }

  observe(given: Observation): void {
    // observations of the core are plain values, which are not equal by their fields
    const observation: Observation = Equal.isEqual(given) ? given : Data.struct(given)
    for (const one of this.all) one(observation)
    if (observation._tag === "Leaked") this.tell(observation)
    if (observation._tag === "PassedOver" && observation.reason === "unproved") this.tellOnce(observation)
  }

  private tellOnce(observation: Extract<Observation, { readonly _tag: "PassedOver" }>): void {
    if (this.unproved.has(observation.server)) return
    this.unproved.add(observation.server)
    this.tell(observation)
  }

  add(one: (observation: Observation) => void): () => void {
    this.all.add(one)
    return () => {
      this.all.delete(one)
    }
  }
}

const clients = (
  engine: Executor,
  observers: Observers,
  owner: NamedClass
): Effect.Effect<Database, never, Reactivity.Reactivity | Scope.Scope> =>
  Effect.gen(function* () {
    const listen = yield* makeListen(engine)
    const reader = yield* Client.make(engine, "reader", listen.payloads)
    return {
      writer: yield* Client.make(engine, "writer", listen.payloads),
      reader,
      // a reader's statement goes to what is open already wherever that is right
      any: reader,
      engine,
      listen,
      observers,
      owner
    }
  })

/** Opens one connection, to see that the server is there; while it fails for a reason that `waits` accepts, until `connectTimeout`. */
const verify = (
  pool: Pool,
  config: DatabaseConfig.DatabaseConfig,
  waits: (reason: ConnectReason) => boolean
): Effect.Effect<void, StartupError> =>
  Effect.suspend(() => {
    const last = clock.now() + pool.options.pool.connectTimeout
    // a connect that takes too long has its own timeout and says why: it comes first
    const deadline = last + 500
    const attempt = Effect.async<void, ConnectFailed>((resume) => {
      let asked: Connection | undefined
      const giveUp = pool.checkout(deadline, [], (failure, connection) => {
        const place = { database: config.name, server: pool.options.server.name }
        if (connection !== undefined) {
          asked = connection
          return proveRole(connection, deadline, (mismatch) => {
            pool.checkin(connection)
            resume(mismatch === undefined ? Effect.void : Effect.fail(new ConnectFailed({ ...place, ...mismatch })))
          })
        }
        const error = failure === undefined ? undefined : toDatabaseError(failure)
        resume(
          Effect.fail(
            error?._tag === "ConnectFailed"
              ? error
              : new ConnectFailed({
                  ...place,
                  reason: "unresponsive",
                  ...(error === undefined ? {} : { cause: error })
                })
          )
        )
      })
      return Effect.sync(() => (asked === undefined ? giveUp() : asked.abort("cancelled")))
    })
    return Effect.retry(attempt, {
      schedule: Schedule.spaced("100 millis"),
      while: (error) => waits(error.reason) && clock.now() + 100 < last
    })
  })

/**
 * Opens a database in a scope.
 *
 * @internal
 */
export const make = (
  owner: NamedClass,
  options: Options
): Effect.Effect<Database, StartupError, Reactivity.Reactivity | Scope.Scope> =>
  Effect.gen(function* () {
    const config = yield* DatabaseConfig.make(owner.name, options)
    const runtime = yield* Effect.runtime()
    revealRedactedValues()
    const credentials = (server: DatabaseConfig.ServerConfig) => makeCredentialSource(config, server, runtime)
    const isEchoing = config.echo !== LogLevel.None
    // who sets a threshold for leaks wants to know of them, whether he listens to facts or not
    const observers = new Observers(yield* makeLogger(isEchoing ? LogLevel.None : LogLevel.Warning))
    if (isEchoing) observers.add(yield* makeLogger(config.echo))
    // a server that does not take a goodbye is waited for once, not for one kind of connection after the other
    const sockets = yield* Scope.fork(yield* Effect.scope, ExecutionStrategy.parallel)
    const topology = yield* Effect.acquireRelease(
      Effect.sync(
        () => new Topology(config, credentials, makeLifecycleHooks(config, runtime), observers, makePoolMetrics)
      ),
      (topology) => Effect.async<void>((resume) => topology.close(config.shutdownTimeout, () => resume(Effect.void)))
    ).pipe(Scope.extend(sockets))
    const engine = new Executor(config, topology, observers, yield* Router, undefined)
    if (engine.isWatched) yield* Effect.acquireRelease(Effect.sync(recordCallSites), Effect.sync)
    const { readers, writer } = topology
    if (config.startup === "verify") {
      // a server that is started at the same time may not listen yet
      const comes = (reason: ConnectReason) => isNotYet(reason) || reason === "unreachable"
      if (writer.writes !== undefined) yield* reportBeforeInterrupt(verify(writer.writes, config, comes))
      yield* Effect.forEach(
        readers,
        (server) =>
          // reads go elsewhere, so this neither stops the start nor holds it up
          Effect.catchAll(verify(server.reads, config, isNotYet), (error) =>
            Effect.logWarning(`${error.message}; it is left out until it answers`)
          ).pipe(Effect.forkScoped),
        { discard: true }
      )
      for (const server of topology.servers) for (const pool of server.pools) pool.warm()
    }
    return yield* Scope.extend(clients(engine, observers, owner), sockets)
  })

/**
 * The same database, every transaction of which is a savepoint inside of one that is never committed.
 *
 * @internal
 */
export const sandbox = (live: Database): Effect.Effect<Database, never, Reactivity.Reactivity | Scope.Scope> =>
  Effect.gen(function* () {
    const { config, topology } = live.engine
    const engine = yield* Effect.withFiberRuntime<Executor, never, Scope.Scope>((fiber) => {
      const root = live.engine.begin("writer", {}, fiber, undefined)
      return Effect.as(
        Effect.addFinalizer(() => rollback(root, undefined)),
        new Executor(config, topology, live.observers, () => 0, root)
      )
    })
    return yield* clients(engine, live.observers, live.owner)
  })

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
export interface Members<Self> {
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
export interface Class<Self, Name extends string> extends Context.Tag<Self, Database>, Members<Self> {
  new (_: never): Context.TagClassShape<`effect-db/Database/${Name}`, Database>
  readonly databaseName: Name
}

/** Tells whether a transaction may turn out to be a part of the one around it. */
const joins = ({ propagation }: Transaction.Options): boolean =>
  propagation === "required" || propagation === "mandatory" || propagation === "supports"

const membersOf = <Self>(tag: Context.Tag<Self, Database>, name: string): Members<Self> => {
  const named = new NamedClass(name)
  const scoped = (options: Options) =>
    Layer.scoped(
      tag,
      Effect.flatMap(Effect.serviceOption(tag), (around) =>
        Effect.zipRight(takeName(named, Option.getOrUndefined(around)?.owner), make(named, options))
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
      Effect.flatMap(opened, ({ engine }) => registerHook(engine, kind, effect))
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
        return Effect.flatMap(opened, ({ engine }) =>
          Client.withTransaction(engine, "writer", self, options, (error): TransactionError => error, site)
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
    commit: Effect.flatMap(opened, ({ engine }) => endEarly(engine, "commit")),
    rollback: Effect.flatMap(opened, ({ engine }) => endEarly(engine, "rollback")),
    independent: (self) => Effect.flatMap(opened, ({ engine }) => runIndependent(self, engine)),
    listen: (channel, options) =>
      Stream.unwrap(Effect.map(opened, ({ listen }) => listen.notifications(channel, options))),
    notify: (channel, payload = "") => Effect.flatMap(opened, ({ writer }) => refine(writer.notify(channel, payload))),
    status: Effect.map(opened, ({ engine }) => ({
      database: name,
      servers: engine.topology.status,
      transactions: engine.transactions
    })),
    invalidate: ({ mode = "soft", olderThan = 0, processId, server } = {}) =>
      Effect.map(opened, ({ engine, listen }) => {
        const before = clock.now() - Duration.toMillis(olderThan)
        const meant = engine.topology.servers.filter(({ name }) => server === undefined || name === server)
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
    return Object.assign(tag, { databaseName: name, ...membersOf<Self>(tag, name) })
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
