/**
 * Layers of a program's databases for tests.
 *
 * - {@link layer}: one transaction that is always rolled back. It is the fastest.
 * - {@link layerTemplate}: a database of its own, a copy of a migrated one. COMMIT is real.
 * - {@link layerServer}: the server of a whole run of tests, below one of the others.
 * - {@link layerPglite}: PostgreSQL in the process, where no server can start.
 * - {@link layerRecorded}, {@link layerShuffled}: a recording, and another order of rows, on top of them.
 * - {@link layerFaults}: faults, on top of any but a sandbox, which is put over it.
 *
 * @since 0.1.0
 */

import * as Reactivity from "@effect/experimental/Reactivity"
import type { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { type Class, type Database, type Members, sandbox } from "./Database.js"
import type { ConfigInvalid, DatabaseError, StartupError } from "./DatabaseError.js"
import type { CommonOptions } from "./DatabaseOptions.js"
import type { DatabaseRuntime } from "./DatabaseRuntime.js"
import type { EmbeddedPostgres } from "./EmbeddedPostgres.js"
import type { Faults } from "./Fault.js"
import { runWithDatabases } from "./internal/runtime/asyncContext.js"
import * as expectations from "./internal/testing/expectations.js"
import * as files from "./internal/testing/hashFiles.js"
import { faultsOf, openWithFaults } from "./internal/testing/openFaults.js"
import { openInstrumented, openRecorded } from "./internal/testing/openInstrumented.js"
import { pgliteServer } from "./internal/testing/openPglite.js"
import * as tests from "./internal/testing/perTest.js"
import { serversFor } from "./internal/testing/publishedServer.js"
import { RowShuffle } from "./internal/testing/rowShuffle.js"
import { setUpServer } from "./internal/testing/serverOfRun.js"
import { openTemplate } from "./internal/testing/templateDatabase.js"
import type { Limits, NPlusOne, Recording, TooMany } from "./Recording.js"
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
 *   inside of another transaction is checked with that one. A constraint stays immediate after the
 *   first commit if another one of its schema has the same name and is not deferred at first.
 * - Notifications are delivered to the listeners of the same layer, and to no others. They are those
 *   of `notify`, and of a statement that is a NOTIFY or `SELECT pg_notify(...)` alone; those of other
 *   statements, such as in functions and triggers, are not seen.
 * - The settings of `SET LOCAL` and `set_config(..., true)` end, unless a function has set them.
 *   Temporary tables with ON COMMIT remain as they are.
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
 * - There are no replicas, no prepared transactions and no `terminateBackends`, and `copyFrom` fails
 *   with `QueryFailed`, because a PGlite cannot read its data.
 * - It has one database, so {@link layerTemplate} over this layer fails with `ConfigInvalid`. Use
 *   {@link layer} over it.
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
 * valid, without CREATEDB, behind a transaction pooler, and over a server with one database, such as
 * that of {@link layerPglite} (use {@link layer} over it); with `NoReplicaCaughtUp` if a replica does
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

/**
 * Records the statements and transactions of a database, with their outcomes and locations.
 *
 * The layer takes the open database, or a sandbox of it, and provides the same one with a recorder:
 * `recording` returns a value, and `expectAtMost` and `expectNoNPlusOne` make a test fail. Sandboxes
 * of the recorded database are recorded, too, so the layers can be stacked in any order, and the
 * recording is the same.
 *
 * - Each statement of the program is recorded once, with the number of times that it was sent. Each
 *   attempt of a retried transaction or unit of work is recorded as a transaction of its own.
 * - Streams, COPY and the statements of reserved connections are recorded. A stream outside of a
 *   transaction has one of its own, and each batch of 128 rows is an exchange. In a sandbox, a BEGIN,
 *   COMMIT or ROLLBACK by hand on a reserved connection is not sent and not recorded.
 * - Not recorded are `onConnect`, `onCheckout` and `resetOnReturn`, the work of pools, monitors and
 *   listeners, and the COMMIT PREPARED of units of work in two phases, which has its own connection.
 * - Each database has a recording of its own: a unit of work over two databases is in both.
 *
 * Provide the layer outside of transactions: statements in it do not take part in a transaction that
 * was begun outside of it.
 *
 * @see {@link recording} for the value
 * @see {@link layer} for a sandbox
 * @example
 * ```ts
 * import { Effect, Layer } from "effect"
 * import { Database, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * // recorded, in a sandbox
 * export const DbTest = TestDatabase.layerRecorded(Db).pipe(Layer.provide(TestDatabase.layer(Db)))
 *
 * export const test = Effect.gen(function* () {
 *   const sql = yield* Db.writer
 *   yield* Db.withTransaction(sql`INSERT INTO todo (title) VALUES ('milk')`)
 *   const { roundTrips, statements, transactions } = yield* TestDatabase.recording(Db)
 *   // 1 statement, committed; 2 round trips: BEGIN with the INSERT, and COMMIT
 *   return [statements, transactions, roundTrips]
 * }).pipe(Effect.provide(DbTest))
 * ```
 *
 * @since 0.3.0
 * @category layers
 */
export const layerRecorded = <Self>(tag: Context.Tag<Self, Database>): Layer.Layer<Self, never, Self> =>
  Layer.scoped(tag, Effect.flatMap(tag, openRecorded)).pipe(Layer.provide(Reactivity.layer))

/**
 * Options of `layerShuffled`.
 *
 * @see {@link layerShuffled}
 * @since 0.3.0
 * @category models
 */
export interface ShuffleOptions {
  /**
   * The seed of the order. The same seed gives the same order.
   *
   * @default 1
   */
  readonly seed?: number | undefined
}

/**
 * Delivers the rows of queries without ORDER BY in another order, so that a test fails if the
 * program relies on an order that nothing defines.
 *
 * PostgreSQL may return such rows in any order, but mostly does so in that of their insertion. The
 * order depends on the seed and the number of rows only, and is never that of the server.
 *
 * - Shuffled are the results of `SELECT` and `TABLE` on tables, views and subqueries without ORDER BY
 *   at the outermost level, each batch of a stream for itself. An ORDER BY in a subquery, in a window
 *   or in an aggregate does not order the result.
 * - Unchanged are queries with ORDER BY, also among rows with equal keys, and statements whose order
 *   is defined or uncertain: the rows of functions such as `generate_series`, VALUES, RETURNING,
 *   queries in parentheses, cursors, COPY, and several commands in one text.
 * - A query with LIMIT and without ORDER BY may return other rows as well; only their order changes.
 *
 * @see {@link layerRecorded}, with which it can be stacked
 * @example
 * ```ts
 * import { Effect, Layer } from "effect"
 * import { Database, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const DbTest = TestDatabase.layerShuffled(Db).pipe(Layer.provide(TestDatabase.layer(Db)))
 *
 * // two rows never arrive in the order of their insertion
 * export const test = Effect.gen(function* () {
 *   const sql = yield* Db.writer
 *   yield* sql`INSERT INTO todo (title) VALUES ('milk'), ('eggs')`
 *   return yield* sql`SELECT title FROM todo`
 * }).pipe(Effect.provide(DbTest))
 * ```
 *
 * @since 0.3.0
 * @category layers
 */
export const layerShuffled = <Self>(
  tag: Context.Tag<Self, Database>,
  { seed = 1 }: ShuffleOptions = {}
): Layer.Layer<Self, never, Self> =>
  Layer.scoped(
    tag,
    Effect.flatMap(tag, (database) => openInstrumented(database, new RowShuffle(seed)))
  ).pipe(Layer.provide(Reactivity.layer))

/**
 * Returns what has run on a recorded database since its layer was built, as a value.
 *
 * Fails with `ConfigInvalid` if the database is not recorded. If layers of `layerRecorded` are
 * stacked, the innermost one counts.
 *
 * @see {@link layerRecorded}
 * @see {@link recorded} for the recording of a part of a test
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const texts = Effect.map(TestDatabase.recording(Db), ({ statements }) =>
 *   statements.map(({ text }) => text)
 * )
 * ```
 *
 * @since 0.3.0
 * @category combinators
 */
export const recording: <Self>(tag: Context.Tag<Self, Database>) => Effect.Effect<Recording, ConfigInvalid, Self> =
  expectations.recording

/**
 * Runs an effect, and returns its result with the recording of its time.
 *
 * Statements that other fibers begin meanwhile are recorded as well. Fails as the effect does, and
 * with `ConfigInvalid` if the database is not recorded.
 *
 * @see {@link recording} for everything since the layer was built
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * const count = Effect.flatMap(Db.reader, (sql) => sql`SELECT count(*) FROM todo`)
 *
 * export const roundTrips = count.pipe(
 *   TestDatabase.recorded(Db),
 *   Effect.map(([_, { roundTrips }]) => roundTrips)
 * )
 * ```
 *
 * @since 0.3.0
 * @category combinators
 */
export const recorded: {
  <Self>(
    tag: Context.Tag<Self, Database>
  ): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<readonly [A, Recording], E | ConfigInvalid, R | Self>
  <A, E, R, Self>(
    self: Effect.Effect<A, E, R>,
    tag: Context.Tag<Self, Database>
  ): Effect.Effect<readonly [A, Recording], E | ConfigInvalid, R | Self>
} = dual(2, expectations.recorded)

/**
 * Runs an effect, and fails with `Recording.TooMany` if it has run more statements, transactions or
 * round trips than the limits allow. A plain number limits the statements.
 *
 * Fails as the effect does, and with `ConfigInvalid` if the database is not recorded or a limit is no
 * integer of at least 0.
 *
 * @see {@link layerRecorded}
 * @see {@link expectNoNPlusOne} for a check without a number
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * const titles = Effect.flatMap(Db.reader, (sql) => sql`SELECT title FROM todo ORDER BY title`)
 *
 * export const test = titles.pipe(TestDatabase.expectAtMost(Db, { statements: 1, roundTrips: 1 }))
 * ```
 *
 * @since 0.3.0
 * @category combinators
 */
export const expectAtMost: {
  <Self>(
    tag: Context.Tag<Self, Database>,
    limits: number | Limits
  ): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | ConfigInvalid | TooMany, R | Self>
  <A, E, R, Self>(
    self: Effect.Effect<A, E, R>,
    tag: Context.Tag<Self, Database>,
    limits: number | Limits
  ): Effect.Effect<A, E | ConfigInvalid | TooMany, R | Self>
} = dual(3, expectations.expectAtMost)

/**
 * Options of `expectNoNPlusOne`.
 *
 * @see {@link expectNoNPlusOne}
 * @since 0.3.0
 * @category models
 */
export interface NPlusOneOptions {
  /**
   * The number of runs of one statement that are accepted.
   *
   * @default 5
   */
  readonly most?: number | undefined
}

/**
 * Runs an effect, and fails with `Recording.NPlusOne` if it has run a statement with the same text,
 * from the same place, more than 5 times in a row: one query for each of N rows.
 *
 * Runs that overlap, and requests that a resolver batches into one statement, do not count as
 * repeated. Statements in between do not interrupt a row of runs. The place is the line of the
 * program that builds the statement. Fails as the effect does, and with `ConfigInvalid` if the
 * database is not recorded.
 *
 * @see {@link layerRecorded}
 * @see `Recording.Recording` for `repeated`, which has the numbers
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * const find = (id: number) => Effect.flatMap(Db.reader, (sql) => sql`SELECT * FROM todo WHERE id = ${id}`)
 *
 * // fails: 6 times the same statement
 * export const test = Effect.forEach([1, 2, 3, 4, 5, 6], find).pipe(TestDatabase.expectNoNPlusOne(Db))
 * ```
 *
 * @since 0.3.0
 * @category combinators
 */
export const expectNoNPlusOne: {
  <Self>(
    tag: Context.Tag<Self, Database>,
    options?: NPlusOneOptions
  ): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | ConfigInvalid | NPlusOne, R | Self>
  <A, E, R, Self>(
    self: Effect.Effect<A, E, R>,
    tag: Context.Tag<Self, Database>,
    options?: NPlusOneOptions
  ): Effect.Effect<A, E | ConfigInvalid | NPlusOne, R | Self>
} = dual(
  // a tag is an effect, too
  (args) => Context.isTag(args[1]),
  <A, E, R, Self>(self: Effect.Effect<A, E, R>, tag: Context.Tag<Self, Database>, { most }: NPlusOneOptions = {}) =>
    expectations.expectNoNPlusOne(self, tag, most)
)

/**
 * Returns the `it` of a group of `@effect/vitest` with a layer for each test: `it.effect`,
 * `it.scoped`, `it.live` and `it.scopedLive`, with their `only`, `each` and so on, build the layer
 * for the test, and release it at its end. Other members are unchanged.
 *
 * The group provides the database, and the layer gives each test a sandbox of it, or any other
 * database under the same tag. The scope of a test is closed before its layer. For several databases,
 * merge their layers.
 *
 * @see {@link layer} for a sandbox
 * @see {@link runPromise} for tests with promises
 * @example
 * ```ts
 * import { layer } from "@effect/vitest"
 * import { Effect, Redacted } from "effect"
 * import { Database, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * const DbLive = Db.layer({ writer: Redacted.make("postgres://me:secret@localhost/test") })
 *
 * layer(DbLive, { excludeTestServices: true })("todos", (group) => {
 *   const it = TestDatabase.perTest(group, TestDatabase.layer(Db))
 *
 *   it.effect("are rolled back after the test", () =>
 *     Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO todo (title) VALUES ('milk')`)
 *   )
 * })
 * ```
 *
 * @since 0.3.0
 * @category combinators
 */
export const perTest: <
  // a group that does not provide the databases does not compile
  It extends {
    readonly effect: (name: string, test: () => Effect.Effect<void, never, Layer.Layer.Context<L>>) => void
  },
  L extends Layer.Layer.Any
>(
  it: It,
  layer: L
) => It = tests.perTest

/**
 * Runs plain code as a test, with the databases of a layer in the place of those of a
 * `DatabaseRuntime`: mostly sandboxes, so that all work of the code is rolled back.
 *
 * The layer is built for the call, and released when the code is done or has thrown. Inside of the
 * code, and of the functions that it calls and awaits, the databases of the runtime are those of the
 * layer, also in `unitOfWork`, `runPromise` and a `handler` that the code calls. A server that
 * receives requests by a socket runs outside of the code, and uses the databases of the runtime.
 *
 * The promise rejects as the code does, or with the failure of the layer.
 *
 * @see {@link layer} for a sandbox
 * @see {@link perTest} for `@effect/vitest`
 * @example
 * ```ts
 * import { strictEqual } from "node:assert"
 * import { test } from "node:test"
 * import { Redacted } from "effect"
 * import { Database, DatabaseRuntime, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * const runtime = DatabaseRuntime.make(
 *   { db: Db },
 *   Db.layer({ writer: Redacted.make("postgres://me:secret@localhost/test") }),
 *   { lazy: true }
 * )
 * const { db } = runtime.databases
 *
 * test("a todo is added", () =>
 *   TestDatabase.runPromise(runtime, TestDatabase.layer(Db), async () => {
 *     await runtime.unitOfWork(() => db.writer`INSERT INTO todo (title) VALUES ('milk')`)
 *     const rows = await db.reader`SELECT title FROM todo`
 *     strictEqual(rows.length, 1)
 *   })
 * )
 * ```
 *
 * @since 0.3.0
 * @category combinators
 */
export const runPromise = <D, R, Out, E, In extends R, A>(
  runtime: DatabaseRuntime<D, R>,
  layer: Layer.Layer<Out, E, In>,
  code: () => PromiseLike<A> | A
): Promise<A> =>
  runtime.runPromise(
    Effect.scoped(Effect.flatMap(Layer.build(layer), (databases) => runWithDatabases(databases, code)))
  )
