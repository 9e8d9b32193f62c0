/**
 * A unit of work: one transaction for each database that an effect uses, all ended together.
 *
 * A transaction begins with the first statement on its database. The end of the unit commits all of
 * them, or rolls all of them back.
 *
 * These functions and options run work inside or outside of the transactions around it:
 *
 * | function | statements in it run in | sees uncommitted work around it | is undone with the work around it |
 * |---|---|---|---|
 * | {@link run} | the unit around it, else a new one | yes | yes |
 * | {@link nested} | savepoints in the unit around it, else a new unit | yes | yes; it can also fail alone |
 * | {@link runNew} | a new unit, for all databases | no | no |
 * | `propagation: "requiresNew"` | a new transaction, for one database | not on this database | not on this database |
 * | {@link outside} | no transaction, for all databases | no | no |
 * | `Db.independent` | no transaction, for one database | not on this database | not on this database |
 * | `propagation: "notSupported"` | no transaction, for one database | not on this database | not on this database |
 * | {@link detach} | no transaction; it takes a stream that is read after the unit | no | no |
 * | `Database.isolate` | the connections of a client of another library | no | no |
 *
 * New transactions, and statements outside of transactions, use connections of their own, while the
 * work around them holds others. A checkout that could never succeed fails at once with
 * `PoolSelfDeadlock`. In {@link outside} and {@link detach} the pool does not know of the work around
 * them, so a checkout there waits for `acquireTimeout` and fails with `PoolExhausted`.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import { dual } from "effect/Function"
import type * as Schedule from "effect/Schedule"
import type * as Stream from "effect/Stream"
import type { DatabaseError, TransactionError } from "./DatabaseError.js"
import { withoutSlot } from "./internal/transaction/transactionSlot.js"
import { detachStream } from "./internal/unitOfWork/detachStream.js"
import { endAll } from "./internal/unitOfWork/manualCompletion.js"
import { runNested, runSeparateUnit, runUnit } from "./internal/unitOfWork/runUnit.js"
import type * as Transaction from "./Transaction.js"

/**
 * The end of a unit of work.
 *
 * @see {@link Options} for the option `outcome`
 * @since 0.1.0
 * @category models
 */
export type Outcome = "commit" | "rollback"

/**
 * Settings for the transactions of a unit. A setting that is left out has the value of the database
 * or of the server.
 *
 * @see {@link on} for the settings of one database
 * @since 0.1.0
 * @category options
 */
export type UnitSettings = Transaction.Settings

/**
 * Names of a piece of work for observers of the database.
 *
 * @see {@link Options} for the option `work`
 * @since 0.1.0
 * @category models
 */
export type WorkLabel = Transaction.WorkLabel

/**
 * A named database, as a unit of work refers to it: the class that `Database.Service` has made.
 *
 * @see `Database.Service`, which makes the class
 * @since 0.1.0
 * @category models
 */
export interface Named {
  /** The name of the database. */
  readonly databaseName: string
}

/**
 * Settings for the transactions of one database.
 *
 * @see {@link on} creates them
 * @since 0.1.0
 * @category options
 */
export interface DatabaseSettings {
  /** The name of the database. */
  readonly database: string
  /** The settings that override those for all databases. */
  readonly settings: UnitSettings
}

/**
 * The options of {@link run} and {@link runNew}.
 *
 * A part that joins a unit passes its options to the unit. Settings apply to transactions that have
 * not begun yet. If the unit cannot take an option, the part fails with `OptionsConflict`.
 *
 * @see {@link NestedOptions} for the options of {@link nested}
 * @since 0.1.0
 * @category options
 */
export interface Options<A, E> {
  /**
   * Decides how the unit ends.
   *
   * @default a success commits; a failure, a defect and an interruption roll back
   */
  readonly outcome?: ((exit: Exit.Exit<A, E>) => Outcome) | undefined
  /**
   * Settings for the transactions of all databases.
   *
   * @default {} (those of each database and server)
   */
  readonly transaction?: UnitSettings | undefined
  /**
   * Settings for single databases. Each given setting overrides the setting in `transaction`.
   *
   * @default []
   */
  readonly databases?: ReadonlyArray<DatabaseSettings> | undefined
  /**
   * The order of commits of several databases.
   *
   * - `"safest"`: the COMMIT that is least likely to fail comes last: serializable transactions
   *   first, read-only ones last, the others in the order in which they began.
   * - `"touched"`: the order in which the transactions began.
   * - a list: the order of the list; databases that are not in the list follow.
   *
   * @default "safest"
   */
  readonly order?: "safest" | "touched" | ReadonlyArray<Named> | undefined
  /**
   * Checks deferred constraints of all databases but the first before any COMMIT, at the same time
   * and in one round trip. A violated constraint then undoes all transactions. Without the check, a
   * COMMIT could fail after another database has committed, which is a `PartialCommit`.
   *
   * @default true
   */
  readonly checkFirst?: boolean | undefined
  /**
   * `"twoPhase"` stores the work of several databases as a whole, whatever fails: all but one are
   * prepared (PREPARE TRANSACTION), the COMMIT of the last one decides, and the others follow. There is
   * no `PartialCommit`. If the process is killed in between, each database that is open with the option
   * `twoPhase` finds what is left, about 10 seconds after twice its `resolveWithin` at the latest, and
   * ends it by the decision. Until then its rows are locked.
   *
   * It costs two round trips more than the commits alone, and needs the option `twoPhase` on each
   * database that stores something, which is each one on which the unit has run a statement of the
   * writer, also a SELECT: otherwise the unit is rolled back, and fails with `ConfigInvalid`. It fails
   * with `OptionsConflict` if a transaction around the unit has a part of the work. A transaction that
   * has used LISTEN, NOTIFY, temporary tables, cursors WITH HOLD or exported snapshots cannot be
   * prepared, which is `CommitFailed`. A unit that stores work in a single database ends as it does
   * without the option, and so does an early end of one database alone (`Db.commit`, `Db.rollback`): it is not
   * held back for the others.
   *
   * @see `DatabaseConfig.DatabaseOptions` for `twoPhase`
   * @default undefined (one COMMIT after the other)
   */
  readonly atomic?: "twoPhase" | undefined
  /**
   * Runs the whole unit again, from its start, if all of it is undone and another attempt may
   * succeed: after a serialization failure, a deadlock or a lost connection. `true` follows the
   * `RetryPolicy`.
   *
   * The failures of its statements decide, even if the program has converted them into another error,
   * a defect or a rollback. A unit is not run again if it was interrupted, if a part of it is stored,
   * by `Db.commit` or in another database, or if a part of it is in a transaction around it. A part
   * that joins requests the option for the unit, and fails with `OptionsConflict` if the unit cannot
   * be run again.
   *
   * @default false
   */
  readonly retry?: boolean | Schedule.Schedule<unknown, DatabaseError> | undefined
  /**
   * Names of the work in observations, in `Db.status`, in `pg_stat_activity` and behind statements.
   *
   * @default undefined (no names)
   */
  readonly work?: WorkLabel | undefined
}

/**
 * The options of {@link nested}.
 *
 * @see {@link Options} for the options of {@link run}
 * @since 0.2.0
 * @category options
 */
export interface NestedOptions<A, E> extends Pick<Options<A, E>, "outcome" | "work"> {}

/**
 * Options that are not an effect.
 *
 * A pipe that is given a function such as `UnitOfWork.run`, and not the result of its call, does not
 * compile, and the type error says that it must be called.
 *
 * @see {@link run} for the call
 * @since 0.2.0
 * @category models
 */
export interface Called<Name extends string> {
  readonly [Effect.EffectTypeId]?: `In a pipe it has to be called: ${Name}`
}

/**
 * Creates settings for the transactions of one database of a unit.
 *
 * @see {@link Options} for the option `databases`
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, UnitOfWork } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 * class Audit extends Database.Service<Audit>()("audit") {}
 *
 * declare const work: Effect.Effect<void, never, Db | Audit>
 *
 * export const program = UnitOfWork.run(work, {
 *   databases: [
 *     UnitOfWork.on(Db, { isolation: "serializable" }),
 *     UnitOfWork.on(Audit, { statementTimeout: "1 second" })
 *   ],
 *   order: [Audit, Db]
 * })
 * ```
 *
 * @since 0.1.0
 * @category constructors
 */
export const on = ({ databaseName }: Named, settings: UnitSettings): DatabaseSettings => ({
  database: databaseName,
  settings
})

/**
 * Runs an effect as one unit of work: each database that it uses gets one transaction, and at the
 * end all commit, or all roll back.
 *
 * Inside of another unit, or of a transaction, the effect joins it as a part, and is committed or
 * rolled back at its end. If a part ends in rollback after a writer's statement, the unit fails with
 * `RolledBackAtCommit`.
 *
 * Databases are committed one after the other, after a check of all: see {@link Options}. It fails as
 * the effect does, as a statement does, and with these errors:
 *
 * - `CommitFailed`, `RolledBackAtCommit`, `CommitVetoed`: nothing is stored.
 * - `PartialCommit`: a database could not be committed after another one was.
 * - `CommitOutcomeUnknown`: the answer to a COMMIT was lost, and its outcome could not be proved.
 * - `OptionsConflict`: the unit that it joins cannot take its options. Nothing has run.
 *
 * @see {@link nested} for a part that can fail alone
 * @see {@link runNew} for a unit that does not join
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, UnitOfWork } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 * class Audit extends Database.Service<Audit>()("audit") {}
 *
 * export const add = Effect.gen(function*() {
 *   const sql = yield* Db.writer
 *   const log = yield* Audit.writer
 *   yield* sql`INSERT INTO todo (title) VALUES ('milk')`
 *   yield* log`INSERT INTO event (what) VALUES ('todo.added')`
 * }).pipe(UnitOfWork.run({ retry: true }))
 * ```
 *
 * @since 0.1.0
 * @category combinators
 */
export const run: {
  // TypeScript compares a function in a pipe with its last overload, so `run` without a call does not
  // compile there, and the type error says that it must be called
  <A, E, R>(self: Effect.Effect<A, E, R>, options?: Options<A, E>): Effect.Effect<A, E | TransactionError, R>
  <A, E>(
    options?: Options<A, E> & Called<"UnitOfWork.run()">
  ): <R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | TransactionError, R>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(self: Effect.Effect<A, E, R>, options: Options<A, E> = {}): Effect.Effect<A, E | TransactionError, R> =>
    runUnit(self, options)
)

/**
 * Runs an effect in a new unit of work, even inside of another one.
 *
 * The two units do not share transactions: each commits or rolls back on its own and holds
 * connections of its own. It fails with `PoolSelfDeadlock` if the unit around it holds all
 * connections of the pool, and otherwise as {@link run} does.
 *
 * @see {@link run} joins the unit around it instead
 * @see {@link outside} runs without a unit
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, UnitOfWork } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * // the attempt is recorded, also if the unit around it rolls back
 * export const recordAttempt = Effect.gen(function*() {
 *   const sql = yield* Db.writer
 *   yield* sql`INSERT INTO attempt (at) VALUES (now())`
 * }).pipe(UnitOfWork.runNew())
 * ```
 *
 * @since 0.1.0
 * @category combinators
 */
export const runNew: {
  // the order of the overloads matters in a pipe, as in `run`
  <A, E, R>(self: Effect.Effect<A, E, R>, options?: Options<A, E>): Effect.Effect<A, E | TransactionError, R>
  <A, E>(
    options?: Options<A, E> & Called<"UnitOfWork.runNew()">
  ): <R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | TransactionError, R>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(self: Effect.Effect<A, E, R>, options: Options<A, E> = {}): Effect.Effect<A, E | TransactionError, R> =>
    runSeparateUnit(self, options)
)

/**
 * Runs an effect as a part of a unit of work, or of a transaction, that can fail alone.
 *
 * If the part fails, its work is undone on every database, by savepoints, and the unit continues. If
 * the part succeeds, its work is stored with the unit. Outside of units and transactions, the part is
 * a unit of its own.
 *
 * - A savepoint is set in the exchange of the first statement on its database; a part without
 *   statements costs nothing. If an undone part was the first to use a database, the transaction
 *   there counts as not begun.
 * - Concurrent parts take turns, each from its first statement to its end, so a part must not wait
 *   for another part: it would fail with `TransactionBusy` after `acquireTimeout`.
 * - Hooks of an undone part are dropped, except `afterRollback`.
 * - {@link commit} and {@link rollback} in a part fail with `PropagationRefused`.
 * - Outside of units and transactions, it fails as {@link run} does.
 *
 * @see {@link run} for a part that fails the whole unit if it fails
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, UnitOfWork } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 * class Audit extends Database.Service<Audit>()("audit") {}
 *
 * const bonus = Effect.gen(function*() {
 *   const sql = yield* Db.writer
 *   yield* sql`INSERT INTO bonus (account) VALUES (1)`
 *   const log = yield* Audit.writer
 *   yield* log`INSERT INTO event (what) VALUES ('bonus')`
 * })
 *
 * // the account is stored, with or without its bonus
 * export const register = Effect.gen(function*() {
 *   const sql = yield* Db.writer
 *   yield* sql`INSERT INTO account (id) VALUES (1)`
 *   yield* Effect.ignore(UnitOfWork.nested(bonus))
 * }).pipe(UnitOfWork.run())
 * ```
 *
 * @since 0.2.0
 * @category combinators
 */
export const nested: {
  // the order of the overloads matters in a pipe, as in `run`
  <A, E, R>(self: Effect.Effect<A, E, R>, options?: NestedOptions<A, E>): Effect.Effect<A, E | TransactionError, R>
  <A, E>(
    options?: NestedOptions<A, E> & Called<"UnitOfWork.nested()">
  ): <R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | TransactionError, R>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    options: NestedOptions<A, E> = {}
  ): Effect.Effect<A, E | TransactionError, R> => runNested(self, options)
)

/**
 * Runs an effect outside of every unit of work and every transaction, of all databases.
 *
 * Its statements run on connections of their own and do not see uncommitted work around it. Use it, or
 * {@link runNew}, for a fiber that is forked in a unit and outlives the unit: otherwise the
 * statements of the fiber fail with `TransactionEnded` after the end of the unit.
 *
 * @see {@link runNew} for a unit of its own
 * @see {@link detach} for a stream
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, UnitOfWork } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * declare const sendMail: Effect.Effect<void, never, Db>
 *
 * export const inBackground = Effect.forkDaemon(UnitOfWork.outside(sendMail))
 * ```
 *
 * @since 0.1.0
 * @category combinators
 */
export const outside = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.mapInputContext(self, withoutSlot<R>)

/**
 * Returns the stream with the services of the current context, to be run outside of every unit of
 * work.
 *
 * It is for the body of a response, which is read after the unit has ended. A stream that belongs to
 * the unit would fail with `TransactionEnded`.
 *
 * @see {@link outside} for an effect
 * @example
 * ```ts
 * import { HttpServerResponse } from "@effect/platform"
 * import { Effect, Stream } from "effect"
 * import { Database, UnitOfWork } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * const lines = Stream.unwrap(
 *   Effect.map(Db.reader, (sql) => sql<{ title: string }>`SELECT title FROM todo`.stream)
 * ).pipe(
 *   Stream.map(({ title }) => `${title}\n`),
 *   Stream.encodeText
 * )
 *
 * export const handler = Effect.map(UnitOfWork.detach(lines), (body) => HttpServerResponse.stream(body))
 * ```
 *
 * @since 0.1.0
 * @category combinators
 */
export const detach = <A, E, R>(self: Stream.Stream<A, E, R>): Effect.Effect<Stream.Stream<A, E>, never, R> =>
  detachStream(self)

/**
 * Commits the work of the unit so far, on every database; the next statement on each begins another
 * transaction.
 *
 * Without a unit it does nothing. It fails with `PropagationRefused` in a transaction that
 * `withTransaction` has begun and in {@link nested}, with `TransactionBusy` while the same
 * transactions are being committed, with `TransactionEnded` after the end of the unit, and otherwise
 * as the end of {@link run} does.
 *
 * @see {@link rollback}
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, UnitOfWork } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const importAll = (batches: ReadonlyArray<ReadonlyArray<{ readonly title: string }>>) =>
 *   Effect.gen(function*() {
 *     const sql = yield* Db.writer
 *     for (const batch of batches) {
 *       yield* sql`INSERT INTO todo ${sql.insert(batch)}`
 *       yield* UnitOfWork.commit
 *     }
 *   }).pipe(UnitOfWork.run())
 * ```
 *
 * @since 0.1.0
 * @category combinators
 */
export const commit: Effect.Effect<void, TransactionError> = endAll("commit")

/**
 * Rolls back the work of the unit so far, on every database; the next statement on each begins
 * another transaction.
 *
 * Without a unit it does nothing. It fails with `PropagationRefused` in a transaction that
 * `withTransaction` has begun and in {@link nested}, and with `TransactionEnded` after the end of the
 * unit.
 *
 * @see {@link commit}
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, UnitOfWork } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const dryRun = <E>(work: Effect.Effect<void, E, Db>) =>
 *   UnitOfWork.run(Effect.zipRight(work, UnitOfWork.rollback))
 * ```
 *
 * @since 0.1.0
 * @category combinators
 */
export const rollback: Effect.Effect<void, TransactionError> = endAll("rollback")
