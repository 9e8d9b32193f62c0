/**
 * Layers of a program's databases for tests.
 *
 * @since 0.1.0
 */
import * as Reactivity from "@effect/experimental/Reactivity"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { type Class, type Database, sandbox } from "./Database.js"
import type { ConfigInvalid, StartupError } from "./DatabaseError.js"
import type { CommonOptions } from "./DatabaseOptions.js"
import type { Faults } from "./Fault.js"
import { faultsOf, openWithFaults } from "./internal/testing/openFaults.js"
import { pgliteServer } from "./internal/testing/openPglite.js"
import type * as Transaction from "./Transaction.js"

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
