/**
 * Layers of a program's databases for tests.
 *
 * - {@link layer}: one transaction that is always rolled back. It is the fastest.
 * - {@link layerTemplate}: a database of its own, a copy of a migrated one. COMMIT is real.
 * - {@link layerServer}: the server of a whole run of tests, below one of the others.
 *
 * @since 0.1.0
 */

import * as Reactivity from "@effect/experimental/Reactivity"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { type Class, type Database, type Members, sandbox } from "./Database.js"
import type { ConfigInvalid, DatabaseError, StartupError } from "./DatabaseError.js"
import type { CommonOptions } from "./DatabaseOptions.js"
import type { EmbeddedPostgres } from "./EmbeddedPostgres.js"
import type { Faults } from "./Fault.js"
import * as files from "./internal/testing/hashFiles.js"
import { faultsOf, openWithFaults } from "./internal/testing/openFaults.js"
import { pgliteServer } from "./internal/testing/openPglite.js"
import { serversFor } from "./internal/testing/publishedServer.js"
import { setUpServer } from "./internal/testing/serverOfRun.js"
import { openTemplate } from "./internal/testing/templateDatabase.js"
import type * as Transaction from "./Transaction.js"
import type { Named } from "./UnitOfWork.js"

/**
 * Options of a sandbox.
 *
 * @see {@link layer}
 * @since 0.3.0
 * @category models
 */
export interface SandboxOptions {
  /**
   * The isolation of the one transaction, and so of all transactions of the program.
   *
   * @default "read committed"
   */
  readonly isolation?: Transaction.Isolation | undefined
}

/**
 * Wraps the layer of a database in a sandbox: one transaction that is always rolled back.
 *
 * In the sandbox the transactions of the program become savepoints, and their hooks run. Writers
 * and readers share the one connection, and a reader still cannot write. A new transaction
 * (`requiresNew`) and independent work are nested, because there is one connection. Concurrent
 * fibers take turns.
 *
 * The release of the savepoint stands for COMMIT, and does what COMMIT does:
 *
 * - Deferred constraints are checked, and deferred triggers run. A new transaction or independent work
 *   inside of another transaction is checked with that one.
 * - Notifications are delivered to the listeners of the same layer, and to no others. They are those
 *   of `notify`, of a NOTIFY and of `SELECT pg_notify(...)`; those of functions and triggers are not
 *   seen.
 * - The settings of `SET LOCAL` and `set_config(..., true)` end, unless a function has set them.
 *
 * Further rules:
 *
 * - A savepoint has no isolation of its own. A transaction with a higher isolation than that of the
 *   sandbox fails with `QueryFailed`, whose message names the option `isolation` of this layer.
 * - A server keeps a new transaction or independent work if the transaction around it is rolled back
 *   later, and a sandbox undoes both. It then fails all further statements with `QueryFailed`.
 * - An interrupted statement is undone, and so is the program's transaction around it, if there is
 *   one. The sandbox ends if the server does not confirm the cancel within a second; behind a pooler
 *   it always ends.
 * - A statement that would end the sandbox, such as COMMIT, fails with `QueryFailed`. On a
 *   reserved connection BEGIN, COMMIT and ROLLBACK act on a savepoint, and other statements wait
 *   while it is open.
 *
 * @see {@link layerTemplate} for a database of its own, with a real COMMIT and several connections
 * @see `Database.Members` for `layer`, which opens the database itself
 * @see `EmbeddedPostgres` for a server that the test starts
 * @example
 * ```ts
 * import { Layer, Redacted } from "effect"
 * import { Database, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * const DbLive = Db.layer({ writer: Redacted.make("postgres://me:secret@localhost/test") })
 *
 * // the tables exist, and each build of this layer finds them unchanged
 * export const DbTest = Layer.provide(TestDatabase.layer(Db), DbLive)
 * ```
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = <Self>(
  tag: Context.Tag<Self, Database>,
  options: SandboxOptions = {}
): Layer.Layer<Self, never, Self> =>
  Layer.scoped(
    tag,
    Effect.flatMap(tag, (live) => sandbox(live, options))
  ).pipe(Layer.provide(Reactivity.layer))

/**
 * Opens the database once more, with its settings, so that faults can happen on its connections.
 *
 * Without a fault it is the same as the database below. Faults are injected with {@link faults}, and
 * addressed by server and by statement. They happen between the program and its server, in this
 * process: other clients of the server are not affected, except by `promote` and `pauseReplay`.
 *
 * Fails as `Db.layer` does, and with `ConfigInvalid` over a sandbox, whose one connection is open
 * already. A sandbox over the faults has them, too.
 *
 * @see {@link faults} for the functions that inject faults
 * @see {@link layer} for the sandbox
 * @example
 * ```ts
 * import { Effect, Layer, Redacted } from "effect"
 * import { Database, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * const DbLive = Db.layer({ writer: Redacted.make("postgres://me:secret@localhost/test") })
 *
 * const DbTest = TestDatabase.layerFaults(Db).pipe(Layer.provide(DbLive))
 *
 * // the answer to the COMMIT is lost, and the server is asked whether it is stored
 * export const test = Effect.gen(function*() {
 *   const faults = yield* TestDatabase.faults(Db)
 *   yield* faults.loseAnswer({ statement: "COMMIT" })
 *   const sql = yield* Db.writer
 *   yield* Db.withTransaction(sql`INSERT INTO todo (title) VALUES ('milk')`)
 * }).pipe(Effect.scoped, Effect.provide(DbTest))
 * ```
 *
 * @since 0.3.0
 * @category layers
 */
export const layerFaults = <Self>(tag: Context.Tag<Self, Database>): Layer.Layer<Self, StartupError, Self> =>
  Layer.scoped(tag, Effect.flatMap(tag, openWithFaults)).pipe(Layer.provide(Reactivity.layer))

/**
 * Returns the functions that inject faults into a database.
 *
 * Fails with `ConfigInvalid` if there is no {@link layerFaults} below the database.
 *
 * @see {@link layerFaults}, which makes the faults possible
 * @see `Fault.Faults` for the faults
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * // runs an effect while no server of the database can be reached
 * export const inOutage = <A, E, R>(self: Effect.Effect<A, E, R>) =>
 *   Effect.scoped(
 *     Effect.gen(function*() {
 *       const faults = yield* TestDatabase.faults(Db)
 *       yield* faults.unreachable()
 *       return yield* self
 *     })
 *   )
 * ```
 *
 * @since 0.3.0
 * @category accessors
 */
export const faults = <Self>(tag: Context.Tag<Self, Database>): Effect.Effect<Faults, ConfigInvalid, Self> =>
  Effect.flatMap(tag, faultsOf)

/**
 * Options of a database in a PGlite.
 *
 * @see {@link layerPglite}
 * @since 0.3.0
 * @category models
 */
export interface PgliteOptions {
  /**
   * The effect that opens the PGlite, in memory or in a folder, with or without extensions. It is closed
   * with the layer.
   */
  readonly pglite: Effect.Effect<
    {
      readonly execProtocolRaw: (messages: Uint8Array) => Promise<Uint8Array>
      readonly close: () => Promise<void>
    },
    unknown
  >
  /**
   * The other options of the database.
   *
   * @default {} (the defaults of `Db.layer`, with one connection)
   */
  readonly options?: Omit<CommonOptions, "readers"> | undefined
}

/**
 * Opens a database in a PGlite: PostgreSQL compiled to WebAssembly, in this process, for places where no
 * server can start. The package `@electric-sql/pglite` is an optional peer.
 *
 * A PGlite has one session, and its connections have it in turns, each for one transaction:
 *
 * - `requiresNew` and other work that needs a second connection beside an open transaction fail with
 *   `PoolSelfDeadlock`. A read outside of an open transaction, such as an `Eventual` one, fails with
 *   `LockTimeout` after 2 seconds. With {@link layer} over this layer they run on one connection.
 * - Statements block the process, and cannot be cancelled.
 * - Temporary tables, and settings by SET without LOCAL, belong to all connections.
 * - There are no replicas, no prepared transactions and no `terminateBackends`.
 *
 * Fails with `ConfigInvalid` if the effect that opens the PGlite fails, and as `Db.layer` does.
 *
 * @see {@link layer} for a sandbox over it
 * @see `EmbeddedPostgres` for a server
 * @example
 * ```ts
 * import { PGlite } from "@electric-sql/pglite"
 * import { Effect, Layer } from "effect"
 * import { Database, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * const PgliteLive = TestDatabase.layerPglite(Db, { pglite: Effect.promise(() => PGlite.create()) })
 *
 * export const DbTest = Layer.provide(TestDatabase.layer(Db), PgliteLive)
 * ```
 *
 * @since 0.3.0
 * @category layers
 */
export const layerPglite = <Self, Name extends string>(
  database: Class<Self, Name>,
  { options, pglite }: PgliteOptions
): Layer.Layer<Self, StartupError> =>
  Layer.unwrapScoped(
    Effect.map(pgliteServer(database.databaseName, pglite), (writer) =>
      database.layer({ maxConnections: 1, ...options, writer })
    )
  )

/**
 * Options of {@link layerTemplate}.
 *
 * @see {@link layerTemplate}, which takes them
 * @since 0.3.0
 * @category models
 */
export interface TemplateOptions<E = never, R = never, E2 = never, R2 = never, E3 = never, R3 = never> {
  /**
   * The work that creates the tables, with the database of the template in the context. It runs with
   * the real clock, also under a `TestClock`, and outside of all transactions around the layer.
   */
  readonly migrate: Effect.Effect<unknown, E, R>
  /**
   * The work after `migrate`, such as rows that all tests need.
   *
   * @default undefined (no work)
   */
  readonly seed?: Effect.Effect<unknown, E2, R2> | undefined
  /**
   * A text that changes with `migrate` and `seed`, such as {@link hashFiles} of their files, or a
   * number that is raised by hand. The template of a hash is migrated once, and serves all processes
   * and all later runs with the same server, user, database and name of the database.
   *
   * An effect does not show the work that it does, so there is no hash by default: then the template
   * is migrated once for each open database that the layer is built on, such as once in each test
   * file, and dropped with it. That is slower, and never stale.
   *
   * @default undefined (no template is shared)
   */
  readonly hash?: string | Effect.Effect<string, E3, R3> | undefined
  /**
   * The number of copies that are prepared ahead in the background, from 0 to 100. They are there for
   * the next builds of the layer, while the database in the context is open.
   *
   * @default 0
   */
  readonly warm?: number | undefined
  /**
   * True if the database of a failed test is kept for a day, and its URL, without a password, is
   * printed. A test has failed if the scope of the layer ends with a failure: `Effect.provide` around
   * a test reports it, the `layer` of `@effect/vitest` around a block does not.
   *
   * @default false
   */
  readonly keepOnFailure?: boolean | undefined
}

/**
 * Provides a database of its own for each build of the layer: a copy of a template that is migrated
 * once.
 *
 * It takes the open database from the context, and provides the same one with another database on the
 * same servers: COMMIT is real, and so are several connections, replicas and notifications. The copy
 * is dropped when the layer is released. A build waits until the replicas have the copy.
 *
 * The user needs the privilege CREATEDB, and a server without a transaction pooler in between. The
 * template is a copy of `template1`. Settings by ALTER DATABASE and rights on the database itself are
 * not copied, as in each copy of a database.
 *
 * Databases that a killed process has left are dropped by the next one that builds such a layer on
 * the server. A template that no run has used for a week is dropped, too. The names of all these
 * databases begin with `effect_db_`.
 *
 * Fails as `migrate`, `seed` and `hash` do, with `SqlError` refined; then nothing of the template
 * remains, and the next build migrates again. Fails with `ConfigInvalid` for an option that is not
 * valid, without CREATEDB and behind a transaction pooler; with `NoReplicaCaughtUp` if a replica does
 * not have the copy within `acquireTimeout`; and as a statement and the layer of the database do.
 *
 * @see {@link layer} for a sandbox, which is faster
 * @see {@link layerServer} for the server below it
 * @example
 * ```ts
 * import { Effect, Layer } from "effect"
 * import { Database, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * const migrate = Effect.flatMap(Db.writer, (sql) => sql`CREATE TABLE todo (title text PRIMARY KEY)`)
 *
 * // each build has an empty table, and stores what its test commits
 * export const DbTest = TestDatabase.layerTemplate(Db, { migrate, hash: "1", warm: 2 })
 *
 * export const test = Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO todo VALUES ('milk')`).pipe(
 *   Db.withTransaction(),
 *   Effect.provide(DbTest),
 *   Effect.provide(TestDatabase.layerServer(Db))
 * )
 * ```
 *
 * @since 0.3.0
 * @category layers
 */
export const layerTemplate = <Self, E, R, E2 = never, R2 = never, E3 = never, R3 = never>(
  tag: Context.Tag<Self, Database>,
  options: TemplateOptions<E, R, E2, R2, E3, R3>
): Layer.Layer<
  Self,
  Exclude<E | E2 | E3, SqlError> | DatabaseError,
  Self | Exclude<Exclude<R | R2 | R3, Self>, Scope.Scope>
> => Layer.scoped(tag, openTemplate<Self, E | E2 | E3, R | R2 | R3>(tag, options)).pipe(Layer.provide(Reactivity.layer))

/**
 * Returns a hash of the names and the contents of files, for the option `hash` of
 * {@link layerTemplate}. Of a folder it takes all files, also those in its folders.
 *
 * Fails with `ConfigInvalid` if a path cannot be read.
 *
 * @see {@link TemplateOptions} for the option `hash`
 * @example
 * ```ts
 * import type { Effect } from "effect"
 * import { Database, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * declare const migrate: Effect.Effect<void, never, Db>
 *
 * export const DbTest = TestDatabase.layerTemplate(Db, { migrate, hash: TestDatabase.hashFiles("src/migrations") })
 * ```
 *
 * @since 0.3.0
 * @category constructors
 */
export const hashFiles = (...paths: ReadonlyArray<string>): Effect.Effect<string, ConfigInvalid> =>
  files.hashFiles(paths)

/**
 * Options of {@link serverSetup}.
 *
 * @see {@link serverSetup}, which takes them
 * @since 0.3.0
 * @category models
 */
export interface ServerSetupOptions
  extends Pick<EmbeddedPostgres.Options, "replicas" | "databases" | "settings" | "startTimeout" | "port"> {
  /**
   * The folder in which an embedded server creates its own folder.
   *
   * @default `/dev/shm`, which is in memory, if 1 GiB is free there, else os.tmpdir()
   */
  readonly directory?: string | undefined
  /**
   * The connection string of a server that is running already, in place of an embedded one.
   *
   * @default a connection string in `EFFECT_DB_TEST_SERVER`, else an embedded server is started
   */
  readonly url?: string | Redacted.Redacted<string> | undefined
  /**
   * The connection strings of the replicas of the server in `url`.
   *
   * @default []
   */
  readonly readers?: ReadonlyArray<string | Redacted.Redacted<string>> | undefined
}

/**
 * Returns the global setup of a test runner: a function that starts a server for the whole run, and
 * returns a function that ends it.
 *
 * The server is an embedded one with `replicas`, in memory where there is room, or the one of `url`.
 * An embedded one has 300 connections and 100 prepared transactions, unless `settings` says otherwise.
 * All worker processes use it by {@link layerServer}: they inherit the variable
 * `EFFECT_DB_TEST_SERVER`, which has its addresses. If the variable already has a connection string,
 * such as in a CI with a server of its own, that server is used, and none is started.
 *
 * `databases` are created for the run. On a given server they have names of their own, and are
 * dropped at the end of the run; the options of an embedded server do not apply there.
 *
 * If the run is killed, an embedded server ends, and the databases on a given server are dropped by
 * the next run. The function rejects with the failure of the start.
 *
 * @see {@link layerServer}, which opens a database on the server
 * @see `EmbeddedPostgres` for a server within a test, which can be stopped and promoted
 * @example
 * ```ts
 * import { TestDatabase } from "effect-db"
 *
 * // a file that vitest.config.ts names as `globalSetup`
 * export default TestDatabase.serverSetup({ replicas: 1 })
 * ```
 *
 * @since 0.3.0
 * @category constructors
 */
export const serverSetup =
  (options: ServerSetupOptions = {}): (() => Promise<() => Promise<void>>) =>
  () =>
    setUpServer(options)

/**
 * Options of {@link layerServer}: the settings of the database, without its servers.
 *
 * @see {@link layerServer}, which takes them
 * @since 0.3.0
 * @category models
 */
export interface ServerDatabaseOptions extends Omit<CommonOptions, "readers" | "discover" | "discoverInterval"> {
  /**
   * The database on the server: one of `databases` of {@link serverSetup}, or another one.
   *
   * @default the one of `databases` with the name of the class, else that of the connection string,
   * which for an embedded server is `postgres`
   */
  readonly database?: string | undefined
}

/**
 * Opens a database on the server of the run, which {@link serverSetup} has started.
 *
 * All tests share that database, so a test runs in {@link layer} or {@link layerTemplate} on top of
 * it. `EFFECT_DB_TEST_SERVER` is read by `ConfigProvider`; its value may also be a connection string
 * that was set by hand.
 *
 * Fails with `ConfigInvalid` if the variable is not set, and as the layer of the database does.
 *
 * @see {@link serverSetup} for the server
 * @see `Database.Members` for `layer`, which opens the database with its own settings
 * @example
 * ```ts
 * import { Layer } from "effect"
 * import { Database, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 * class Audit extends Database.Service<Audit>()("audit") {}
 *
 * export const DatabasesLive = Layer.mergeAll(
 *   TestDatabase.layerServer(Db),
 *   TestDatabase.layerServer(Audit, { maxConnections: 2 })
 * )
 * ```
 *
 * @since 0.3.0
 * @category layers
 */
export const layerServer = <Self>(
  database: Named & Pick<Members<Self>, "layer">,
  { database: name, ...options }: ServerDatabaseOptions = {}
): Layer.Layer<Self, StartupError> =>
  Layer.unwrapEffect(
    Effect.map(serversFor(database.databaseName, name), (servers) => database.layer({ ...options, ...servers }))
  )
